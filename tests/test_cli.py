"""The command line: what it does, what it keeps, and one clear line for each kind of bad input."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
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
from pyrovae.cli.train_command import _menus
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.training.run_folder import MANIFEST, RunFolder

HIDDEN = ["--encoder.hidden", "16", "--decoder.hidden", "16"]
QUICK = ["--epochs", "2", "--latent_dim", "3", "--device", "cpu", *HIDDEN]


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

    evaluated = ["evaluate", "run", "--ks", "1", "10", *FEW, "--report", "report"]
    assert main(evaluated) == 0
    out = capsys.readouterr().out
    saved = pyrovae.report.read_report("run")
    assert str(saved) in out
    assert f"report: {run / 'report' / 'index.html'}" in out
    written = {"index.html", "evaluation.json", "evaluation.nc", "per_datum.safetensors"}
    assert {path.name for path in (run / "report").iterdir()} == written
    manifest = json.loads((run / MANIFEST).read_text())["files"]
    for name, digest in manifest.items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == digest

    before = {name: (run / "report" / name).read_text(errors="replace") for name in written}
    assert main([*evaluated, "--overwrite"]) == 0
    again = pyrovae.report.read_report("run")
    for name, text in before.items():  # but for the date
        assert (run / "report" / name).read_text(errors="replace").replace(again.date, saved.date) == text

    assert main(["generate", "run", "--num", "9"]) == 0
    assert Path("run/samples.png").stat().st_size > 1000
    assert main(["generate", "run", "--num", "5", "--draws", "--out", "x.npy"]) == 0
    x = np.load("x.npy")
    assert x.shape == (5, 1, 8, 8)
    assert set(np.unique(x)) <= {0.0, 1.0}


@pytest.mark.usefixtures("run")
def test_the_library_reaches_the_numbers_of_the_command() -> None:
    run = pyrovae.load("run")
    data = pyrovae.data.digits().for_form("binary")
    with forked_random(stream_seed(0, "initialize")):
        likelihood, posterior = pyrovae.likelihoods.Bernoulli(data.x_shape), pyrovae.posteriors.DiagonalNormal(3)
        encoder = pyrovae.networks.MLPEncoder(data.x_shape, posterior.param_shape, hidden=(16,))
        prior = pyrovae.priors.StandardNormal(3)
        decoder = pyrovae.networks.MLPDecoder(3, likelihood.param_shape, hidden=(16,))
        vae = pyrovae.VAE(prior=prior, decoder=decoder, likelihood=likelihood, encoder=encoder, posterior=posterior)
    history = pyrovae.fit(vae.model, vae.guide, data, training=pyrovae.Training(epochs=len(run.history.epochs)))
    assert [epoch.elbo for epoch in history.epochs] == [epoch.elbo for epoch in run.history.epochs]


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
    assert main(["evaluate", "--checks", "false", "run", "--ks", "1", "2"]) == 0
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
    assert main(["evaluate", "--checks", "false", "run", "--ks", "1", "2"]) == 0
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
        assert "%%" not in text
    assert main([]) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in ("Bernoulli", "Gaussian", "StandardNormal", "DiagonalNormal", "--likelihood.scale", "--epochs"):
        assert name in text
    for role, (menu, _, default) in _menus().items():
        section = text[text.index(f"\n{role}:\n") :]
        starts = [re.search(rf"^ *(?:--{role} CLASS +)?{name}: \S", section, re.M) for name in menu]
        assert all(start is not None for start in starts), "one class per line"
        assert f"(default: {default})" in " ".join(section.split())
    words = " ".join(text.split())
    assert "MixtureOfGaussians: C, the number of components (default: 10) Vamp: C, the number of" in words
    assert "(default: false)" in words


BAD = [
    (["train", "--epoch", "2"], "unknown option --epoch; did you mean --epochs?"),
    (["train", "--epochs", "two"], "invalid int value: 'two'"),
    (["train", "--epochs", "-1"], "epochs is a whole number of at least 0"),
    (["train", "--batch_size", "0"], "batch_size is a whole number of at least 1"),
    (["train", "--learning_rate", "nan"], "learning_rate is positive and finite"),
    (["train", "--objective.beta", "-1"], "`beta` must be finite and >= 0"),
    (["train", "--beta", "2"], "unknown option --beta; did you mean --objective.beta?"),
    (["train", "--hidden", "9"], "--encoder.hidden or --decoder.hidden?"),
    (
        ["train", "--objective", "IWAE", "--objective.beta", "2"],
        "IWAE has no option --objective.beta, which is one of ELBO",
    ),
    (
        ["train", "--objective", "IWAE", "--annealing", "Linear"],
        "IWAE cannot be annealed; leave out --annealing, or choose",
    ),
    (
        ["train", "--annealing.num_steps", "9"],
        "Constant has no option --annealing.num_steps, which is one of Cyclical, L",
    ),
    (
        ["train", "--annealing", "Linear", "--annealing.num_steps", "9.5"],
        "--annealing.num_steps takes N, but received '9.5'",
    ),
    (["train", "--prior", "Flow", "--latent_dim", "1"], "for one dimension take MixtureOfGaussians"),
    (["train", "--prior", "Flwo"], "there is no prior 'Flwo'; did you mean Flow? Choose from DiagonalNormal, Flow"),
    (["train", "--prior", "Vamp", "--prior.num_components", "2000"], "choose num_components"),
    (["train", "--posterior.hiden", "3"], "unknown option --posterior.hiden; did you mean --posterior.hidden?"),
    (["train", "--encoder.hidden", "20", "x"], "--encoder.hidden takes N N ..., but received '20 x'"),
    (["train", "--encoder.hidden", "20", "2.5"], "--encoder.hidden takes N N ..., but received '20 2.5'"),
    (
        ["train", "--likelihood", "Gaussian", "--likelihood.learn_scale", "maybe"],
        "takes true|false, but received 'maybe'",
    ),
    (
        ["train", "--likelihood", "nowhere.Cauchy"],
        "--likelihood nowhere.Cauchy cannot be imported: ModuleNotFoundError: No",
    ),
    (["train", "--likelihood", "json.Cauchy"], "--likelihood json.Cauchy cannot be imported: AttributeError: module"),
    (["train", "--likelihood", ".Cauchy"], "--likelihood .Cauchy cannot be imported"),
    (
        ["train", "--prior", "pyrovae.likelihoods.Gaussian"],
        "is not a prior: derive the class from pyrovae.priors.Prior",
    ),
    (["train", "--prior", "json.dumps"], "--prior json.dumps is not a prior"),
    (["train", "--prior", "pyrovae.priors.Prior"], "--prior pyrovae.priors.Prior lacks forward; see help(Prior)"),
    (["train", "--data", "minst"], "mnist"),
    (["train", "--data", "no/such.npz"], "no/such.npz"),
    (["train", "--data", "mnist", "--data.root", "empty", "--data.download", "false"], "PYROVAE_DATA"),
    (["train", "--data.transform", "Binarize"], "there is no transform 'Binarize'; choose from"),
    (["train", "--data.transform", "Grey"], "binarize them"),
    (["train", "--likelihood", "Bernouli"], "there is no likelihood 'Bernouli'; did you mean Bernoulli? Choose"),
    (["train", "--likelihood.scale", "2"], "Bernoulli has no option --likelihood.scale, which is one of Gaussian"),
    (["train", "--likelihood", "Gaussian", "--likelihood.scale", "big"], "takes NUMBER, but received 'big'"),
    (["train", "--likelihood", "Gaussian", "--likelihood.scale", "-1"], "scale of a Gaussian is positive"),
    (["train", "--latent_dim", "0"], "at least 1 dimension"),
    (["train", "--latent_dim", "1000000000000"], "not enough memory"),
    (["train", "--encoder.hidden", "0"], "at least one unit"),
    (["train", "--device", "abacus"], "the device 'abacus' cannot be used here"),
    (["train", "--config", "nothing.json"], "nothing.json cannot be read"),
    (["train", "--resume", "nothing"], "nothing is not a run folder"),
    (["train", "stray"], "unknown argument 'stray'"),
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
    assert "'fast'" in fails(capsys, "evaluate", "run", "--engine", "fast")
    assert "at least 1 sample" in fails(capsys, "generate", "run", "--num", "0")
    assert "needs about" in fails(capsys, "generate", "run", "--num", str(10**13))
    assert "cannot be written" in fails(capsys, "generate", "run", "--out", "no/such/folder.npy")
    assert "a .png or a .npy" in fails(capsys, "generate", "run", "--out", "x.gif")


@pytest.mark.usefixtures("run")
def test_other_data_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--checks", "false", "run", "--ks", "1", "--data.seed", "7"]) == 0
    assert "not the data that the run was trained on" in capsys.readouterr().out


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pyrovae", "fly"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "pyrovae: error: there is no command 'fly'; choose from train, evaluate, compare, generate\n"


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
    assert "To resume: pyrovae train --resume run" in errors
    assert "Traceback" not in errors
    epochs = len(pyrovae.load("run").history.epochs)
    assert epochs >= 1
    assert main(["train", "--resume", "run", "--epochs", str(epochs + 1)]) == 0
    assert len(pyrovae.load("run").history.epochs) == epochs + 1


@pytest.mark.usefixtures("run")
def test_a_refused_resume_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    for other in (
        ["--encoder.hidden", "50"],
        ["--posterior.max_log_variance", "0"],
        ["--learning_rate", "1"],
        ["--objective.beta", "2"],
    ):
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
    assert main(["evaluate", "--checks", "false", "../run", "--ks", "1", "2"]) == 0
    log_det = pyrovae.report.read_report("../run").log_abs_det_jacobian
    assert log_det == pytest.approx(-3 * np.log(30), abs=0.5)
    assert f"for the stored values instead of x add {log_det:.3f} nats" in capsys.readouterr().out


def test_bits_are_those_of_dequantized_bytes_only(capsys: pytest.CaptureFixture[str]) -> None:
    gaussian = ["--likelihood", "Gaussian", "--data.transform"]
    assert main(["train", "--folder", "Identity", *QUICK, *gaussian, "Identity"]) == 2
    assert "take data.for_form('continuous')" in capsys.readouterr().err
    for transform, bits in (("Grey", False), ("Dequantization", True)):
        assert main(["train", "--folder", transform, *QUICK, *gaussian, transform]) == 0
        assert main(["evaluate", "--checks", "false", transform, "--ks", "1", "--num_data", "5"]) == 0
        assert ("bits per dimension" in capsys.readouterr().out) == bits


def test_other_data_are_seen_through_the_transform_of_training() -> None:
    assert main(["train", "--folder", "run", *QUICK, "--data.transform", "Threshold"]) == 0
    assert main(["evaluate", "--checks", "false", "run", "--ks", "1", "--data", "digits"]) == 0
    assert pyrovae.report.read_report("run").data_transform == {"class": "Threshold", "level": 0.5}
    generator = np.random.default_rng(0)
    for name, scale in (("narrow", 1.0), ("wide", 9.0)):
        np.savez(f"{name}.npz", x=generator.normal(0.0, scale, size=(100, 2)))
    assert main(["train", "--folder", "columns", *QUICK, "--data", "narrow.npz", "--likelihood", "Gaussian"]) == 0
    transform = json.loads(Path("columns/config.json").read_text())["data"]["transform"]
    assert main(["evaluate", "--checks", "false", "columns", "--ks", "1", "--data", "wide.npz"]) == 0
    assert pyrovae.report.read_report("columns").data_transform == transform


@pytest.mark.usefixtures("run")
def test_the_table_is_printed_even_if_the_report_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/report").write_text("in the way")
    assert main(["evaluate", "--checks", "false", "run", "--ks", "1", "--report", "report"]) == 2
    captured = capsys.readouterr()
    assert "Estimates of log p(x)" in captured.out
    assert "cannot be written" in captured.err


@pytest.mark.usefixtures("run")
def test_configuration_of_every_kind_of_option(capsys: pytest.CaptureFixture[str]) -> None:
    Path("g.json").write_text(json.dumps({"draws": True, "num": 3}))
    assert main(["generate", "--config", "g.json", "run", "--out", "x.npy"]) == 0
    assert set(np.unique(np.load("x.npy"))) <= {0.0, 1.0}
    Path("g.json").write_text(json.dumps({"draws": False, "num": 3}))
    assert main(["generate", "run", "--config", "g.json", "--out", "x.npy"]) == 0
    assert len(np.unique(np.load("x.npy"))) > 2
    Path("k.json").write_text(json.dumps({"ks": [1, 4], "data.download": True}))
    assert main(["evaluate", "--config", "k.json", "--checks", "false", "run"]) == 0
    assert "L_4 " in capsys.readouterr().out
    Path("k.json").write_text(json.dumps({"ks": [1, 4], "kz": 3}))
    assert "unknown option --kz; did you mean --ks?" in fails(capsys, "evaluate", "run", "--config", "k.json")
    Path("g.json").write_text(json.dumps({"draws": "false"}))
    assert "--draws is true or false, but received 'false'" in fails(capsys, "generate", "run", "--config", "g.json")
    for allowed in ([], ["os"]):  # else a file could allow what it names
        Path("g.json").write_text(json.dumps({"num": 3, "allow": allowed}))
        line = fails(capsys, "generate", "run", "--config", "g.json")
        assert "in g.json: --allow is given on the command line only" in line


def test_two_runs_do_not_share_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    with RunFolder("run").lock("trained"):
        assert "is being trained by the process" in fails(capsys, "train", "--folder", "run", *QUICK)


@pytest.mark.usefixtures("run")
def test_a_run_is_not_evaluated_twice_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path("run").iterdir())
    with RunFolder("run").lock("evaluated"):
        assert "the run run is being evaluated by the process" in fails(capsys, "evaluate", "run")
    assert sorted(Path("run").iterdir()) == before


SMALL = {
    "Vamp": ["--prior.num_components", "7"],
    "IAF": ["--posterior.hidden", "8"],
    "Flow": ["--prior.hidden", "8", "--prior.num_layers", "2"],
    "Linear": ["--annealing.num_steps", "3"],
    "Cyclical": ["--annealing.num_steps", "3", "--annealing.rise", "0.3"],
    "ConvEncoder": ["--encoder.channels", "4", "8", "--encoder.hidden", "8"],
    "ConvDecoder": ["--decoder.channels", "4", "8", "--decoder.hidden", "8"],
    "ResNetEncoder": [],
    "ResNetDecoder": ["--decoder.channels", "4", "8"],
    **{name: ["--objective.num_particles", "3"] for name in ("IWAE", "STL", "DReG")},
}
CLASSES = [(role, name) for role, (menu, _, default) in _menus().items() for name in menu if name != default]
FEW = [
    *("--num_annealed", "2", "--num_simulated", "2", "--num_refined", "0", "--num_encoded", "3"),
    *("--num_chains", "2", "--num_temperatures", "2", "--num_leapfrog", "1"),
]
TINY = ["--epochs", "1", "--latent_dim", "3", "--device", "cpu", "--batch_size", "433"]


@pytest.mark.parametrize(("role", "name"), CLASSES, ids=[f"{role}-{name}" for role, name in CLASSES])
def test_every_class_of_every_menu_trains_and_is_evaluated(
    role: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defaults are trained by all the others; pictures are drawn by other tests."""
    monkeypatch.setattr("pyrovae.report.folder.sections", lambda _: [])
    hidden = [word for other in ("encoder", "decoder") if other != role for word in (f"--{other}.hidden", "8")]
    own = SMALL.get(name, [f"--{role}.hidden", "8"] if role in ("encoder", "decoder") else [])
    assert main(["train", "--folder", "run", *TINY, *hidden, f"--{role}", name, *own]) == 0
    run = pyrovae.load("run")
    if role in ("objective", "annealing"):
        described = run.config["objective"]
        assert (described if role == "objective" else described["annealing"])["class"] == name
    else:
        assert type(getattr(run.vae, role)).__name__ == name
    assert main(["evaluate", "run", "--ks", "1", "5", "--num_data", "10", *FEW]) == 0
    saved = pyrovae.report.read_report("run")
    assert saved.num_data == 10
    assert [estimate.num_particles for estimate in saved.iwae] == [1, 5]
    assert all(estimate.value is not None for estimate in saved.estimates)
    assert saved.checked is not None
    assert not saved.checked.left_out
    assert saved.checked.annealing.num_data == saved.checked.sandwich.num_data == 2
    assert saved.checked.sandwich.gap.value is not None


