"""The command line: results, files, and one error line for each kind of bad input."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fails

import pyrovae
from pyrovae.cli import main
from pyrovae.cli.sweep_command import _parser, _points
from pyrovae.cli.train_command import MENUS
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.training.checkpoint import Checkpoint, Progress
from pyrovae.training.run_folder import MANIFEST, RunFolder

HIDDEN = ["--encoder.hidden", "16", "--decoder.hidden", "16"]
QUICK = ["--epochs", "2", "--latent_dim", "3", "--device", "cpu", *HIDDEN]
TINY = ["--epochs", "1", "--latent_dim", "3", "--device", "cpu", "--batch_size", "433"]
BOUNDS = ["--checks", "false", "--num_data", "10", "--ks", "1", "5", "--report", "report"]  # no checks
FEW = [
    *("--num_annealed", "2", "--num_simulated", "2", "--num_refined", "0", "--num_encoded", "3"),
    *("--num_chains", "2", "--num_temperatures", "2", "--num_leapfrog", "1"),
]


pytestmark = pytest.mark.usefixtures("elsewhere")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that prints and exits, and return its output."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 0
    return capsys.readouterr().out


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
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.report.page.pictures", lambda _: {})


@pytest.fixture
def run(made: Path, elsewhere: None) -> Path:
    """Return a copy of the run in the working directory."""
    shutil.copytree(made, "run")
    return Path("run")


def elbos(folder: str) -> list[float]:
    return [epoch.elbo for epoch in pyrovae.load(folder).history.epochs]


# commands


def test_train_evaluate_generate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.name for path in run.iterdir() if path.name[0] != "."}
    assert files == {"config.json", "model.json", "model.safetensors", "trainer.pt", "metrics.jsonl", MANIFEST}
    assert main(["evaluate", "run", "--ks", "1", "10", *FEW, "--report", "report"]) == 0
    out = capsys.readouterr().out
    assert str(pyrovae.report.read_report("run")) in out
    assert f"report: {run / 'report' / 'index.html'}" in out
    written = {"index.html", "evaluation.json", "evaluation.nc", "per_datum.safetensors"}
    assert {path.name for path in (run / "report").iterdir()} == written
    for name, digest in json.loads((run / MANIFEST).read_text())["files"].items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == digest
    assert main(["generate", "run", "--num", "9"]) == 0
    assert Path("run/samples.png").stat().st_size > 1000
    assert main(["generate", "run", "--num", "5", "--draws", "--out", "x.npy"]) == 0
    x = np.load("x.npy")
    assert x.shape == (5, 1, 8, 8)
    assert set(np.unique(x)) <= {0.0, 1.0}


@pytest.mark.usefixtures("run")
def test_the_library_reaches_the_numbers_of_the_command() -> None:
    data = pyrovae.data.digits().for_form("binary")
    with forked_random(stream_seed(0, "initialize")):
        likelihood, posterior = pyrovae.likelihoods.Bernoulli(data.x_shape), pyrovae.posteriors.DiagonalNormal(3)
        encoder = pyrovae.networks.MLPEncoder(data.x_shape, posterior.param_shape, hidden=(16,))
        prior = pyrovae.priors.StandardNormal(3)
        decoder = pyrovae.networks.MLPDecoder(3, likelihood.param_shape, hidden=(16,))
        vae = pyrovae.VAE(prior=prior, decoder=decoder, likelihood=likelihood, encoder=encoder, posterior=posterior)
    history = pyrovae.fit(vae.model, vae.guide, data, training=pyrovae.Training(epochs=2))
    assert [epoch.elbo for epoch in history.epochs] == elbos("run")


def test_folders_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/digits-1").mkdir(parents=True)
    assert main(["train", *TINY, *HIDDEN]) == 0
    assert "next: pyrovae evaluate runs/digits-2\n" in capsys.readouterr().out


def test_a_resumed_run_reaches_the_numbers_of_an_uninterrupted_one() -> None:
    vamp = [*QUICK, "--prior", "Vamp", "--prior.num_components", "7"]
    assert main(["train", "--folder", "run", *vamp]) == 0
    assert main(["train", "--resume", "run", "--epochs", "4"]) == 0
    assert main(["train", "--folder", "uninterrupted", *vamp, "--epochs", "4"]) == 0
    assert elbos("run") == elbos("uninterrupted")
    vae, other = pyrovae.load("run").vae, pyrovae.load("uninterrupted").vae
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in vae.state_dict().items())
    assert vae.prior.encoder is vae.encoder
    assert vae.prior.posterior is vae.posterior
    start = pyrovae.data.digits().for_form("binary").train.first(7).fixed()
    assert 0 < (vae.prior.pseudo_inputs.detach() - start).abs().max() < 0.5, "pseudo-inputs start at data"


@pytest.mark.usefixtures("_no_pictures")
def test_own_arrays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run finds its data from any folder, and shows other data under the transform that was fitted in training."""
    generator = np.random.default_rng(0)
    for name, scale in (("narrow", 30.0), ("wide", 90.0)):
        np.savez(f"{name}.npz", x=generator.normal(2.0, scale, size=(200, 3)))
    assert main(["train", "--data", "narrow.npz", "--likelihood", "Gaussian", "--folder", "run", *QUICK]) == 0
    assert "Standardization" in capsys.readouterr().out
    transform = json.loads(Path("run/config.json").read_text())["data"]["transform"]
    assert main(["evaluate", "run", *BOUNDS, "--data", "wide.npz"]) == 0
    assert "these are not the data that the run was trained on" in capsys.readouterr().out
    assert pyrovae.report.read_report("run").data_transform == transform
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["evaluate", "../run", *BOUNDS, "--overwrite"]) == 0
    log_det = pyrovae.report.read_report("../run").log_abs_det_jacobian
    assert log_det == pytest.approx(-3 * np.log(30), abs=0.5)
    assert f"for the stored values instead of x add {log_det:.3f} nats" in capsys.readouterr().out
    assert not Path("../run/report/samples.png").exists()
    assert main(["generate", "../run", "--out", "x.npy"]) == 0
    assert np.load("x.npy").shape == (64, 3)
    assert "are not images" in fails(capsys, "generate", "../run", "--out", "x.png")


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


