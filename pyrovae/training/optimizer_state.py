"""The saved state of an optimizer, made to fit the one at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KERNEL_OPTIONS = {"capturable", "differentiable", "foreach", "fused"}  # options that do not change the numbers


def fitting_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state with the kernel options of an optimizer, for its ``load_state_dict``.

    A run may continue on another device or with another version of torch: options of the kernel, and options that the
    run lacks, are taken from the optimizer. Fused kernels check neither shapes nor strides, and write outside the
    tensors if shapes differ.

    Args:
        optimizer: of the parameters; it is not changed.
        saved: its ``state_dict`` in the run.

    Raises:
        ValueError: if the state belongs to other parameters; the text names the entry.

    """
    own, received = optimizer.state_dict()["param_groups"], saved["param_groups"]
    expected, numbers = ([group["params"] for group in groups] for groups in (own, received))
    if numbers != expected:
        raise _mismatch("param_groups", f"must number the parameters {expected}", numbers)
    groups = [
        mine | {name: value for name, value in theirs.items() if name in mine.keys() - KERNEL_OPTIONS}
        for mine, theirs in zip(own, received, strict=True)
    ]
    states = {number: dict(state) for number, state in saved["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in (number for group in groups if group.get("fused") for number in group["params"]):
        for name, value in states.get(number, {}).items():
            if isinstance(value, Tensor) and name != "step":
                if value.shape != parameters[number].shape:
                    rule = f"must have the shape {tuple(parameters[number].shape)}"
                    raise _mismatch(f"state[{number}][{name!r}]", rule, tuple(value.shape))
                states[number][name] = torch.empty_like(parameters[number]).copy_(value)
    return {"state": states, "param_groups": groups}


def _mismatch(entry: str, rule: str, received: object) -> ValueError:
    return ValueError(
        f"trainer.pt does not fit the parameters and the optimizer: {entry} {rule}, but is {received}; restore it, "
        "resume with the model and optimizer of the run, or train again"
    )
