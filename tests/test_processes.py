"""Several processes: the numbers of one, one run folder, one voice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrovae.results import Evaluation
from pyrovae.runtime.distributed import Group, Shard, group, init_distributed
from pyrovae.training.run_folder import RunFolder
from pyrovae.training.shared_noise import FEW, MORE, OWN, SharedNoise, row_axes
from pyrovae.training.state import from_bytes

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


LIBRARY = """
import sys
import torch
import pyro
import pyro.distributions as dist
sys.path.insert(0, {tests!r})
torch.set_default_dtype(torch.float64)
import logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from test_capture import PAIRS, data
from pyrovae import Training, evaluate, fit
from pyrovae.runtime.distributed import init_distributed
from pyrovae.training import placement

found = {{}}
with init_distributed("cpu") as group:
    for name in {names!r}:
        prefetched = group.size > 1 and name == "VAE, dropout"
        placement.RESIDENT_SHARE = 0.0 if prefetched else 0.5
        for engine in ("eager", "captured"):
            import pyrovae.training.recorded
            pyrovae.training.recorded.has_compiler = lambda: False
            pyro.clear_param_store()
            torch.manual_seed(1 + group.rank)  # what differs at the start is that of the first process
            make, objective = PAIRS[name]
            model, guide, modules = make()
            torch.manual_seed(1)
            training = Training(epochs=3, batch_size=13, device="cpu", engine=engine, clip_norm=5.0)
            history = fit(model, guide, data(85), objective=objective(), training=training, shown=False)
            epochs = [[e.objective, e.reconstruction, e.kl, *e.validation.values()] for e in history.epochs]
            weights = [value.detach().flatten() for module in modules for value in module.parameters()]
            weights += [value.detach().flatten() for _, value in sorted(pyro.get_param_store().named_parameters())]
            found[name + " " + engine] = (torch.tensor(epochs), torch.cat(weights))
    evaluation = evaluate(model, guide, data(85), ks=(1, 10), batch_size=3, shown=False)
    found["evaluation"] = (evaluation.per_datum["L_10"], evaluation.per_datum["ELBO"])
    if group.first:
        torch.save(found, {out!r})