def started(*words: str, **environment: str) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-m", "pyrovae", *words], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment)


def test_ctrl_c_is_an_exit_code_and_keeps_the_run() -> None:
    process = started("train", "--folder", "run", *QUICK, "--epochs", "100000")
    metrics, deadline = Path("run/metrics.jsonl"), time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "To resume: pyrovae train --resume run" in errors
    assert "pyrovae: interrupted; files that were written stay" in errors
    assert "Traceback" not in errors
    epochs = len(elbos("run"))
    assert main(["train", "--resume", "run", "--epochs", str(epochs + 1)]) == 0
    assert len(elbos("run")) == epochs + 1


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_broken_pipe_ends_quietly(unbuffered: str) -> None:
    process = started("train", "--help", PYTHONUNBUFFERED=unbuffered)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 0


# sweeps

SWEEP = ["sweep", *QUICK[:2], *QUICK[4:6], "--batch_size", "433", "--num_data", "9", "--ks", "1", "5", *HIDDEN[2:]]


@pytest.mark.usefixtures("_no_pictures")
def test_an_interrupted_sweep_resumes_to_the_numbers_of_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = ["--encoder.hidden", "8", "--encoder.hidden", "8", "4"]
    words = [*SWEEP, "--folder", "s", "--latent_dim", "2", "3", *lists]
    saved: list[object] = []

    def save(checkpoint: Checkpoint, progress: Progress) -> None:
        saved.append(progress)
        if len(saved) == 6:  # the second epoch of the second run; the first save of a run is before its training
            raise KeyboardInterrupt
        original(checkpoint, progress)

    original = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", save)
    assert main(words) == 130
    captured = capsys.readouterr()
    assert captured.out.startswith("4 runs in s, 0 of them finished\nlatent_dim: 2, 3; encoder.hidden: 8, 8 4\n")
    assert "To resume the sweep: the same command again" in captured.err
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "4 runs in s, 1 of them finished" in captured.out
    names = ["latent_dim-2_hidden-8", "latent_dim-2_hidden-8-4", "latent_dim-3_hidden-8", "latent_dim-3_hidden-8-4"]
    assert re.findall("run . of 4: (.*)", captured.err) == names[1:]
    assert {path.name for path in Path("s").iterdir()} == {*names, "comparison.txt", "rate_distortion.png"}
    table = Path("s/comparison.txt").read_text()
    assert table in captured.out
    assert list(dict.fromkeys(re.findall("^latent_dim\\S+", table, re.MULTILINE))) == names
    assert main(["compare", *map(str, Path("s").iterdir())]) == 0, "the table and the picture are skipped"
    alone = [*SWEEP[1:7], *HIDDEN[2:], "--latent_dim", "2", "--encoder.hidden", "8", "4"]
    assert main(["train", "--folder", "alone", *alone]) == 0
    assert elbos("alone") == elbos(f"s/{names[1]}")
    assert f"s/{names[0]} was made with --clip_norm None, but received 1.0" in fails(capsys, *words, "--clip_norm=1")