OWN = '''
"""A likelihood of its user, whose annotations are few."""

import pyro.distributions as dist

from pyrovae.likelihoods import Likelihood


class StudentT(Likelihood):
    """Independent elements with heavy tails, 100% mine.

    Args:
        x_shape: shape of one datum.
        spread: half the width that holds 58% of x.
        scale: has no effect.
        steep: whether tails are lighter.

    """

    n_params = 1
    form = "continuous"
    base_measure = "Lebesgue"

    def __init__(self, x_shape, *, spread=1.0, scale: int = 3, steep=False):
        super().__init__(x_shape)
        self.spread, self.df = spread, 9.0 if steep else 2.0

    def forward(self, params):
        (location,) = self.split(params)
        return self.independent(dist.StudentT(self.df, location, self.spread))

    def initial_params(self, mean):
        return mean.unsqueeze(-1)


class Unfinished(Likelihood):
    n_params = 1

    def forward(self, params):
        return None


class Unreadable(StudentT):
    def __init__(self, x_shape, *, spread: "Spread" = 1.0):
        super().__init__(x_shape, spread=spread)
'''


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module of the user's in the working directory, which is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    name = f"mine_{abs(hash(os.getcwd()))}"
    Path(f"{name}.py").write_text(OWN)
    importlib.invalidate_caches()
    return name


