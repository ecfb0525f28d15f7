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
    own, groups, states = optimizer.state_dict()["param_groups"], saved.get("param_groups"), saved.get("state")
    if isinstance(groups, list) and all(isinstance(group, dict) for group in groups) and len(groups) == len(own):
        groups = [_known_options(*both) for both in zip(groups, own, strict=True)]
    groups = _like("param_groups", groups, own)
    expected = _state_after_a_step(optimizer, groups)
    if expected is None:  # a custom optimizer that cannot be copied; its operations check shapes themselves
        return {"state": states, "param_groups": groups}
    if isinstance(states, dict):  # parameters without a gradient have no state
        states = {number: state for number, state in states.items() if state != {}}
        expected = {number: state for number, state in expected.items() if number in states}
    return {"state": _like("state", states, expected), "param_groups": groups}


def _known_options(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the saved options of a group; options of the kernel, and options that the run lacks, are its own."""
    if saved.get("params") != own["params"]:
        raise _mismatch("param_groups", f"must number {len(own['params'])} parameters", saved.get("params"))
    return {name: value if name in KERNEL_OPTIONS or name not in saved else saved[name] for name, value in own.items()}


def _state_after_a_step(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> dict[int, Any] | None:
    """Return the state of a copy of an optimizer after one step with zero gradients, None if that is impossible."""
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


def _like(entry: str, saved: Any, own: Any) -> Any:
    """Return a saved entry if it has the form of the optimizer's own; a tensor is copied into the own one."""
    if isinstance(own, dict):
        if not isinstance(saved, dict) or saved.keys() != own.keys():
            names = list(saved) if isinstance(saved, dict) else saved
            raise _mismatch(entry, f"must be a dictionary with the entries {list(own)}", names)
        return {name: _like(f"{entry}[{name!r}]", saved[name], value) for name, value in own.items()}
    if isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise _mismatch(entry, f"must have {len(own)} entries", saved)
        return type(own)(_like(f"{entry}[{index}]", *both) for index, both in enumerate(zip(saved, own, strict=True)))
    if isinstance(own, Tensor) and entry.startswith("state"):
        return _copy(entry, saved, own)
    if isinstance(saved, Tensor) and saved.numel() == 1:  # an option may be a tensor
        saved = saved.item()
    if isinstance(own, (int, float, Tensor, type(None))) and not isinstance(own, bool):
        is_number = isinstance(saved, (int, float)) and not isinstance(saved, bool) and math.isfinite(saved)
        fits = is_number or own is saved is None
    else:
        fits = type(saved) is type(own)
    if not fits:
        raise _mismatch(entry, f"must be like {own!r}", saved)
    return saved


def _copy(entry: str, saved: Any, own: Tensor) -> Tensor:
    """Copy a saved tensor into the optimizer's own."""
    if own.dim() == 0 and own.is_floating_point() and isinstance(saved, Tensor) and saved.is_floating_point():
        saved = saved.to(own.dtype)  # a step count, whose dtype is torch's default
    if tensor_type(saved) != tensor_type(own):
        raise _mismatch(entry, f"must be {tensor_type(own)}", tensor_type(saved))
    with torch.no_grad():
        return own.copy_(saved)


def _mismatch(entry: str, rule: str, received: object) -> ValueError:
    text = " ".join((received if isinstance(received, str) else repr(received)).split())
    return ValueError(
        f"trainer.pt does not fit the parameters and the optimizer: {entry} {rule}, but is {text[:80]}; restore it, "
        "resume with the model and optimizer of the run, or train again"
    )
