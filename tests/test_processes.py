"""Training in several processes: averaged gradients, noise of their own, one run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from conftest import pair_from, standard_normal
from test_capture import data, normalized

from pyrovae.data import transforms
from pyrovae.results import Evaluation
from pyrovae.runtime.distributed import Group, group, init_distributed
from pyrovae.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]


def torchrun(number: int, *words: str, folder: Path, expected: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program in so many processes, or without torchrun in one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"] if number > 1 else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, *launcher, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode == 0) == (expected == 0), done.stderr
    return done


SCRIPT = """
import logging
import sys
import torch
import pyro
sys.path.insert(0, {tests!r})
torch.set_default_dtype(torch.float64)
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from test_capture import data
from test_processes import PROGRAMS
import pyrovae.training.step
from pyrovae import Training, evaluate, fit
from pyrovae.runtime.distributed import init_distributed
from pyrovae.data import loader

pyrovae.training.step.has_compiler = lambda: False
found = {{}}
with init_distributed("cpu") as group:
    for name in {names!r}:
        for engine in ("eager", "captured"):
            loader.RESIDENT_SHARE = 0.0 if group.size > 1 and engine == "eager" else 0.5
            pyro.clear_param_store()
            torch.manual_seed(1 + group.rank)  # processes start at the values of the first one
            model, guide, modules, dataset = PROGRAMS[name]()
            torch.manual_seed(1)
            training = Training(epochs={epochs}, batch_size=13, device="cpu", engine=engine, clip_norm=5.0)
            history = fit(model, guide, dataset, training=training, show_progress=False)
            epochs = [[e.objective, e.reconstruction, e.kl, *e.validation.values()] for e in history.epochs]
            weights = [value.detach().flatten() for module in modules for value in module.parameters()]
            found[name + " " + engine] = (torch.tensor(epochs), torch.cat(weights))
    evaluation = evaluate(model, guide, dataset, ks=(1, 10), batch_size=3, show_progress=False)
    found["evaluation"] = (evaluation.per_datum["L_10"], evaluation.per_datum["ELBO"])
    if group.first:
        torch.save(found, {out!r})
"""


def without_noise() -> tuple[Any, ...]:
    """Return programs whose loss has no noise: the guide is as narrow as a point."""
    net, decoder = torch.nn.Linear(64, 2), torch.nn.Linear(2, 64)
    programs = pair_from(
        standard_normal(2),
        lambda z, x: dist.Normal(decoder(z).unflatten(-1, x.shape[1:]), 1.0).to_event(3),
        lambda x: dist.Normal(net(x.flatten(1)), 1e-14).to_event(1),
    )
    return *programs, [net, decoder], data(85).with_transform(transforms.Threshold())


def with_dropout() -> tuple[Any, ...]:
    return *normalized(torch.nn.Identity()), data(85)


PROGRAMS = {"without noise": without_noise, "dropout": with_dropout}


def trained_in(number: int, name: str, folder: Path, *, epochs: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    out, script = folder / f"{number}.pt", folder / f"{number}.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), names=[name], epochs=epochs, out=str(out)))
    torchrun(number, str(script), folder=folder)
    return torch.load(out, weights_only=True)


def test_processes_average_the_gradients_of_their_rows(tmp_path: Path) -> None:
    """53 data in minibatches of 13: processes have unequal parts, and one has none of the last row."""
    alone, together = (trained_in(number, "without noise", tmp_path, epochs=3) for number in (1, 2))
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        for a, b in zip(values, together[name], strict=True):
            assert (a - b).norm() < 1e-10 * a.norm(), name


@pytest.mark.slow
def test_processes_draw_noise_of_their_own(tmp_path: Path) -> None:
    """Binarization, dropout and z differ from those of one process, and the bounds agree within their noise."""
    alone, together = (trained_in(number, "dropout", tmp_path, epochs=60) for number in (1, 2))
    for engine in ("eager", "captured"):
        (one, weights), (two, others) = alone[f"dropout {engine}"], together[f"dropout {engine}"]
        assert (weights - others).abs().max() > 1e-3
        late_one, late_two = one[30:, 0], two[30:, 0]
        error = (late_one.var() / 30 + late_two.var() / 30).sqrt()
        assert (late_one.mean() - late_two.mean()).abs() < 4 * error


def history_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(folder).read("metrics.jsonl").splitlines()]


@pytest.mark.slow
def test_the_command_line_trains_and_evaluates_in_two_processes(tmp_path: Path) -> None:
    """One run folder, one output, and the run is resumed in another number of processes."""
    words = ("-m", "pyrovae", "train", "--device", "cpu", "--latent_dim", "2", "--encoder.hidden", "8")
    torchrun(1, *words, "--epochs", "3", "--folder", "one", folder=tmp_path)
    torchrun(2, *words, "--epochs", "2", "--folder", "two", folder=tmp_path)
    together = torchrun(2, "-m", "pyrovae", "train", "--resume", "two", "--epochs", "3", folder=tmp_path)
    assert together.stdout.count("next: pyrovae evaluate") == 1
    assert "in each of 2 processes" in together.stdout
    epochs, again = (history_of(tmp_path / name) for name in ("one", "two"))
    assert [epoch["epoch"] for epoch in again] == [1, 2, 3]
    assert again[-1]["validation"]["elbo"] == pytest.approx(epochs[-1]["validation"]["elbo"], abs=2.0)
    options = ("--ks", "1", "5", "--checks", "false", "--num_data", "30", "--batch_size", "4", "--device", "cpu")
    options = ("-m", "pyrovae", "evaluate", "one", *options, "--report", "report")
    evaluations = []
    for number in (1, 2):
        said = torchrun(number, *options, "--overwrite", folder=tmp_path).stdout
        assert said.count("nats per datum, larger is better") == 1
        text = (tmp_path / "one" / "report" / "evaluation.json").read_text()
        evaluations.append(Evaluation.from_json(text))
    assert evaluations[0].iwae == evaluations[1].iwae
    assert evaluations[0].elbo == evaluations[1].elbo
    assert torchrun(2, *options, folder=tmp_path).stdout.count("--overwrite evaluates anew") == 1


@pytest.mark.slow
def test_an_error_is_printed_once(tmp_path: Path) -> None:
    RunFolder(tmp_path / "taken").write({"trainer.pt": b""})
    words = ("-m", "pyrovae", "train", "--device", "cpu", "--epochs", "1", "--latent_dim", "2", "--folder", "taken")
    done = torchrun(2, *words, folder=tmp_path, expected=1)
    assert done.stderr.count("pyrovae: error: taken holds a run already") == 1


def test_shares_cover_a_minibatch() -> None:
    for size, count in ((2, 7), (3, 7), (4, 3), (5, 1)):
        shares = [Group(rank, size).local_shard(count) for rank in range(size)]
        counted = [row for rows, share in shares if share for row in range(count)[rows]]
        assert counted == list(range(count))
        assert sum(share for _, share in shares) == pytest.approx(1.0)
        assert all(range(count)[rows] for rows, _ in shares)


def test_alone_nothing_is_shared() -> None:
    assert group() == Group(0, 1)
    with init_distributed("cpu") as found:
        assert found == Group(0, 1)
        assert found.gather("x") == ["x"]
        assert found.from_first(lambda: 3) == found.main_process_first(lambda: 3) == 3
        assert found.sum([torch.ones(2)])[0].tolist() == [1.0, 1.0]
