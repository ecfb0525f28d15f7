"""Saved optimizer state: one that fits resumes with the same numbers; any other is an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrovae.training.checkpoint import fitting_state

State = dict[str, Any]
Change = Callable[[State], Any]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 6)


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), fused=True)


def take_steps(optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.1 + number) * parameter.detach()
        optimizer.step()


def moment(change: Callable[[Tensor], Any]) -> Change:
    """Return a change of the first moment of the first parameter."""
    return lambda state: state["state"][0].update(exp_avg=change(state["state"][0]["exp_avg"]))


def group(**options: Any) -> Change:
    return lambda state: state["param_groups"][0].update(options)


@pytest.mark.parametrize("change", [lambda value: value[:1], lambda value: value.repeat(9, 9), torch.sum])
def test_a_state_of_other_shapes_is_an_error(change: Callable[[Tensor], Tensor]) -> None:
    optimizer = adam(linear())
    take_steps(optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    moment(change)(state)
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        fitting_state(adam(linear()), state)


def unchanged(state: State) -> None:
    """Change nothing."""


NAMES = ("Adafactor", "NAdam", "Rprop", "AdamW", "SGD")
FITTING: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], Change]] = {
    **{name: (lambda module, name=name: getattr(torch.optim, name)(module.parameters()), unchanged) for name in NAMES},
    "fused SGD": (lambda module: torch.optim.SGD(module.parameters(), momentum=0.9, fused=True), unchanged),
    "layout": (adam, moment(lambda value: value.T.contiguous().T)),  # of another memory format
    "count": (adam, lambda state: state["state"][0].update(step=state["state"][0]["step"].double())),
    "older torch": (adam, lambda state: [state["param_groups"][0].pop(name) for name in ("maximize", "fused")]),
    "newer torch": (adam, group(an_option_of_a_newer_torch=False)),
    "other device": (adam, group(capturable=True, fused=None, lr=torch.tensor(1e-3, dtype=torch.float64))),
}


@pytest.mark.parametrize("name", FITTING)
def test_a_state_that_fits_resumes_with_the_same_numbers(name: str) -> None:
    make, change = FITTING[name]
    module = linear()
    optimizer = make(module)
    take_steps(optimizer, range(2))
    again = copy.deepcopy(module)
    other = make(again)
    before, saved = str(other.state_dict()), copy.deepcopy(optimizer.state_dict())
    change(saved)
    state = fitting_state(other, saved)
    assert str(other.state_dict()) == before
    other.load_state_dict(state)
    for resumed in (optimizer, other):
        take_steps(resumed, range(2, 5))
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
