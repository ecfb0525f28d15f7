"""An interrupted evaluation goes on where it was, to the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ModelGuide, linear_gaussian, make_vae, pair_of

from pyrovae import Checks
from pyrovae.evaluation import batch_scoring as evaluation
from pyrovae.evaluation import checks, evaluate
from pyrovae.evaluation.resume import Journal
from pyrovae.results import Estimate, Evaluation
from pyrovae.results.record import tensors_of

pytestmark = pytest.mark.usefixtures("quick_gaps")


Problem = tuple[ModelGuide, torch.Tensor]
NAMES = ("ais", "bdmc", "gaps", "latents")
FEW = Checks(
    num_annealed=6, num_simulated=5, num_refined=4, num_encoded=8, refit_epochs=1, num_chains=4, num_temperatures=3
)


@pytest.fixture
def problem() -> Problem:
    truth = linear_gaussian()
    return pair_of(truth, widen=1.3), truth.sample(22)


def run(problem: Problem, journal: Path | Journal | None, **options: Any) -> Evaluation:
    (model, guide), x = problem
    return evaluate(model, guide, x, ks=(1, 10), batch_size=4, journal=journal, show_progress=False, **options)


def require_same(one: Evaluation, other: Evaluation) -> None:
    """Require two evaluations to agree to the byte, but for their dates."""
    assert one.to_json().replace(one.date, "") == other.to_json().replace(other.date, "")
    here, there = tensors_of(one), tensors_of(other)
    assert list(here) == list(there)
    for name, value in here.items():
        assert value.dtype == there[name].dtype
        assert torch.equal(value.nan_to_num(-9.0), there[name].nan_to_num(-9.0))


@contextmanager
def counted(*, at: str | int | None = None) -> Iterator[list[str | int]]:
    """Yield a list that the number of each batch and the name of each check is added to as it starts.

    The batch or check that is given is interrupted.
    """
    started: list[str | int] = []

    def watched(name: str | None, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started.append(name or len(started) + 1)
            if started[-1] == at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "iter_particles", watched(None, evaluation.iter_particles))
        for name in NAMES:
            patch.setattr(checks, name, watched(name, getattr(checks, name)))
        yield started


def interrupted(problem: Problem, journal: Path, *, at: str | int, **options: Any) -> list[str | int]:
    """Interrupt an evaluation at a batch or check, and return the batches and checks that it started."""
    with counted(at=at) as started, pytest.raises(KeyboardInterrupt):
        run(problem, journal, **options)
    return started


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(problem: Problem, tmp_path: Path) -> None:
    journal = tmp_path / "folder" / "unfinished"
    interrupted(problem, journal, at=4)
    with counted() as started:
        found = run(problem, journal)
    assert len(started) == 3  # of six batches three were finished
    require_same(found, run(problem, None))
    assert not list(journal.parent.iterdir())


@pytest.mark.parametrize("change", ["seed", "data", "program", "weights", "damaged"])
def test_batches_of_another_evaluation_do_not_count(problem: Problem, change: str, tmp_path: Path) -> None:
    journal, vae = tmp_path / "unfinished", make_vae()
    if change == "weights":
        problem = (vae.model, vae.guide), torch.bernoulli(torch.full((22, 1, 8, 8), 0.5))
    interrupted(problem, journal, at=4)
    pair, x = problem
    if change == "weights":
        torch.nn.utils.vector_to_parameters(torch.randn(sum(p.numel() for p in vae.parameters())), vae.parameters())
    if change == "damaged":
        journal.write_bytes(journal.read_bytes()[:-40])
    other = {"data": (pair, x + 1), "program": (pair_of(linear_gaussian(), widen=1.2), x)}.get(change, problem)
    seed = 1 if change == "seed" else 0
    with counted() as started:
        found = run(other, journal, seed=seed)
    assert len(started) == 6
    require_same(found, run(other, None, seed=seed))


def test_finished_checks_are_not_run_again(problem: Problem, tmp_path: Path) -> None:
    """One evaluation is interrupted at the start of each check in turn."""
    journal = tmp_path / "unfinished"
    whole = run(problem, None, checks=FEW)
    assert not whole.checked.left_out
    for number, name in enumerate(NAMES):
        started = interrupted(problem, journal, at=name, checks=FEW)
        assert started == list(range(1, 7)) * (number == 0) + list(NAMES[max(number - 1, 0) : number + 1])
    require_same(run(problem, journal, checks=FEW), whole)
    assert not list(tmp_path.iterdir())


def test_checks_of_other_options_or_a_damaged_file_do_not_count(problem: Problem, tmp_path: Path) -> None:
    journal = tmp_path / "unfinished"
    interrupted(problem, journal, at="latents", checks=FEW)
    content = journal.read_bytes()
    more = replace(FEW, num_leapfrog=2)
    with counted() as started:
        found = run(problem, journal, checks=more)
    assert started == list(NAMES), "bounds do not depend on the checks"
    require_same(found, run(problem, None, checks=more))
    for position in (-3, content.index(b"acceptance"), 5):  # values, records, the length of the header
        journal.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 or None :])
        assert interrupted(problem, journal, at="ais", checks=FEW) == [*range(1, 7), "ais"]


def test_what_is_no_json_or_no_such_record_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "unfinished"
    journal = Journal(path, "key")
    journal.add({"ELBO": torch.zeros(2)})
    journal.save_record("good", Estimate("AIS", 4, -1.5, 0.1, None, "why"), asked={"n": 1})
    journal.save_record("bad", Estimate("AIS", 4, math.nan, None, None), asked={"n": 1})
    again = Journal(path, "key")
    assert again.load_record("good", Estimate, asked={"n": 1}) == Estimate("AIS", 4, -1.5, 0.1, None, "why")
    assert again.load_record("good", Estimate, asked={"n": 2}) is None
    assert again.load_record("good", Evaluation, asked={"n": 1}) is None
    assert again.load_record("bad", Estimate, asked={"n": 1}) is None
    assert Journal(path, "another key").load_record("good", Estimate, asked={"n": 1}) is None


def test_the_journal_of_a_caller_is_removed_by_the_caller(problem: Problem, tmp_path: Path) -> None:
    path = tmp_path / "unfinished"

    def fail() -> None:
        with Journal(path) as journal:
            run(problem, journal, checks=FEW)
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.exists()
    with counted() as started, Journal(path) as journal:
        again = run(problem, journal, checks=FEW)
        assert path.exists(), "until the block ends"
    assert started == []
    assert not path.exists()
    require_same(again, run(problem, None, checks=FEW))


def test_a_journal_that_cannot_be_written_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "folder" / "unfinished"
    path.parent.write_text("in the way")
    journal = Journal(path, "key")
    for value in (1.0, 2.0):
        journal.add({"ELBO": torch.full((2,), value)})
        journal.write()
    assert [record.message[:45] for record in caplog.records] == ["the progress of this evaluation cannot be sav"]
    journal.remove()
    path.parent.unlink()
    journal.write()
    assert [part["ELBO"].tolist() for part in Journal(path, "key").parts] == [[1.0, 1.0], [2.0, 2.0]]
    assert [file.name for file in path.parent.iterdir()] == ["unfinished"]
