"""An interrupted evaluation goes on where it was, to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pair, linear_gaussian, make_vae, pair_of
from torch import nn

from pyrovae.evaluate import evaluate, evaluation
from pyrovae.evaluate.journal import Journal


class Interrupted:
    """Stands in for the drawing of particles: counts the batches, and is interrupted at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int | None) -> None:
        self.count, self.at, self.blocks = 0, at, evaluation.blocks
        monkeypatch.setattr(evaluation, "blocks", self)

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
def problem() -> tuple[Pair, torch.Tensor]:
    truth = linear_gaussian()
    return pair_of(truth, widen=1.3), truth.sample(22)


def run(problem: tuple[Pair, torch.Tensor], journal: Path | None, *, seed: int = 0) -> Any:
    (model, guide), x = problem
    return evaluate(model, guide, x, ks=(1, 10), batch_size=4, seed=seed, journal=journal, shown=False)


def test_an_interrupted_evaluation_goes_on_to_the_same_numbers(
    problem: tuple[Pair, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    for name, value in whole.per_datum.items():
        torch.testing.assert_close(again.per_datum[name], value, rtol=0, atol=0, equal_nan=True)
    assert not list(journal.parent.iterdir())


def test_batches_of_another_evaluation_do_not_count(
    problem: tuple[Pair, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
        return evaluate(vae.model, vae.guide, x, ks=(1, 5), batch_size=2, journal=journal, shown=False)

    interrupt(monkeypatch, evaluated, at=3)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Linear):
                module.bias.add_(0.1)
    counted = Interrupted(monkeypatch, at=None)
    evaluated()
    assert counted.count == 4


def test_a_journal_without_a_file_keeps_nothing(tmp_path: Path) -> None:
    journal = Journal(None, "key")
    journal.add({"ELBO": torch.zeros(2)})
    journal.write()
    assert Journal(None, "key").read() == []
    assert not list(tmp_path.iterdir())


def test_programs_may_differ_where_their_weights_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    journal = tmp_path / "unfinished"
    truth = linear_gaussian()
    x = truth.sample(22)
    interrupt(monkeypatch, lambda: run((pair_of(truth, widen=1.3), x), journal), at=4)
    other = pair_of(truth, widen=1.2), x
    assert run(other, journal).estimates == run(other, None).estimates