@pytest.mark.usefixtures("_no_pictures")
def test_the_failure_of_one_run_does_not_stop_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWEEP, "--seed", "0", "1", "--latent_dim", "2", "--learning_rate", "1e30", "0.001"]) == 1
    captured = capsys.readouterr()
    line, _ = (line for line in captured.err.splitlines() if "error:" in line)
    assert line.startswith("pyrovae: error: learning_rate-1e30_seed-0: training stopped in epoch")
    names = "learning_rate-1e30_seed-0, learning_rate-1e30_seed-1"
    assert f"2 of 4 runs failed: {names}; the same command tries them again" in captured.err
    (row,) = re.findall("^learning_rate-.*", captured.out, re.MULTILINE)
    assert row.split()[0] == "learning_rate-0.001", "one row for both seeds"


def test_a_value_that_is_given_twice_is_one_run_of_a_sweep() -> None:
    words = "--learning_rate 1e-3 .5 1e-3 --encoder.hidden 8 4 --encoder.hidden 8 4 --encoder.hidden 8 --data a A"
    values = {name: list(texts) for name, texts in _parser().values(words.split()).items()}
    assert values == {"--learning_rate": ["1e-3", ".5"], "--encoder.hidden": ["8 4", "8"], "--data": ["a", "A"]}


def test_the_picture_of_a_sweep_has_a_curve_along_beta_and_means_over_seeds() -> None:
    def evaluation(rate: float) -> Any:
        return SimpleNamespace(kl=SimpleNamespace(value=rate), reconstruction=SimpleNamespace(value=-9.0))

    runs = [
        ({"latent_dim": dim, "beta": beta, "seed": seed}, evaluation(int(dim) + float(beta) + int(seed)))
        for dim, beta, seed in itertools.product("28", ["1", ".5"], "04")
    ]
    curve = {".5": (4.5, 9.0), "1": (5.0, 9.0)}
    higher = {beta: (rate + 6, distortion) for beta, (rate, distortion) in curve.items()}
    assert _points(runs) == {"latent_dim 2, by beta": curve, "latent_dim 8, by beta": higher}
    assert list(_points(runs)["latent_dim 2, by beta"]) == [".5", "1"]
    parts = [({"prior": name}, evaluation(rate)) for name, rate in (("Flow", 1.0), ("Vamp", 2.0))]
    assert _points(parts) == {"prior Flow": (1.0, 9.0), "prior Vamp": (2.0, 9.0)}


# menus

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
NAMES = {role: list(menu) for role, (menu, _, _) in MENUS.items()}
COUNT = max(map(len, NAMES.values()))
CHOICES = [{role: names[case % len(names)] for role, names in NAMES.items()} for case in range(COUNT)]
for choice in CHOICES:  # only the ELBO can be annealed
    choice["objective"] = choice["objective"] if choice["annealing"] == "Constant" else "ELBO"


