"""The state of an optimizer from a file: what fits goes on to the same numbers, and the rest is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrovae.training.optimizer_state import check_state

State = dict[str, Any]
Change = Callable[[State], Any]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 6)


def take_steps(optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.1 + number) * parameter.detach()
        optimizer.step()


def stepped() -> tuple[torch.optim.Optimizer, State]:
    optimizer = torch.optim.Adam(linear().parameters(), fused=True)
    take_steps(optimizer, range(2))
    return optimizer, copy.deepcopy(optimizer.state_dict())


def moment(change: Callable[[Tensor], Any]) -> Change:
    """Return a change of a state that is one of the first moment of its first parameter."""
    return lambda state: state["state"][0].update(exp_avg=change(state["state"][0]["exp_avg"]))


def group(**options: Any) -> Change:
    return lambda state: state["param_groups"][0].update(options)


BROKEN: dict[str, tuple[Change, str]] = {
    "shorter": (moment(lambda value: value[:1]), r"state[0]['exp_avg'] must be (6, 2) of torch.float64, but is (1, 2)"),
    "longer": (moment(lambda value: value.repeat(9, 9)), "but is (54, 18) of torch.float64"),
    "transposed": (moment(lambda value: value.T), "but is (2, 6) of torch.float64"),
    "a number": (moment(lambda value: value.sum()), "but is () of torch.float64"),
    "float32": (moment(lambda value: value.float()), "but is (6, 2) of torch.float32"),
    "complex": (moment(lambda value: value.to(torch.complex64)), "but is (6, 2) of torch.complex64"),
    "int64": (moment(lambda value: value.long()), "but is (6, 2) of torch.int64"),
    "sparse": (moment(lambda value: value.to_sparse()), "but is (6, 2) of torch.float64, torch.sparse_coo"),
    "meta": (moment(lambda value: value.to("meta")), "but is (6, 2) of torch.float64, without values"),
    "no tensor": (moment(lambda value: 0.0), "but is a float"),
    "steps": (
        lambda state: state["state"][0].update(step=torch.zeros(3)),
        "state[0]['step'] must be () of torch.float",
    ),
    "no steps": (lambda state: state["state"][0].update(step="1"), "state[0]['step'] must be () of torch.float"),
    "too few": (
        lambda state: state["state"][0].pop("exp_avg_sq"),
        "state[0] must have the entries ['step', 'exp_avg', ",
    ),
    "too many": (
        lambda state: state["state"][0].update(more=torch.zeros(3)),
        "but is ['step', 'exp_avg', 'exp_avg_sq'",
    ),
    "of none": (
        lambda state: state["state"].update({9: state["state"][0]}),
        "state[9] must be a dictionary of one of 2",
    ),
    "of another": (lambda state: state["state"].update({1: state["state"][0]}), "state[1]['exp_avg'] must be (6,) of"),
    "list": (lambda state: state.update(state=[]), "state must be a dictionary"),
    "groups": (lambda state: state["param_groups"].append({}), "param_groups must be a list of 1"),
    "no group": (lambda state: state["param_groups"].__setitem__(0, 3), "param_groups[0]['params'] must number 2"),
    "parameters": (lambda state: state["param_groups"][0]["params"].pop(), "param_groups[0]['params'] must number 2"),
    "betas": (group(betas=(0.9,)), "param_groups[0]['betas'] must be 2 values, but is (0.9,)"),
    "infinite": (group(betas=(0.9, float("inf"))), "param_groups[0]['betas'] must be like 0.999, but is inf"),
    "text": (group(eps="1"), "param_groups[0]['eps'] must be like 1e-08, but is 1"),
    "switch": (group(amsgrad=1), "param_groups[0]['amsgrad'] must be like False, but is 1"),
    "amsgrad": (
        group(amsgrad=True),
        "state[0] must have the entries ['step', 'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq']",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_state_of_other_parameters_is_refused_by_name(name: str) -> None:
    state = stepped()[1]
    change, text = BROKEN[name]
    change(state)
    with pytest.raises(ValueError, match="trainer.pt does not fit the parameters and the optimizer: ") as error:
        check_state(torch.optim.Adam(linear().parameters(), fused=True), state)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


FITTING: dict[str, Change] = {
    "layout": moment(lambda value: value.T.contiguous().T),  # as of another memory format
    "count": lambda state: state["state"][0].update(step=state["state"][0]["step"].double()),
    "older torch": lambda state: [state["param_groups"][0].pop(name) for name in ("maximize", "fused")],
    "newer torch": group(an_option_of_a_newer_torch=False),
    "another device": group(capturable=True, fused=None, foreach=True, lr=torch.tensor(1e-3, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", FITTING)
def test_a_state_that_fits_gives_the_same_numbers(name: str) -> None:
    optimizer, state = stepped()
    FITTING[name](state)
    other = torch.optim.Adam(linear().parameters(), fused=True)
    with torch.no_grad():
        for target, source in zip(other.param_groups[0]["params"], optimizer.param_groups[0]["params"], strict=True):
            target.copy_(source)
    other.load_state_dict(check_state(other, state))
    for each in (optimizer, other):
        take_steps(each, range(2, 5))
    for a, b in zip(optimizer.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b)


class Plain(torch.optim.Optimizer):
    """An optimizer of the user's, which cannot be copied."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.factor = 2.0

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.data -= self.factor * self.param_groups[0]["lr"] * parameter.grad


OPTIMIZERS = (
    "SGD",
    "Adagrad",
    "Adafactor",
    "NAdam",
    "Rprop",
    "ASGD",
    "RMSprop",
    "AdamW",
    "Adadelta",
    "RAdam",
    "Adamax",
)


@pytest.mark.parametrize("name", [*OPTIMIZERS, "heavy SGD", "fused SGD", "Plain"])
def test_every_optimizer_is_taken_up_again(name: str) -> None:
    def make(module: nn.Module) -> torch.optim.Optimizer:
        if name == "Plain":
            return Plain(module.parameters())
        kind, options = getattr(torch.optim, name.split()[-1]), {}
        options |= {"momentum": 0.9, "fused": name == "fused SGD"} if name.endswith(" SGD") else {}
        return kind(module.parameters(), lr=0.01, **options)

    module = linear()
    optimizer = make(module)
    take_steps(optimizer, range(2))
    again = copy.deepcopy(module)
    other = make(again)
    before = copy.deepcopy(other.state_dict())
    state = check_state(other, copy.deepcopy(optimizer.state_dict()))
    assert str(other.state_dict()) == str(before)
    other.load_state_dict(state)
    for each in (optimizer, other):
        take_steps(each, range(2, 5))
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
