"""An interrupted evaluation goes on where it was, to the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ModelGuide, linear_gaussian, make_vae, pair_of
from torch import nn

from pyrovae import Checks
from pyrovae.evaluation import batch_scoring as evaluation
from pyrovae.evaluation import checks, evaluate
from pyrovae.evaluation.resume import Journal
from pyrovae.results import Estimate, Evaluation
from pyrovae.results.record import tensors_of

pytestmark = pytest.mark.usefixtures("quick_gaps")


class Interrupted:
    """Stands in for the drawing of particles: counts the batches, and is interrupted at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int | None) -> None:
        self.count, self.at, self.blocks = 0, at, evaluation.iter_particles
        monkeypatch.setattr(evaluation, "iter_particles", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt
        return self.blocks(*args, **kwargs)


def interrupt(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], *, at: int) -> None:
    with monkeypatch.context() as patch:
        Interrupted(patch, at=at)
        with pytest.raises(KeyboardInterrupt):
            call()


@pytest.fixture
def problem() -> tuple[ModelGuide, torch.Tensor]:
    truth = linear_gaussian()
    return pair_of(truth, widen=1.3), truth.sample(22)


def run(problem: tuple[ModelGuide, torch.Tensor], journal: Path | None, *, seed: int = 0) -> Any:
    (model, guide), x = problem
    return evaluate(model, guide, x, ks=(1, 10), batch_size=4, seed=seed, journal=journal, show_progress=False)


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(
    problem: tuple[ModelGuide, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "folder" / "unfinished"
    whole = run(problem, None)
    interrupt(monkeypatch, lambda: run(problem, journal), at=4)
    assert journal.exists()
    with monkeypatch.context() as patch:
        rest = Interrupted(patch, at=None)
        again = run(problem, journal)
    assert rest.count == 3  # of six batches three were finished
    assert again.estimates == whole.estimates
    assert again.observed == whole.observed
    for name, value in whole.per_datum.items():
        torch.testing.assert_close(again.per_datum[name], value, rtol=0, atol=0, equal_nan=True)
    assert not list(journal.parent.iterdir())


def test_batches_of_another_evaluation_do_not_count(
    problem: tuple[ModelGuide, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "unfinished"
    interrupt(monkeypatch, lambda: run(problem, journal), at=4)
    content = journal.read_bytes()
    (model, guide), x = problem
    for other in ((problem, 1), (((model, guide), x + 1), 0)):
        journal.write_bytes(content)
        counted = Interrupted(monkeypatch, at=None)
        assert run(other[0], journal, seed=other[1]).estimates == run(other[0], None, seed=other[1]).estimates
        assert counted.count == 12
        monkeypatch.undo()
    journal.write_bytes(content[:-40])  # damaged
    assert run(problem, journal).estimates == run(problem, None).estimates


def test_weights_are_part_of_what_an_evaluation_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()
    x = torch.bernoulli(torch.full((8, 1, 8, 8), 0.5))
    journal = tmp_path / "unfinished"

    def evaluated() -> Any:
        return evaluate(vae.model, vae.guide, x, ks=(1, 5), batch_size=2, journal=journal, show_progress=False)

    interrupt(monkeypatch, evaluated, at=3)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Linear):
                module.bias.add_(0.1)
    counted = Interrupted(monkeypatch, at=None)
    evaluated()
    assert counted.count == 4


def test_programs_may_differ_where_their_weights_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = tmp_path / "unfinished"
    truth = linear_gaussian()
    x = truth.sample(22)
    interrupt(monkeypatch, lambda: run((pair_of(truth, widen=1.3), x), journal), at=4)
    other = pair_of(truth, widen=1.2), x
    assert run(other, journal).estimates == run(other, None).estimates


FEW = Checks(
    num_annealed=6, num_simulated=5, num_refined=4, num_encoded=8, refit_epochs=1, num_chains=4, num_temperatures=3
)
NAMES = ("ais", "bdmc", "gaps", "latents")


def counted(patch: pytest.MonkeyPatch, *, at: str | None = None) -> list[str]:
    """Return a list in which each check that is started notes its name; the one named is interrupted."""
    started: list[str] = []

    def watched(name: str, check: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started.append(name)
            if name == at:
                raise KeyboardInterrupt
            return check(*args, **kwargs)

        return call

    for name in NAMES:
        patch.setattr(checks, name, watched(name, getattr(checks, name)))
    return started


def run_with_checks(problem: tuple[ModelGuide, torch.Tensor], journal: Path | None, asked: Checks = FEW) -> Evaluation:
    (model, guide), x = problem
    return evaluate(model, guide, x, ks=(1, 10), checks=asked, batch_size=4, journal=journal, show_progress=False)


def stop(problem: tuple[ModelGuide, torch.Tensor], journal: Path, patch: pytest.MonkeyPatch, *, at: str) -> None:
    """Run, and interrupt a check at its start."""
    with patch.context() as inside:
        counted(inside, at=at)
        with pytest.raises(KeyboardInterrupt):
            run_with_checks(problem, journal)


def require_same(one: Evaluation, other: Evaluation) -> None:
    """Require two evaluations to agree to the byte, but for their dates."""
    assert one.to_json().replace(one.date, "") == other.to_json().replace(other.date, "")
    here, there = tensors_of(one), tensors_of(other)
    assert list(here) == list(there)
    for name, value in here.items():
        assert value.dtype == there[name].dtype
        assert torch.equal(value.nan_to_num(-9.0), there[name].nan_to_num(-9.0))


def test_finished_checks_are_not_run_again(
    problem: tuple[ModelGuide, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each check in turn is interrupted at its start, once in one evaluation and once in an evaluation of its own."""
    journal = tmp_path / "unfinished"
    whole = run_with_checks(problem, None)
    assert not whole.checked.left_out
    for number, name in enumerate(NAMES):
        own = tmp_path / name
        stop(problem, own, monkeypatch, at=name)
        with monkeypatch.context() as patch:
            started, batches = counted(patch), Interrupted(patch, at=None)
            require_same(run_with_checks(problem, own), whole)
        assert started == list(NAMES[number:])
        assert batches.count == 0
        with monkeypatch.context() as patch:
            started = counted(patch, at=name)
            with pytest.raises(KeyboardInterrupt):
                run_with_checks(problem, journal)
        assert started == list(NAMES[max(number - 1, 0) : number + 1])
    require_same(run_with_checks(problem, journal), whole)
    assert not list(tmp_path.iterdir())


def test_checks_of_other_options_or_a_damaged_file_do_not_count(
    problem: tuple[ModelGuide, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journal = tmp_path / "unfinished"
    stop(problem, journal, monkeypatch, at="latents")
    content = journal.read_bytes()
    more = replace(FEW, num_leapfrog=2)
    with monkeypatch.context() as patch:
        started, batches = counted(patch), Interrupted(patch, at=None)
        found = run_with_checks(problem, journal, more)
    assert (started, batches.count) == (list(NAMES), 0), "bounds do not depend on the checks"
    require_same(found, run_with_checks(problem, None, more))
    whole = run_with_checks(problem, None)
    for position in (-3, content.index(b"acceptance"), 5):  # values, records, the length of the header
        journal.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 or None :])
        with monkeypatch.context() as patch:
            started, batches = counted(patch), Interrupted(patch, at=None)
            require_same(run_with_checks(problem, journal), whole)
        assert (started, batches.count) == (list(NAMES), 6)


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


def test_the_journal_of_a_caller_is_removed_by_the_caller(
    problem: tuple[ModelGuide, torch.Tensor], tmp_path: Path
) -> None:
    (model, guide), x = problem
    path = tmp_path / "unfinished"

    def evaluated(journal: Journal) -> Evaluation:
        return evaluate(model, guide, x, ks=(1, 10), checks=FEW, batch_size=4, journal=journal, show_progress=False)

    def fail(journal: Journal) -> None:
        with journal:
            evaluated(journal)
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail(Journal(path))
    assert path.exists()
    with pytest.MonkeyPatch.context() as patch:
        started, batches = counted(patch), Interrupted(patch, at=None)
        with Journal(path) as journal:
            again = evaluated(journal)
            assert path.exists(), "until the block ends"
    assert (started, batches.count) == ([], 0)
    assert not path.exists()
    require_same(again, run_with_checks(problem, None))


def test_a_journal_that_cannot_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert [part["ELBO"].tolist() for part in Journal(path, "key").read()] == [[1.0, 1.0], [2.0, 2.0]]
    assert [file.name for file in path.parent.iterdir()] == ["unfinished"]