CASES = [pytest.param(choice, marks=pytest.mark.slow if case > 2 else ()) for case, choice in enumerate(CHOICES)]


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("choice", CASES, ids=lambda choice: "-".join(choice.values()))
def test_every_class_of_every_menu_trains_and_is_evaluated(choice: dict[str, str]) -> None:
    words = []
    for role, name in choice.items():
        small = [f"--{role}.hidden", "8"] if role in ("encoder", "decoder") else []
        words += [f"--{role}", name, *SMALL.get(name, small)]
    assert main(["train", "--folder", "run", *TINY, *words]) == 0
    run = pyrovae.load("run")
    objective = run.config["objective"]
    assert objective["class"] == choice["objective"]
    assert objective.get("annealing", {"class": "Constant"})["class"] == choice["annealing"]
    for role in ("likelihood", "prior", "posterior", "encoder", "decoder"):
        assert type(getattr(run.vae, role)).__name__ == choice[role]
    assert main(["evaluate", "run", "--ks", "1", "5", "--num_data", "10", *FEW, "--report", "report"]) == 0
    saved = pyrovae.report.read_report("run")
    assert (saved.num_data, [estimate.num_particles for estimate in saved.iwae]) == (10, [1, 5])
    assert all(estimate.value is not None for estimate in saved.estimates)
    assert saved.checked is not None
    assert not saved.checked.left_out
    assert saved.checked.annealing.num_data == saved.checked.sandwich.num_data == 2


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for command in ("evaluate", "compare", "generate", "sweep", "train"):
        assert f"pyrovae {command}" in overview
        text = printed(capsys, command, "--help")
        assert max(map(len, text.splitlines())) <= 100
        assert "%%" not in text
    for role, (menu, _, default) in MENUS.items():
        section = text[text.index(f"\n{role}:\n") :]
        assert all(re.search(rf"^ *(?:--{role} CLASS +)?{name}: \S", section, re.MULTILINE) for name in menu)
        assert f"(default: {default})" in " ".join(section.split())
    words = " ".join(text.split())
    assert "MixtureOfGaussians: C, the number of components (default: 10) Vamp: C, the number of" in words


# bad input

BAD = """
train --epoch 2 | unknown option --epoch; did you mean --epochs?
train --epochs two | invalid int value: 'two'
train --objective.beta -1 | `beta` of ELBO must be a finite number >= 0
train --beta 2 | unknown option --beta; did you mean --objective.beta?
train --hidden 9 | --encoder.hidden or --decoder.hidden?
train --objective IWAE --objective.beta 2 | IWAE has no option --objective.beta, which is one of ELBO
train --objective IWAE --annealing Linear | IWAE cannot be annealed; leave out --annealing, or choose
train --prior Flow --latent_dim 1 | for one dimension use MixtureOfGaussians
train --prior Flwo | there is no prior 'Flwo'; did you mean Flow? Choose from DiagonalNormal, Flow
train --prior Vamp --prior.num_components 2000 | choose fewer num_components
train --encoder.hidden 20 2.5 | --encoder.hidden takes N N ..., but received '20 2.5'
train --batch_size 0 | `batch_size` of Training must be an integer >= 1
train --posterior.max_log_variance inf | --posterior.max_log_variance takes NUMBER, but received 'inf'
train --likelihood Gaussian --likelihood.learn_scale maybe | takes true|false, but received 'maybe'
train --likelihood .Cauchy | --likelihood .Cauchy cannot be imported
train --prior pyrovae.priors.Prior | abstract class Prior
train --data minst | mnist
train --data mnist --data.root empty --data.download false | PYROVAE_DATA
train --data.transform Binarize | invalid choice: 'Binarize'
train --data.transform Grey | binarize them
train --likelihood.scale 2 | Bernoulli has no option --likelihood.scale, which is one of Gaussian
train --latent_dim 1000000000000 | not enough memory
train --device abacus | the device 'abacus' cannot be used here
train --config nothing.json | nothing.json cannot be read
train --resume nothing | nothing is not a run folder
train stray | unknown argument 'stray'
evaluate nothing | nothing is not a run folder
compare a b --output x.xlsx | --output ends in one of .txt, .md, .tex, .csv, .json, .html, but received x.xlsx
evaluate | RUN
fly | there is no command 'fly'; choose from train, evaluate, compare, generate
sweep --epochs 1 | needs several values of an option, such as --latent_dim 2 8 32
sweep --latent_dim 2 two | invalid int value: 'two'
sweep --latent 2 8 | unknown option --latent; did you mean --latent_dim?
sweep stray | unknown argument 'stray'
sweep --folder a b --latent_dim 2 8 | all runs of a sweep have the same --folder, but received 2 values
sweep --latent_dim 2 8 --ks 2 3 | each K must divide the next
sweep --latent_dim 2 8 --num_data 0 | `n` of first must be an integer >= 1
sweep --objective.beta 1 -1 | `beta` of ELBO must be a finite number >= 0
sweep --prior StandardNormal Flow --latent_dim 1 2 | `latent_dim` of a Flow must be >= 2
sweep --batch_size 1 2 3 4 5 6 --epochs 1 2 3 4 5 6 --seed 1 2 3 4 5 6 | at most 200 runs, but these options make 216
""".strip().splitlines()


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, text = case.split(" | ")
    assert text in fails(capsys, *words.split())
    assert not Path("runs").exists(), "a command that failed leaves nothing behind"


