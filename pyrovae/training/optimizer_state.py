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
    run lacks, are taken from the optimizer. Fused kernels check neither shapes nor strides, so that the state is copied
    to tensors like the parameters.

    Args:
        optimizer: of the parameters; it is not changed.
        saved: its ``state_dict`` in the run.

    Raises:
        RuntimeError: if a tensor of the state has more or fewer elements than its parameter.

    """
    groups = [
        own | {name: value for name, value in theirs.items() if name in own.keys() - KERNEL_OPTIONS}
        for own, theirs in zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    ]
    states = {number: dict(state) for number, state in saved["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in (number for group in groups if group.get("fused") for number in group["params"]):
        for name, value in states.get(number, {}).items():
            if isinstance(value, Tensor) and name != "step":
                states[number][name] = torch.empty_like(parameters[number]).copy_(value.view_as(parameters[number]))
    return {"state": states, "param_groups": groups}