@pytest.mark.parametrize("how", ["resume", "config", "evaluate", "generate"])
def test_own_class_is_imported_only_if_it_is_typed_or_allowed(
    own: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--likelihood", f"{own}.StudentT", "--likelihood.spread", "0.3", "--likelihood.steep", "true"]
    assert main(["train", "--folder", "run", *TINY, *HIDDEN, *chosen]) == 0
    assert f"next: pyrovae evaluate run --allow {own}\n" in capsys.readouterr().out
    words = {
        "resume": ["train", "--resume", "run", "--epochs", "2"],
        "config": ["train", "--config", "run/config.json", "--folder", "again"],
        "evaluate": ["evaluate", "--checks", "false", "run", "--ks", "1", "--num_data", "5"],
        "generate": ["generate", "run", "--out", "x.npy"],
    }[how]
    del sys.modules[own]
    sys.path.remove(os.getcwd())
    line = fails(capsys, *words)
    assert f"add --allow {own}" in line or f"or --allow {own}" in line
    assert own not in sys.modules
    assert "--allow" in fails(capsys, *words, "--allow", "another")
    assert own not in sys.modules
    assert main([*words, "--allow", own]) == 0
    run = pyrovae.load("again" if how == "config" else "run", allow=[own])
    assert type(run.vae.likelihood).__name__ == "StudentT"
    assert (run.vae.likelihood.spread, run.vae.likelihood.df) == (0.3, 9.0)
    assert len(run.history.epochs) == (2 if how == "resume" else 1)


def test_typing_another_class_takes_the_place_of_one_in_a_file(own: str) -> None:
    Path("c.json").write_text(json.dumps({"likelihood": f"{own}.StudentT"}))
    assert main(["train", "--folder", "run", *TINY, *HIDDEN, "--config", "c.json", "--likelihood", "Bernoulli"]) == 0
    assert own not in sys.modules
    assert isinstance(pyrovae.load("run").vae.likelihood, pyrovae.likelihoods.Bernoulli)
    Path("c.json").write_text(json.dumps({"likelihood": "pyrovae.likelihoods.Laplace"}))
    assert main(["train", "--folder", "path", *TINY, *HIDDEN, "--config", "c.json"]) == 0


def test_own_class_in_the_help(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help", "--likelihood", f"{own}.StudentT"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    section = " ".join(text[text.index("\nlikelihood:") : text.index("\nprior:")].split())
    assert f"{own}.StudentT: Independent elements with heavy tails, 100% mine Bernoulli: Independent" in section
    assert f"--likelihood.spread NUMBER {own}.StudentT: half the width that holds 58% of x (default: 1.0)" in section
    assert f"--likelihood.steep true|false {own}.StudentT: whether tails are lighter (default: false)" in section
    assert f"{own}.StudentT: has no effect (default: 3) Gaussian: standard deviation" in section


def test_bad_classes_of_the_user_are_told_in_one_line(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*words: str) -> str:
        return fails(capsys, "train", *words)

    mine = f"{own}.StudentT"
    assert "--likelihood.spread takes NUMBER, but received 'wide'" in line(
        "--likelihood", mine, "--likelihood.spread", "wide"
    )
    assert "did you mean --likelihood.spread?" in line("--likelihood", mine, "--likelihood.spraed", "2")
    assert "--likelihood.scale takes N, but received '0.5'" in line("--likelihood", mine, "--likelihood.scale", "0.5")
    assert f"{mine} has no option --likelihood.df" in line("--likelihood", mine, "--likelihood.df", "3")
    assert f"--prior {mine} is not a prior: derive the class from pyrovae.priors.Prior" in line("--prior", mine)
    assert "lacks base_measure, form, initial_params" in line("--likelihood", f"{own}.Unfinished")
    assert "cannot be imported: NameError: name 'Spread'" in line("--likelihood", f"{own}.Unreadable")
    assert "cannot be imported: AttributeError" in line("--likelihood", f"{own}.Nothing")
    raising = {
        "raise RuntimeError('first\\nsecond')": "RuntimeError: first second",
        "1 +": "SyntaxError",
        "exit(7)": "7",
    }
    for number, (code, text) in enumerate(raising.items()):
        name = f"raising{number}_{own}"
        Path(f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        said = line("--likelihood", f"{name}.Part")
        assert f"--likelihood {name}.Part cannot be imported: " in said
        assert text in said


def test_own_class_is_found_by_the_installed_command(own: str) -> None:
    words = ["train", "--likelihood", f"{own}.StudentT", "--likelihood.spread", "0.3", "--print_config"]
    code = f"import sys; from pyrovae.cli import main; sys.path.pop(0); sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["likelihood.spread"] == "0.3"


def test_every_option_of_a_part_comes_back_from_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--likelihood", "StudentT", "--likelihood.df", "3", "--likelihood.learn_scale", "true"]
    words += ["--prior", "Flow", "--prior.hidden", "9", "8", "--posterior", "IAF", "--posterior.num_context", "1"]
    words += ["--encoder", "GatedMLPEncoder", "--encoder.hidden", "20", "20", "--decoder.hidden"]
    words += ["--objective.free_bits", "0.1", "--annealing", "Linear", "--annealing.num_steps", "5"]

    def printed(*more: str) -> dict[str, object]:
        with pytest.raises(SystemExit) as stop:
            main(["train", *more, "--print_config"])
        assert stop.value.code == 0
        return json.loads(capsys.readouterr().out)

    first = printed(*words, "--folder", "run", *TINY)
    assert first["encoder.hidden"] == ["20", "20"]
    assert first["decoder.hidden"] == []
    assert "allow" not in first
    assert "resume" not in first
    Path("c.json").write_text(json.dumps(first))
    assert printed("--config", "c.json") == first
    assert printed("--config", "c.json", "--encoder.hidden", "7") == first | {"encoder.hidden": ["7"]}
    assert main(["train", "--config", "c.json"]) == 0
    capsys.readouterr()
    assert printed("--config", "run/config.json") == first
    assert printed("--resume", "run") == first | {"folder": None}
    vae = pyrovae.load("run").vae
    widths = [
        [layer.out_features for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
        for network in (vae.encoder, vae.decoder)
    ]
    assert widths == [[40, 40, 9], [64]], "gated layers are twice as wide; no hidden layer is a linear map"
    assert vae.likelihood.df == 3
    assert len(vae.prior.layers) == 4
    assert pyrovae.load("run").config["objective"] == {
        "class": "ELBO",
        "beta": 1.0,
        "free_bits": 0.1,
        "annealing": {"class": "Linear", "num_steps": 5, "start": 0.0},
        "num_particles": 1,
    }


def test_options_of_an_older_version_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = RunFolder(run)
    config = json.loads(files.read("config.json"))
    config["command"]["hidden"] = [16]
    files.write({"config.json": json.dumps(config).encode()})
    assert "in the run: unknown option --hidden; did you mean" in fails(capsys, "train", "--resume", "run")


def test_a_vamp_run_is_trained_resumed_and_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    vamp = [*QUICK, "--prior", "Vamp", "--prior.num_components", "7"]
    assert main(["train", "--folder", "run", *vamp]) == 0
    assert main(["train", "--resume", "run", "--epochs", "4"]) == 0
    assert main(["train", "--folder", "whole", *vamp, "--epochs", "4"]) == 0
    resumed, whole = pyrovae.load("run"), pyrovae.load("whole")
    assert [e.elbo for e in resumed.history.epochs] == [e.elbo for e in whole.history.epochs]
    assert resumed.vae.prior.encoder is resumed.vae.encoder
    assert resumed.vae.prior.posterior is resumed.vae.posterior
    first = {name: value for name, value in whole.vae.state_dict().items()}
    assert all(torch.equal(value, first[name]) for name, value in resumed.vae.state_dict().items())
    start = pyrovae.data.digits().for_form("binary").train.first(7).fixed()
    moved = (whole.vae.prior.pseudo_inputs.detach() - start).abs()
    assert 0 < moved.max() < 0.5, "pseudo-inputs start at data"
    capsys.readouterr()
    assert main(["evaluate", "--checks", "false", "run", "--ks", "1", "5", "--num_data", "10"]) == 0
    out = capsys.readouterr().out
    assert "KL of z: Monte Carlo (no closed form is known for KL(Normal || NormalMixture))" in out
    assert main(["generate", "run", "--num", "3", "--out", "x.npy"]) == 0
    assert np.load("x.npy").shape == (3, 1, 8, 8)


def test_likelihoods_of_the_wrong_data_name_the_cure(capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    np.save("floats.npy", generator.normal(size=(60, 3)))
    for name, hint in (("Categorical", "such as Gaussian"), ("Poisson", "such as Gaussian")):
        line = fails(capsys, "train", "--data", "floats.npy", "--likelihood", name)
        assert hint in line or "choose a likelihood for another form of data" in line
    np.save("counts.npy", generator.poisson(300.0, size=(60, 3)))
    assert main(["train", "--data", "counts.npy", "--likelihood", "Poisson", "--folder", "run", *QUICK]) == 0
    assert main(["evaluate", "--checks", "false", "run", "--ks", "1"]) == 0
    assert pyrovae.report.read_report("run").base_measure == "counting"
    assert "scores data stored as levels" in fails(
        capsys, "train", "--data", "counts.npy", "--likelihood", "Categorical"
    )


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", [["train", "--help"], ["--version"]], ids=" ".join)
def test_a_broken_pipe_ends_quietly(words: list[str], buffered: bool) -> None:  # noqa: FBT001
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "pyrovae", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


SMUGGLED = [  # options of a file, and what is said of them
    ({"ks": ["16", "--seed", "9"]}, "--ks takes K ..., but received '16 --seed 9'"),
    ({"ks": [1, "--seed=9"]}, "--ks takes K ..., but received '1 --seed=9'"),
    ({"ks": [[1, 2], 4]}, "--ks takes K ..., but received [[1, 2], 4]"),
    ({"ks": [1, None]}, "--ks takes K ..., but received [1, None]"),
    ({"ks": []}, "--ks takes K ..., but received []"),
    ({"seed": [1, "--overwrite"]}, "--seed takes N, but received '1 --overwrite'"),
    ({"seed": {"--seed": 1}}, "--seed takes N, but received {'--seed': 1}"),
    ({"seed": "-x"}, "--seed takes N, but received '-x'"),
    ({"split": "--data"}, "--split is one of train, validation, test, but received '--data'"),
    ({"checks": ["true", "extra"]}, "--checks is one of true, false, but received 'true extra'"),
    ({"se": 1}, "unknown option --se"),
    ({"seed=1": 2}, "unknown option --seed"),
    ({"-h": True}, "unknown option ---h"),
    ({"": 1}, "unknown option --"),
    ({"run": "elsewhere"}, "unknown option --run"),
    ({"help": True}, "--help is given on the command line only"),
    ({"config": "other.json"}, "--config is given on the command line only"),
    ({"print_config": True}, "--print_config is given on the command line only"),
]


@pytest.mark.parametrize(("options", "text"), SMUGGLED, ids=[json.dumps(options) for options, _ in SMUGGLED])
def test_values_of_a_file_are_not_read_as_options(
    options: dict[str, object], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.json").write_text(json.dumps(options))
    assert f"in c.json: {text}" in fails(capsys, "evaluate", "nothing", "--config", "c.json")


def test_a_file_cannot_resume_another_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for name in ("encoder.hidden", "epochs"):
        Path("c.json").write_text(json.dumps({name: ["16", "--resume", "run"]}))
        line = fails(capsys, "train", "--config", "c.json", "--folder", "mine")
        assert f"--{name} takes " in line
        assert "but received '16 --resume run'" in line
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert not Path("mine").exists()


def test_values_that_begin_with_dashes_are_values(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> dict[str, object]:
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        assert stop.value.code == 0
        return json.loads(capsys.readouterr().out)

    given = {"data.root": "--resume", "folder": "-f", "data": "--", "data.seed": -3, "final_learning_rate": None}
    Path("c.json").write_text(json.dumps(given))
    assert printed("train", "--config", "c.json").items() >= given.items()
    assert printed("train", "--config", "c.json", "--data.root=--other-root")["data.root"] == "--other-root"
    Path("c.json").write_text(json.dumps({"ks": [1, 8], "checks": False}))
    found = printed("evaluate", "run", "--config", "c.json")
    assert (found["ks"], found["checks"]) == ([1, 8], "false")
    assert printed("evaluate", "run", "--config", "c.json", "--ks", "3")["ks"] == [3]


def test_the_next_command_names_a_folder_that_looks_like_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--folder=-f", *QUICK, "--epochs", "1"]) == 0
    assert "next: pyrovae evaluate ./-f\n" in capsys.readouterr().out