def test_data_that_a_likelihood_cannot_score(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("normal.npz", x=np.random.default_rng(0).normal(size=(50, 3)))
    np.savez("counts.npz", x=np.random.default_rng(0).poisson(300.0, size=(60, 3)))
    for name, likelihood, text in (
        ("normal", "Bernoulli", "[0, 1]"),
        ("normal", "Poisson", "such as Gaussian"),
        ("counts", "Categorical", "needs the number of levels"),
    ):
        assert text in fails(capsys, "train", "--data", f"{name}.npz", "--likelihood", likelihood)


@pytest.mark.usefixtures("run")
def test_bad_evaluations_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    for words, text in (
        ("evaluate run --ks 0", "whole numbers of at least 1, but received (0,)"),
        ("evaluate run --ks 1 10 25", "each K must divide the next and be smaller"),
        (f"evaluate run --ks {10**13}", "needs about"),
        ("evaluate run --num_data 0", "`n` of first must be an integer >= 1"),
        ("evaluate run --engine fast", "'fast'"),
        ("generate run --num 0", "`num` of samples must be an integer >= 1"),
        (f"generate run --num {10**13}", "needs about"),
        ("generate run --out no/such/folder.npy", "cannot be written"),
        ("generate run --out x.gif", "a .png or a .npy"),
        (f"train --folder file/run {' '.join(QUICK)}", "cannot be written"),
        (f"train --folder run {' '.join(QUICK)}", "holds a run already"),
        ("train --resume run --folder other", "--resume continues in the folder of the run"),
    ):
        assert text in fails(capsys, *words.split())
    before = sorted(Path("run").iterdir())
    with RunFolder("run").lock("evaluated"):
        assert "the run run is being evaluated by another process" in fails(capsys, "evaluate", "run")
    assert sorted(Path("run").iterdir()) == before


def test_a_refused_resume_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for other in ("--encoder.hidden 50", "--posterior.max_log_variance 0", "--learning_rate 1", "--objective.beta 2"):
        line = fails(capsys, "train", "--resume", "run", "--epochs", "3", *other.split())
        assert "another model" in line or "resume with the same settings" in line
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert main(["train", "--resume", "run", "--epochs", "3"]) == 0
    config = json.loads(RunFolder(run).read("config.json"))
    config["command"]["hidden"] = [16]  # an option of an older version
    RunFolder(run).write({"config.json": json.dumps(config).encode()})
    assert "in the run: unknown option --hidden; did you mean" in fails(capsys, "train", "--resume", "run")


# options of a file


def test_every_option_of_a_part_comes_back_from_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--likelihood", "StudentT", "--likelihood.df", "3", "--likelihood.learn_scale", "true"]
    words += ["--prior", "Flow", "--prior.hidden", "9", "8", "--posterior", "IAF", "--posterior.num_context", "1"]
    words += ["--encoder", "GatedMLPEncoder", "--encoder.hidden", "20", "20", "--decoder.hidden"]
    words += ["--objective.free_bits", "0.1", "--annealing", "Linear", "--annealing.num_steps", "5"]
    words += ["--learning-rate", "0.01"]

    def config(*more: str) -> dict[str, object]:
        return json.loads(printed(capsys, "train", *more, "--print_config"))

    first = config(*words, "--folder", "run", *TINY)
    assert (first["encoder.hidden"], first["decoder.hidden"]) == (["20", "20"], [])
    assert not first.keys() & {"allow", "resume"}
    Path("c.json").write_text(json.dumps(first))
    assert config("--config", "c.json") == first
    assert config("--config", "c.json", "--encoder.hidden", "7") == first | {"encoder.hidden": ["7"]}
    assert main(["train", "--config", "c.json"]) == 0
    assert config("--config", "run/config.json") == first
    assert config("--resume", "run") == first | {"folder": None}
    Path("e.json").write_text('{"epochs": 7, "batch_size": 50}')
    merged = config("--resume", "run", "--config", "e.json", "--batch_size", "9")
    assert (merged["epochs"], merged["batch_size"]) == (7, 9), "the file overrides the run, the command line the file"
    vae = pyrovae.load("run").vae
    networks = (vae.encoder.init_arguments["hidden"], vae.decoder.init_arguments["hidden"])
    assert (networks, vae.likelihood.df) == (((20, 20), ()), 3)
    assert vae.likelihood.log_scale.requires_grad
    annealing = {"class": "Linear", "num_steps": 5, "start": 0.0}
    objective = {"class": "ELBO", "beta": 1.0, "free_bits": 0.1, "annealing": annealing, "num_particles": 1}
    assert pyrovae.load("run").config["objective"] == objective
    assert main(["train", "--config", "run/config.json", "--folder", "again"]) == 0
    assert elbos("run") == elbos("again")


@pytest.mark.usefixtures("run", "_no_pictures")
def test_a_configuration_has_every_kind_of_option(capsys: pytest.CaptureFixture[str]) -> None:
    for draws, text in ((True, "binary"), (False, "means")):
        Path("g.json").write_text(json.dumps({"draws": draws, "num": 3}))
        assert main(["generate", "run", "--config", "g.json", "--out", "x.npy"]) == 0
        assert (len(np.unique(np.load("x.npy"))) <= 2) == draws, text
    Path("k.json").write_text(json.dumps({"ks": [1, 4], "data.download": True}))
    assert main(["evaluate", "--config", "k.json", "--checks", "false", "run", "--num_data", "5"]) == 0
    assert "L_4 " in capsys.readouterr().out
    given = {"data.root": "--resume", "folder": "-f", "data": "--", "data.seed": -3, "final_learning_rate": None}
    Path("c.json").write_text(json.dumps(given))
    words = ("train", "--config", "c.json", "--data.root=--other-root", "--print_config")
    options = json.loads(printed(capsys, *words))
    assert options.items() >= (given | {"data.root": "--other-root"}).items(), "values that look like options"


SMUGGLED = [  # options of a file, and the error
    ({"ks": [1, "--seed=9"]}, "--ks takes K ..., but received [1, '--seed=9']"),
    ({"ks": [[1, 2], 4]}, "--ks takes K ..., but received [[1, 2], 4]"),
    ({"ks": []}, "--ks takes K ..., but received []"),
    ({"seed": {"--seed": 1}}, "--seed takes N, but received {'--seed': 1}"),
    ({"seed": "-x"}, "--seed takes N, but received '-x'"),
    ({"split": "--data"}, "--split is one of train, validation, test, but received '--data'"),
    ({"overwrite": "false"}, "--overwrite is given on the command line only"),
    ({"kz": 3}, "unknown option --kz; did you mean --ks?"),
    ({"seed=1": 2}, "unknown option --seed"),
    ({"run": "elsewhere"}, "unknown option --run"),
    ({"allow": ["os"]}, "--allow is given on the command line only"),
]


@pytest.mark.parametrize(("options", "text"), SMUGGLED, ids=[json.dumps(options) for options, _ in SMUGGLED])
def test_values_of_a_file_are_not_read_as_options(
    options: dict[str, object], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.json").write_text(json.dumps(options))
    assert f"in c.json: {text}" in fails(capsys, "evaluate", "nothing", "--config", "c.json")


# classes of the user

OWN = '''
"""A user's likelihood with few annotations."""

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


class Unreadable(StudentT):
    def __init__(self, x_shape, *, spread: "Spread" = 1.0):
        super().__init__(x_shape, spread=spread)
'''


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a user's module in the working directory, which is not on the import path yet."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    name = f"mine_{abs(hash(os.getcwd()))}"
    Path(f"{name}.py").write_text(OWN)
    importlib.invalidate_caches()
    return name


def test_own_class_is_imported_only_if_it_is_typed_or_allowed(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--likelihood", f"{own}.StudentT", "--likelihood.spread", "0.3", "--likelihood.steep", "true"]
    assert main(["train", "--folder", "run", *TINY, *HIDDEN, *chosen]) == 0
    assert f"next: pyrovae evaluate run --allow {own}\n" in capsys.readouterr().out
    for words in (
        ["train", "--resume", "run", "--epochs", "2"],
        ["train", "--config", "run/config.json", "--folder", "again"],
        ["evaluate", "run", *BOUNDS],
        ["generate", "run", "--out", "x.npy"],
    ):
        del sys.modules[own]
        sys.path.remove(os.getcwd())
        line = fails(capsys, *words)
        assert f"add --allow {own}" in line or f"or --allow {own}" in line
        assert "--allow" in fails(capsys, *words, "--allow", "another")
        assert own not in sys.modules
        assert main([*words, "--allow", own]) == 0
    run = pyrovae.load("run", allow=[own])
    assert type(run.vae.likelihood).__name__ == "StudentT"
    assert (run.vae.likelihood.spread, run.vae.likelihood.df, len(run.history.epochs)) == (0.3, 9.0, 2)


def test_typing_another_class_takes_the_place_of_one_in_a_file(own: str) -> None:
    Path("c.json").write_text(json.dumps({"likelihood": f"{own}.StudentT"}))
    assert main(["train", "--folder", "run", *TINY, *HIDDEN, "--config", "c.json", "--likelihood", "Bernoulli"]) == 0
    assert own not in sys.modules
    assert isinstance(pyrovae.load("run").vae.likelihood, pyrovae.likelihoods.Bernoulli)
    Path("c.json").write_text(json.dumps({"likelihood": "pyrovae.likelihoods.Laplace"}))
    assert main(["train", "--folder", "path", *TINY, *HIDDEN, "--config", "c.json"]) == 0


def test_own_class_in_the_help(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "train", "--help", "--likelihood", f"{own}.StudentT")
    assert max(map(len, text.splitlines())) <= 100
    section = " ".join(text[text.index("\nlikelihood:") : text.index("\nprior:")].split())
    assert f"{own}.StudentT: Independent elements with heavy tails, 100% mine Bernoulli: Independent" in section
    assert f"--likelihood.spread NUMBER {own}.StudentT: half the width that holds 58% of x (default: 1.0)" in section
    assert f"--likelihood.steep [true|false] {own}.StudentT: whether tails are lighter (default: false)" in section
    assert f"{own}.StudentT: has no effect (default: 3) Gaussian: standard deviation" in section


def test_bad_classes_of_the_user_are_one_line(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("raising.py").write_text("raise RuntimeError('first\\nsecond')")
    Path("ending.py").write_text("exit(7)")
    importlib.invalidate_caches()
    mine = f"--likelihood {own}.StudentT"
    for words, text in (
        (f"{mine} --likelihood.spread wide", "--likelihood.spread takes NUMBER, but received 'wide'"),
        (f"{mine} --likelihood.spraed 2", "did you mean --likelihood.spread?"),
        (f"{mine} --likelihood.scale 0.5", "--likelihood.scale takes N, but received '0.5'"),
        (f"{mine} --likelihood.df 3", f"{own}.StudentT has no option --likelihood.df"),
        (f"--prior {own}.StudentT", "is not a prior: derive the class from pyrovae.priors.Prior"),
        (f"--likelihood {own}.Unreadable", "cannot be imported: NameError: name 'Spread'"),
        (f"--likelihood {own}.Nothing", "cannot be imported: AttributeError"),
        ("--likelihood raising.Part", "raising.Part cannot be imported: RuntimeError: first second"),
        ("--likelihood ending.Part", "ending.Part cannot be imported: SystemExit: 7"),
    ):
        assert text in fails(capsys, "train", *words.split())


# files that are not ours

DAMAGES = {  # file, keys, value, and the text of the error
    "manifest.json | files | []": "`files` of manifest.json must be a dict",
    "config.json | versions.torch | 3": "`versions.torch` of config.json must be a string",
    "metrics.jsonl | elbo | 1e400": "metrics.jsonl, line 1, must be JSON, but it holds 1e400",
    f"metrics.jsonl | elbo | 1{'0' * 400}": "`elbo` of metrics.jsonl, line 1, must be at most",
    "metrics.jsonl | validation | 7": "`validation` of metrics.jsonl, line 1, must be a dict",
    "model.json | class | 3": "model.json of the run run cannot be used: AttributeError",
    "model.json | class | pyrovae.__main__.Part": "pyrovae.__main__.Part, which this version of pyrovae does not have",
    "model.json | class | torch.nn.modules.linear.Identity": "model.json describes a Identity",
    "model.json | arguments.prior | []": "model.json of the run run cannot be used: the model cannot be made",
    "model.json | arguments.prior.same | []": "model.json of the run run cannot be used: TypeError",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_file_that_differs_from_its_schema_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Every file has a valid hash: it was written so by somebody else."""
    name, keys, value = case.split(" | ")
    first, *lines = (run / name).read_text().splitlines() if name == "metrics.jsonl" else [(run / name).read_text()]
    tree = part = json.loads(first)
    *path, last = re.split(r"\.(?!json)", keys)
    for key in path:
        part = part[key]
    part[last] = "VALUE"
    value = f'"{value}"' if "." in value and value[0].isalpha() else value
    text = json.dumps(tree).replace('"VALUE"', value)
    replace_file(run, name, "\n".join([text, *lines]).encode())
    assert DAMAGES[case] in fails(capsys, "generate", "run")
    fails(capsys, "train", "--resume", "run", "--epochs", "3")


def replace_file(run: Path, name: str, content: bytes) -> None:
    """Replace a file of a run, with its hash in the manifest."""
    if name == MANIFEST:
        (run / name).write_bytes(content)
    else:
        RunFolder(run).write({name: content})


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "trainer.pt", "metrics.jsonl"])
@pytest.mark.parametrize(
    "put", [Path.mkdir, os.mkfifo, b"[" * 100_000, bytes(range(256))], ids=["directory", "pipe", "nested", "bytes"]
)
def test_anything_in_the_place_of_a_file_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, put: Callable[[Path], None] | bytes
) -> None:
    if isinstance(put, bytes):
        replace_file(run, name, put)
    else:
        (run / name).unlink()
        put(run / name)
    for words in (["evaluate", "run"], ["generate", "run"], ["train", "--resume", "run"], ["compare", "run", "run/.."]):
        assert (name if words[0] != "compare" else "run") in fails(capsys, *words)


def test_a_lower_learning_rate_resumes_a_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["train", "--resume", "run", "--epochs", "3", "--learning_rate", "1e-5", "--clip_norm", "1"]) == 0
    assert "resumes with learning_rate = 1e-05 instead of 0.001" in caplog.text
    assert [epoch.learning_rate for epoch in pyrovae.load(run).history.epochs] == [1e-3, 1e-3, 1e-5]
    assert main(["train", "--resume", "run", "--epochs", "4"]) == 0, "the new rate is that of the run"
