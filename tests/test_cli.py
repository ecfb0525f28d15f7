"""The command line: what it does, what it keeps, and one clear line for each kind of bad input."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrovae
from pyrovae.cli import main
from pyrovae.results import Evaluation
from pyrovae.training.folder import MANIFEST

QUICK = ["--epochs", "2", "--latent_dim", "3", "--hidden", "16", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail, and return its one line."""
    try:
        code = main(list(argv))
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that is made once."""
    folder = tmp_path_factory.mktemp("made") / "run"
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert main(["train", "--folder", str(folder), *QUICK]) == 0
    torch.set_default_dtype(default)
    return folder


@pytest.fixture
def run(made: Path) -> Path:
    """Return a copy of it in the working directory."""
    shutil.copytree(made, "run")
    return Path("run")


def test_train_evaluate_generate(capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("run")
    assert main(["train", "--folder", "run", *QUICK]) == 0
    assert "next: pyrovae evaluate run" in capsys.readouterr().out
    files = {path.name for path in run.iterdir()}
    expected = {"config.json", "model.json", "model.safetensors", "trainer.pt", "metrics.jsonl", MANIFEST}
    assert files == expected

    assert main(["evaluate", "run", "--ks", "1", "10"]) == 0
    out = capsys.readouterr().out
    saved = Evaluation.from_json((run / "report" / "evaluation.json").read_text())
    assert str(saved) in out
    pictures = {
        "training.png",
        "ladder.png",
        "reconstructions.png",
        "samples.png",
        "latent_space.png",
        "traversals.png",
    }
    assert {path.name for path in (run / "report").iterdir()} == {"evaluation.json", "per_datum.safetensors", *pictures}
    manifest = json.loads((run / MANIFEST).read_text())["files"]
    for name, digest in manifest.items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == digest

    assert main(["evaluate", "run", "--ks", "1", "10"]) == 0
    assert Evaluation.from_json((run / "report" / "evaluation.json").read_text()).estimates == saved.estimates

    assert main(["generate", "run", "--num", "9"]) == 0
    assert Path("run/samples.png").stat().st_size > 1000
    assert main(["generate", "run", "--num", "5", "--draws", "--out", "x.npy"]) == 0
    x = np.load("x.npy")
    assert x.shape == (5, 1, 8, 8)
    assert set(np.unique(x)) <= {0.0, 1.0}


def test_default_folder_takes_the_next_number(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        assert main(["train", *QUICK]) == 0
        assert f"run: runs/digits-{number}" in capsys.readouterr().out


def test_parts_and_their_options() -> None:
    likelihood = ["--likelihood", "Gaussian", "--likelihood.scale", "0.5", "--likelihood.learn_scale", "true"]
    assert main(["train", "--folder", "run", *QUICK, *likelihood]) == 0
    vae = pyrovae.load("run").vae
    assert isinstance(vae.likelihood, pyrovae.likelihoods.Gaussian)
    assert vae.likelihood.log_scale.requires_grad
    assert main(["evaluate", "run", "--ks", "1", "2"]) == 0
    saved = pyrovae.report.read_report("run")
    assert saved.data_transform == {"class": "Dequantization"}
    assert saved.base_measure == "Lebesgue"


def test_configuration_in_and_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--folder", "run", *QUICK, "--learning-rate", "0.01", "--likelihood", "Gaussian"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "run/config.json", "--epochs", "1", "--print_config"])
    assert stop.value.code == 0
    options = json.loads(capsys.readouterr().out)
    assert options == json.loads(Path("run/config.json").read_text())["command"] | {"epochs": 1}
    assert options["learning_rate"] == 0.01
    assert main(["train", "--config", "run/config.json", "--folder", "again"]) == 0
    first, again = (pyrovae.load(folder).history.epochs for folder in ("run", "again"))
    assert [e.elbo for e in first] == [e.elbo for e in again]


@pytest.mark.usefixtures("run")
def test_resume_goes_on_to_the_same_numbers() -> None:
    assert main(["train", "--resume", "run", "--epochs", "4"]) == 0
    assert main(["train", "--folder", "whole", *QUICK, "--epochs", "4"]) == 0
    resumed, whole = pyrovae.load("run"), pyrovae.load("whole")
    assert [e.elbo for e in resumed.history.epochs] == [e.elbo for e in whole.history.epochs]
    for a, b in zip(resumed.vae.parameters(), whole.vae.parameters(), strict=True):
        assert torch.equal(a, b)


def test_own_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    np.savez("mine.npz", x=generator.normal(3.0, 5.0, size=(200, 4)).astype(np.float32))
    assert main(["train", "--data", "mine.npz", "--likelihood", "Gaussian", "--folder", "run", *QUICK]) == 0
    assert "Standardization" in capsys.readouterr().out
    assert main(["evaluate", "run", "--ks", "1", "2"]) == 0
    assert not Path("run/report/samples.png").exists()
    assert main(["generate", "run", "--out", "x.npy"]) == 0
    assert np.load("x.npy").shape == (64, 4)
    assert "are not images" in fails(capsys, "generate", "run", "--out", "x.png")


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in ("train", "evaluate", "generate"):
        assert f"pyrovae {command}" in overview
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 100
        assert "==SUPPRESS==" not in text
    assert main([]) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in ("Bernoulli", "Gaussian", "StandardNormal", "DiagonalNormal", "--likelihood.scale", "--epochs"):
        assert name in text


BAD = [
    (["train", "--epoch", "2"], "unknown option --epoch; did you mean --epochs?"),
    (["train", "--epochs", "two"], "invalid int value: 'two'"),
    (["train", "--epochs", "-1"], "epochs is a whole number of at least 0"),
    (["train", "--batch_size", "0"], "batch_size is a whole number of at least 1"),
    (["train", "--learning_rate", "nan"], "learning_rate is positive and finite"),
    (["train", "--beta", "-1"], "beta is at least 0"),
    (["train", "--data", "minst"], "mnist"),
    (["train", "--data", "no/such.npz"], "no/such.npz"),
    (["train", "--data", "mnist", "--data.root", "empty", "--data.download", "false"], "PYROVAE_DATA"),
    (["train", "--data.transform", "Binarize"], "there is no transform 'Binarize'; choose from"),
    (["train", "--data.transform", "Grey"], "binarize them"),
    (["train", "--likelihood", "Bernouli"], "invalid choice: 'Bernouli'"),
    (["train", "--likelihood.scale", "2"], "Bernoulli has no option --likelihood.scale; Gaussian has"),
    (["train", "--likelihood", "Gaussian", "--likelihood.scale", "big"], "takes NUMBER, but received 'big'"),
    (["train", "--likelihood", "Gaussian", "--likelihood.scale", "-1"], "scale of a Gaussian is positive"),
    (["train", "--latent_dim", "0"], "at least 1 dimension"),
    (["train", "--latent_dim", "1000000000000"], "needs about"),
    (["train", "--hidden", "0"], "at least one unit"),
    (["train", "--device", "abacus"], "the device 'abacus' cannot be used here"),
    (["train", "--config", "nothing.json"], "nothing.json cannot be read"),
    (["train", "--resume", "nothing"], "nothing is not a run folder"),
    (["train", "stray"], "what is 'stray'?"),
    (["evaluate", "nothing"], "nothing is not a run folder"),
    (["evaluate"], "RUN"),
    (["generate", "nothing"], "nothing is not a run folder"),
    (["fly"], "there is no command 'fly'"),
]


@pytest.mark.parametrize(("argv", "text"), BAD, ids=[" ".join(argv)[:60] for argv, _ in BAD])
def test_bad_input_is_told_in_one_line(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text in fails(capsys, *argv)
    assert not Path("runs").exists(), "nothing is left behind by a command that did nothing"


def test_bad_data_files(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("labels.npz", x=np.arange(10))
    assert "look like labels" in fails(capsys, "train", "--data", "labels.npz")
    np.savez("nan.npz", x=np.full((50, 3), np.nan))
    assert "NaN" in fails(capsys, "train", "--data", "nan.npz")
    np.savez("empty.npz", x=np.zeros((0, 3)))
    assert "holds one datum or more" in fails(capsys, "train", "--data", "empty.npz")
    np.savez("real.npz", x=np.random.default_rng(0).normal(size=(50, 3)))
    assert "[0, 1]" in fails(capsys, "train", "--data", "real.npz")


def test_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "cannot be written" in fails(capsys, "train", "--folder", "file/run", *QUICK)
    assert main(["train", "--folder", "run", *QUICK]) == 0
    assert "holds a run already" in fails(capsys, "train", "--folder", "run", *QUICK)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "config.json", "trainer.pt", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "edited"])
def test_damaged_run_says_which_file(run: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else content[:-2] + b"  ")
    line = fails(capsys, "evaluate", "run")
    assert name in line
    assert ("missing" if damage == "missing" else "damaged") in line


def test_damaged_manifest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / MANIFEST).write_text("{")
    assert MANIFEST in fails(capsys, "evaluate", "run")


@pytest.mark.usefixtures("run")
def test_bad_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert "whole numbers of at least 1, but received (0,)" in fails(capsys, "evaluate", "run", "--ks", "0")
    assert "the nearest that do are (1, 10, 30)" in fails(capsys, "evaluate", "run", "--ks", "1", "10", "25")
    assert "needs about" in fails(capsys, "evaluate", "run", "--ks", str(10**13))
    assert "first(0)" in fails(capsys, "evaluate", "run", "--num_data", "0")
    assert "at least 1 sample" in fails(capsys, "generate", "run", "--num", "0")
    assert "needs about" in fails(capsys, "generate", "run", "--num", str(10**13))
    assert "cannot be written" in fails(capsys, "generate", "run", "--out", "no/such/folder.npy")
    assert "a .png or a .npy" in fails(capsys, "generate", "run", "--out", "x.gif")


@pytest.mark.usefixtures("run")
def test_other_data_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "run", "--ks", "1", "--data.seed", "7"]) == 0
    assert "not the data that the run was trained on" in capsys.readouterr().out


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pyrovae", "fly"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "pyrovae: error: there is no command 'fly'; choose from train, evaluate, generate\n"


def test_interrupt_keeps_what_was_written() -> None:
    command = [sys.executable, "-m", "pyrovae", "train", "--folder", "run", *QUICK, "--epochs", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    metrics = Path("run/metrics.jsonl")
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To go on: pyrovae train --resume run" in errors
    assert "Traceback" not in errors
    epochs = len(pyrovae.load("run").history.epochs)
    assert epochs >= 1
    assert main(["train", "--resume", "run", "--epochs", str(epochs + 1)]) == 0
    assert len(pyrovae.load("run").history.epochs) == epochs + 1


@pytest.mark.usefixtures("run")
def test_a_refused_resume_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    for other in (["--hidden", "50"], ["--posterior.max_log_variance", "0"], ["--learning_rate", "1"], ["--beta", "2"]):
        line = fails(capsys, "train", "--resume", "run", "--epochs", "3", *other)
        assert "another model" in line or "resume with the same settings" in line
        assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    assert main(["train", "--resume", "run", "--epochs", "3"]) == 0


def test_early_stopping_switched_off_on_resume_keeps_the_last_weights() -> None:
    stopping = ["--epochs", "60", "--patience", "1", "--learning_rate", "0.05"]
    assert main(["train", "--folder", "run", *QUICK, *stopping]) == 0
    stopped = pyrovae.load("run").history
    assert stopped.best_epoch < len(stopped.epochs) < 60
    assert main(["train", "--resume", "run", "--epochs", str(len(stopped.epochs) + 1), "--patience", "none"]) == 0
    trainer = torch.load("run/trainer.pt", weights_only=True)
    weights = pyrovae.load("run").vae.state_dict()
    assert trainer["best_epoch"] == len(stopped.epochs) + 1
    assert all(torch.equal(value, weights[name]) for name, value in trainer["values"].items())


def test_double_columns_and_relative_paths(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("double.npz", x=np.random.default_rng(0).normal(2.0, 30.0, size=(200, 3)))
    assert main(["train", "--data", "double.npz", "--likelihood", "Gaussian", "--folder", "run", *QUICK]) == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["evaluate", "../run", "--ks", "1", "2"]) == 0
    log_det = pyrovae.report.read_report("../run").log_abs_det_jacobian
    assert log_det == pytest.approx(-3 * np.log(30), abs=0.5)
    assert f"for the stored values instead of x add {log_det:.3f} nats" in capsys.readouterr().out


def test_bits_are_those_of_dequantized_bytes_only(capsys: pytest.CaptureFixture[str]) -> None:
    gaussian = ["--likelihood", "Gaussian", "--data.transform"]
    for transform, bits in (("Identity", False), ("Grey", False), ("Dequantization", True)):
        assert main(["train", "--folder", transform, *QUICK, *gaussian, transform]) == 0
        assert main(["evaluate", transform, "--ks", "1", "--num_data", "5"]) == 0
        assert ("bits per dimension" in capsys.readouterr().out) == bits


def test_other_data_are_seen_through_the_transform_of_training() -> None:
    assert main(["train", "--folder", "run", *QUICK, "--data.transform", "Threshold"]) == 0
    assert main(["evaluate", "run", "--ks", "1", "--data", "digits"]) == 0
    assert pyrovae.report.read_report("run").data_transform == {"class": "Threshold", "level": 0.5}
    generator = np.random.default_rng(0)
    for name, scale in (("narrow", 1.0), ("wide", 9.0)):
        np.savez(f"{name}.npz", x=generator.normal(0.0, scale, size=(100, 2)))
    assert main(["train", "--folder", "columns", *QUICK, "--data", "narrow.npz", "--likelihood", "Gaussian"]) == 0
    transform = json.loads(Path("columns/config.json").read_text())["data"]["transform"]
    assert main(["evaluate", "columns", "--ks", "1", "--data", "wide.npz"]) == 0
    assert pyrovae.report.read_report("columns").data_transform == transform


@pytest.mark.usefixtures("run")
def test_the_table_is_printed_even_if_the_report_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/report").write_text("in the way")
    assert main(["evaluate", "run", "--ks", "1"]) == 2
    captured = capsys.readouterr()
    assert "Estimates of log p(x)" in captured.out
    assert "cannot be written" in captured.err


@pytest.mark.usefixtures("run")
def test_configuration_of_every_kind_of_option(capsys: pytest.CaptureFixture[str]) -> None:
    Path("g.json").write_text(json.dumps({"draws": True, "num": 3, "allow": []}))
    assert main(["generate", "--config", "g.json", "run", "--out", "x.npy"]) == 0
    assert set(np.unique(np.load("x.npy"))) <= {0.0, 1.0}
    Path("g.json").write_text(json.dumps({"draws": False, "num": 3}))
    assert main(["generate", "run", "--config", "g.json", "--out", "x.npy"]) == 0
    assert len(np.unique(np.load("x.npy"))) > 2
    Path("k.json").write_text(json.dumps({"ks": [1, 4], "data.download": True}))
    assert main(["evaluate", "--config", "k.json", "run"]) == 0
    assert "L_4 " in capsys.readouterr().out
    Path("k.json").write_text(json.dumps({"ks": [1, 4], "kz": 3}))
    assert "unknown option --kz; did you mean --ks?" in fails(capsys, "evaluate", "run", "--config", "k.json")


def test_two_runs_do_not_share_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/.claimed").touch()  # as another process leaves it until its first checkpoint
    assert "taken by another run" in fails(capsys, "train", "--folder", "run", *QUICK)
