"""Check of a saved optimizer state before an optimizer loads it."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.compile.trace import first_line
from pyrovae.training.state import tensor_type

KERNEL_OPTIONS = ("capturable", "differentiable", "foreach", "fused")  # options that do not change the numbers


def check_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state in tensors of the shape, dtype, layout and device that an optimizer makes itself.

    Fused kernels check none of these, and write outside the tensors if they differ.

    Args:
        optimizer: of the parameters; it is not changed.
        saved: its ``state_dict`` in the run.

    Raises:
        ValueError: if the state belongs to other parameters or another optimizer; the text names the entry.

    """
    own = optimizer.state_dict()["param_groups"]
    groups, states = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or len(groups) != len(own):
        raise _mismatch("param_groups", f"must be a list of {len(own)}")
    if not isinstance(states, dict):
        raise _mismatch("state", "must be a dictionary")
    options = [_options(f"param_groups[{number}]", *both) for number, both in enumerate(zip(groups, own, strict=True))]
    expected = _state_after_a_step(optimizer, options)
    if expected is None:  # a custom optimizer that cannot be copied; its operations check shapes themselves
        return {"state": states, "param_groups": options}
    count = sum(len(group["params"]) for group in own)
    checked: dict[int, dict[str, Any]] = {}
    for number, state in states.items():
        entry, fresh = f"state[{number!r}]", expected.get(number, {})
        if number not in range(count) or not isinstance(state, dict):
            raise _mismatch(entry, f"must be a dictionary of one of {count} parameters")
        if state and state.keys() != fresh.keys():
            raise _mismatch(entry, f"must have the entries {list(fresh)}", list(state))
        checked[number] = {name: _like(f"{entry}[{name!r}]", value, fresh[name]) for name, value in state.items()}
    return {"state": checked, "param_groups": options}


def _options(entry: str, saved: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return the saved options of a group, with its own options for the kernel."""
    if not isinstance(saved, dict) or saved.get("params") != own["params"]:
        raise _mismatch(f"{entry}['params']", f"must number {len(own['params'])} parameters from {own['params'][0]}")
    names = [name for name in own if name in saved and name not in ("params", *KERNEL_OPTIONS)]
    return {**own, **{name: _number(f"{entry}[{name!r}]", saved[name], own[name]) for name in names}}


def _state_after_a_step(optimizer: torch.optim.Optimizer, options: list[dict[str, Any]]) -> dict[int, Any] | None:
    """Return the state of a copy of an optimizer after one step with zero gradients, None if that is impossible."""
    try:
        trial = copy.deepcopy(optimizer)
        for group, values in zip(trial.param_groups, options, strict=True):
            group.update({name: value for name, value in values.items() if name != "params"})
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        with warnings.catch_warnings(action="ignore"):  # of a step outside a CUDA graph
            trial.step()
    except Exception as error:  # a custom optimizer may raise anything
        if any(group.get("fused") for group in options):
            raise _mismatch(
                "param_groups", f"must hold options that the optimizer can take a step with ({first_line(error)})"
            ) from None
        return None
    return trial.state_dict()["state"]


def _like(entry: str, saved: Any, fresh: Any) -> Any:
    """Return a saved value of a state; a tensor is copied into the optimizer's own."""
    if not isinstance(fresh, Tensor):
        return _number(entry, saved, fresh)
    if fresh.dim() == 0 and fresh.is_floating_point() and isinstance(saved, Tensor) and saved.is_floating_point():
        saved = saved.to(fresh.dtype)  # a step count, whose dtype is torch's default
    if tensor_type(saved) != tensor_type(fresh):
        raise _mismatch(entry, f"must be {tensor_type(fresh)}", tensor_type(saved))
    with torch.no_grad():
        return fresh.copy_(saved)


def _number(entry: str, saved: Any, own: Any) -> Any:
    """Return a saved option of the same type as the optimizer's own; a tensor with one element counts as a number."""
    if isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise _mismatch(entry, f"must be {len(own)} values", saved)
        return type(own)(_number(entry, *both) for both in zip(saved, own, strict=True))
    if isinstance(saved, Tensor) and saved.numel() == 1:
        saved = saved.item()
    if isinstance(own, (int, float, Tensor, type(None))) and not isinstance(own, bool):
        is_number = isinstance(saved, (int, float)) and not isinstance(saved, bool) and math.isfinite(saved)
        fits = is_number or own is saved is None
    else:
        fits = type(saved) is type(own)
    if not fits:
        raise _mismatch(entry, f"must be like {own!r}", saved)
    return saved


def _mismatch(entry: str, rule: str, received: Any = None) -> ValueError:
    but = "" if received is None else f", but is {received if isinstance(received, str) else repr(received)[:80]}"
    return ValueError(
        f"trainer.pt does not fit the parameters and the optimizer: {entry} {rule}{but}; restore it, resume with the "
        "model and optimizer of the run, or train again"
    )
