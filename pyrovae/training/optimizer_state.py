"""Check of a saved optimizer state before an optimizer loads it."""

from __future__ import annotations

import copy
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

    Fused kernels check none of these, and write outside the tensors if they differ. Options of the kernel, and options
    that the run lacks, are those of the optimizer.

    Args:
        optimizer: of the parameters; it is not changed.
        saved: its ``state_dict`` in the run.

    Raises:
        ValueError: if the state belongs to other parameters or another optimizer; the text names the entry.

    """
    own = optimizer.state_dict()["param_groups"]
    received, expected = ([group["params"] for group in groups] for groups in (saved["param_groups"], own))
    if received != expected:
        raise _mismatch("param_groups", f"must number the parameters {expected}", received)
    groups = [_options(*both) for both in zip(saved["param_groups"], own, strict=True)]
    states = {number: state for number, state in saved["state"].items() if state}  # without a gradient there is none
    after_a_step = _state_after_a_step(optimizer, groups)
    if after_a_step is not None:
        states = {number: _fitted(number, state, after_a_step.get(number, {})) for number, state in states.items()}
    return {"state": states, "param_groups": groups}


def _options(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved options of a group of parameters."""
    options = dict(own)
    for name, value in saved.items():
        if name in own and name not in KERNEL_OPTIONS:
            options[name] = value.item() if isinstance(value, Tensor) else value
    return options


def _state_after_a_step(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> dict[int, Any] | None:
    """Return the state of a copy of an optimizer after one step with zero gradients.

    None for a custom optimizer that cannot be copied; its operations check shapes themselves.
    """
    try:
        trial = copy.deepcopy(optimizer)
        for group, options in zip(trial.param_groups, groups, strict=True):
            group.update({name: value for name, value in options.items() if name != "params"})
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        with warnings.catch_warnings(action="ignore"):  # of a step outside a CUDA graph
            trial.step()
    except Exception as error:  # a custom optimizer may raise anything
        if any(group.get("fused") for group in groups):
            raise _mismatch(
                "param_groups", "must hold options for a step of the optimizer", first_line(error)
            ) from None
        return None
    return trial.state_dict()["state"]


def _fitted(number: int, saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved state of a parameter, its tensors copied into those that the optimizer makes."""
    if saved.keys() != own.keys():
        raise _mismatch(f"state[{number}]", f"must have the entries {list(own)}", list(saved))
    fitted = dict(saved)
    for name, value in own.items():
        received = saved[name]
        if isinstance(value, Tensor) and value.dim() == 0 and isinstance(received, Tensor):
            received = received.to(value.dtype)  # a step count, whose dtype is torch's default
        if tensor_type(received) != tensor_type(value):
            raise _mismatch(f"state[{number}][{name!r}]", f"must be {tensor_type(value)}", tensor_type(received))
        if isinstance(value, Tensor):
            with torch.no_grad():
                fitted[name] = value.copy_(received)
    return fitted


def _mismatch(entry: str, rule: str, received: object) -> ValueError:
    return ValueError(
        f"trainer.pt does not fit the parameters and the optimizer: {entry} {rule}, but is {received}; restore it, "
        "resume with the model and optimizer of the run, or train again"
    )
