"""Saved state of an optimizer, checked against the parameters before the optimizer loads it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.compile.trace import first_line
from pyrovae.training.state import kind_of

IMPLEMENTATION = ("capturable", "differentiable", "foreach", "fused")  # options that choose a kernel, not the numbers


def check_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state in tensors of the shape, dtype, layout and device that an optimizer makes itself.

    Fused kernels do not check any of these, and write outside the tensors if they differ.

    Args:
        optimizer: of the parameters, which is not changed.
        saved: what its ``state_dict`` returned in the run.

    Raises:
        ValueError: if the state is that of other parameters or another optimizer; the text names the entry.

    """
    own = optimizer.state_dict()["param_groups"]
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or len(groups) != len(own):
        raise _refusal("param_groups", f"must be a list of {len(own)}")
    if not isinstance(states, dict):
        raise _refusal("state", "must be a dictionary")
    options = [_options(number, *programs) for number, programs in enumerate(zip(groups, own, strict=True))]
    expected = _state_after_a_step(optimizer, options)
    if expected is None:  # a custom optimizer that cannot be copied; its operations check shapes themselves
        return {"state": states, "param_groups": options}
    numbers = {number for group in own for number in group["params"]}
    for number, state in states.items():
        if number not in numbers or not isinstance(state, dict):
            raise _refusal(f"state[{number!r}]", f"must be a dictionary of one of {len(numbers)} parameters")
        if state and state.keys() != expected.get(number, {}).keys():
            raise _refusal(f"state[{number}]", f"must have the entries {list(expected.get(number, ()))}", list(state))
    checked = {
        number: {
            name: _value(f"state[{number}][{name!r}]", value, expected[number][name]) for name, value in state.items()
        }
        for number, state in states.items()
    }
    return {"state": checked, "param_groups": options}


def _options(number: int, saved: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return the saved options of a group, with its own options for the kernel."""
    entry = f"param_groups[{number}]"
    if not isinstance(saved, dict) or saved.get("params") != own["params"]:
        raise _refusal(f"{entry}['params']", f"must number {len(own['params'])} parameters from {own['params'][0]}")
    names = [name for name in own if name in saved and name not in ("params", *IMPLEMENTATION)]
    return {**own, **{name: _number_like(f"{entry}[{name!r}]", saved[name], own[name]) for name in names}}


def _state_after_a_step(optimizer: torch.optim.Optimizer, options: list[dict[str, Any]]) -> dict[int, Any] | None:
    """Return the state that a copy of an optimizer has after a step with gradients of zero."""
    try:
        trial = copy.deepcopy(optimizer)
        for group, values in zip(trial.param_groups, options, strict=True):
            group.update({name: value for name, value in values.items() if name != "params"})
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        with warnings.catch_warnings(action="ignore"):  # of a step outside a CUDA graph
            trial.step()
    except Exception as error:  # of any kind: the optimizer may be a custom one
        if any(group.get("fused") for group in options):
            raise _refusal(
                "param_groups", f"must hold options that the optimizer can take a step with ({first_line(error)})"
            ) from None
        return None
    return trial.state_dict()["state"]


def _value(entry: str, saved: Any, own: Any) -> Any:
    """Return a saved value; a tensor is copied into the optimizer's own."""
    if not isinstance(own, Tensor):
        return _number_like(entry, saved, own)
    if own.dim() == 0 and own.is_floating_point() and isinstance(saved, Tensor) and saved.is_floating_point():
        saved = saved.to(own.dtype)  # a count, whose dtype follows torch's default
    if kind_of(saved) != kind_of(own):
        raise _refusal(entry, f"must be {kind_of(own)}", kind_of(saved))
    with torch.no_grad():
        return own.copy_(saved)


def _number_like(entry: str, saved: Any, own: Any) -> Any:
    """Return a saved option that is like the optimizer's own; a tensor with one element counts as a number."""
    if isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise _refusal(entry, f"must be {len(own)} values", saved)
        return type(own)(_number_like(entry, *programs) for programs in zip(saved, own, strict=True))
    if isinstance(saved, Tensor) and saved.numel() == 1:
        saved = saved.item()
    number = isinstance(saved, (int, float)) and math.isfinite(saved)
    if isinstance(own, bool):
        fits = isinstance(saved, bool)
    elif own is None:
        fits = saved is None or number
    elif isinstance(own, (int, float, Tensor)):
        fits = number and not isinstance(saved, bool)
    else:
        fits = type(saved) is type(own)
    if not fits:
        raise _refusal(entry, f"must be like {own!r}", saved)
    return saved


def _refusal(entry: str, rule: str, received: Any = None) -> ValueError:
    but = "" if received is None else f", but is {received if isinstance(received, str) else repr(received)[:80]}"
    return ValueError(
        f"trainer.pt does not fit the parameters and the optimizer: {entry} {rule}{but}; restore it, resume with the "
        "model and optimizer of the run, or train again"
    )