"""


def test_the_library_gives_the_numbers_of_one_process(tmp_path: Path) -> None:
    """53 data in minibatches of 13: odd numbers, so that processes have unequal parts; one has none of the last row."""
    names = ["VAE, dropout", "pyro.param", "two layers", "DReG"]
    results = []
    for number in (1, 2):
        out = tmp_path / f"{number}.pt"
        script = tmp_path / f"{number}.py"
        script.write_text(LIBRARY.format(tests=str(ROOT / "tests"), names=names, out=str(out)))
        torchrun(number, str(script), folder=tmp_path)
        results.append(torch.load(out, weights_only=True))
    alone, together = results
    assert alone.keys() == together.keys()
    for name, values in alone.items():
        for a, b in zip(values, together[name], strict=True):
            assert (a - b).norm() < 1e-10 * a.norm(), name


def run_of(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    run = RunFolder(folder)
    epochs = [json.loads(line) for line in run.read("metrics.jsonl").splitlines()]
    return from_bytes(run.read("model.safetensors")), [{**epoch, "seconds": 0.0} for epoch in epochs]


@pytest.mark.slow
def test_the_command_line_trains_and_evaluates_in_two_processes(tmp_path: Path) -> None:
    """One run folder, one voice, the numbers of one process, and the run is taken up in another number of processes."""
    words = ("-m", "pyrovae", "train", "--device", "cpu", "--latent_dim", "2", "--encoder.hidden", "8")
    alone = torchrun(1, *words, "--epochs", "3", "--folder", "one", folder=tmp_path)
    torchrun(2, *words, "--epochs", "2", "--folder", "two", folder=tmp_path)
    together = torchrun(2, "-m", "pyrovae", "train", "--resume", "two", "--epochs", "3", folder=tmp_path)
    assert together.stdout.count("next: pyrovae evaluate") == 1
    assert "in each of 2 processes" in together.stdout
    assert together.stderr.count("training: ") <= alone.stderr.count("training: ") + 1
    (weights, epochs), (others, again) = run_of(tmp_path / "one"), run_of(tmp_path / "two")
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5)
    for one, two in zip(epochs, again, strict=True):
        assert two["elbo"] == pytest.approx(one["elbo"], rel=1e-5)
        assert two["validation"]["elbo"] == pytest.approx(one["validation"]["elbo"], rel=1e-5)
    options = ("--ks", "1", "5", "--checks", "false", "--num_data", "30", "--batch_size", "4", "--device", "cpu")
    options = ("-m", "pyrovae", "evaluate", "one", *options, "--report", "report")
    evaluations = []
    for number in (1, 2):
        said = torchrun(number, *options, "--overwrite", folder=tmp_path).stdout
        assert said.count("nats per datum") == 1
        text = (tmp_path / "one" / "report" / "evaluation.json").read_text()
        evaluations.append(Evaluation.from_json(text))
    assert evaluations[0].iwae == evaluations[1].iwae
    assert evaluations[0].elbo == evaluations[1].elbo
    assert torchrun(2, *options, folder=tmp_path).stdout.count("--overwrite evaluates anew") == 1


def test_an_error_is_said_once(tmp_path: Path) -> None:
    RunFolder(tmp_path / "taken").write({"trainer.pt": b""})
    words = ("-m", "pyrovae", "train", "--device", "cpu", "--epochs", "1", "--latent_dim", "2", "--folder", "taken")
    done = torchrun(2, *words, folder=tmp_path, expected=1)
    assert done.stderr.count("pyrovae: error: taken holds a run already") == 1


def test_shares_cover_a_minibatch() -> None:
    for size, count in ((2, 7), (3, 7), (4, 3), (5, 1)):
        shares = [Group(rank, size).local_shard(count) for rank in range(size)]
        counted = [row for share in shares if share.weight for row in range(share.start, share.stop)]
        assert counted == list(range(count))
        assert sum(share.weight for share in shares) == pytest.approx(1.0)
        assert all(share.count >= 1 for share in shares)


def test_alone_nothing_is_shared() -> None:
    assert group() == Group(0, 1)
    with init_distributed("cpu") as found:
        assert found == Group(0, 1)
        assert found.gather("x") == ["x"]
        assert found.from_first(lambda: 3) == found.main_process_first(lambda: 3) == 3
        assert found.sum([torch.ones(2)])[0].tolist() == [1.0, 1.0]


def draws(count: int) -> list[torch.Tensor]:
    """Draw noise of rows in several places and ways, and some that is none of rows."""
    x = torch.zeros(count, 3)
    return [
        torch.rand(count, 2),
        torch.randn(4, count, 2),
        torch.empty_like(x).normal_(),
        torch.nn.functional.dropout(x + 1, 0.5),
        torch.randn_like(x.T),
        torch.rand(3, 2),
        torch.empty_like(x).bernoulli_(0.3),
    ]


def test_shares_of_noise_are_rows_of_the_whole() -> None:
    axes = row_axes(draws, torch.device("cpu"))
    assert axes == [0, 1, 0, 0, 1, None, 0]
    torch.manual_seed(3)
    whole = draws(9)
    for share in (Shard(0, 4, 9, 4 / 9), Shard(4, 9, 9, 5 / 9)):
        torch.manual_seed(3)
        with SharedNoise(axes, share, rank=0):
            part = draws(share.count)
        for a, b, axis in zip(part, whole, axes, strict=True):
            assert torch.equal(a, b if axis is None else b.narrow(axis, share.start, share.count))


def test_noise_that_cannot_be_shared_is_each_process_s_own(caplog: pytest.LogCaptureFixture) -> None:
    """Draws whose law depends on data leave the stream that all share where it was."""

    def run(count: int) -> list[torch.Tensor]:
        return [torch.rand(count), torch.poisson(torch.full((count,), 50.0)), torch.rand(count)]

    axes = row_axes(run, torch.device("cpu"))
    assert axes == [0, OWN, 0]
    assert "poisson of shape (5,)" in caplog.text
    found = []
    for rank in (0, 1):
        torch.manual_seed(3)
        with SharedNoise(axes, Group(rank, 2).local_shard(8), rank):
            found.append(run(4))
    assert not torch.equal(found[0][1], found[1][1])
    torch.manual_seed(3)
    first = torch.rand(8)
    assert torch.equal(torch.cat([found[0][0], found[1][0]]), first)
    assert torch.cat([found[0][2], found[1][2]]).unique().numel() == 8


def test_dropout_of_a_gpu_is_one_of_these(caplog: pytest.LogCaptureFixture) -> None:
    """There it is one operation, which returns its mask beside its result."""
    axes = row_axes(lambda count: torch.native_dropout(torch.ones(count, 3), 0.5, True), torch.device("cpu"))  # noqa: FBT003
    assert axes == [OWN]
    assert "noise of its own for native_dropout of shape (5, 3)" in caplog.text


def test_what_only_the_first_run_draws_is_not_shared() -> None:
    """As with the number of plates, which an objective of Pyro's may find out by a run of its own."""
    begun = []

    def run(count: int) -> list[torch.Tensor]:
        begun.append(count)
        return [torch.rand(count), *([torch.rand(3)] if len(begun) == 1 else [])]

    assert row_axes(run, torch.device("cpu")) == [0]


def test_draws_that_change_with_the_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{FEW} for {FEW} rows and {MORE} for {MORE}; train in one process"):
        row_axes(lambda count: [torch.rand(1) for _ in range(count)], torch.device("cpu"))
