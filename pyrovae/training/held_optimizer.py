"""An optimizer whose update is part of a CUDA graph: what the graph reads of it, and what it cannot follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.training.adam import hooks_of


class HeldOptimizer:
    """An optimizer, as a graph holds it: its learning rates in tensors, its counts on the device.

    Attributes:
        inside: whether its update can be part of a graph. It runs after the graph if torch cannot capture it, if it has
            hooks, or has had other options changed than the learning rate.

    Args:
        optimizer: any of torch's.

    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.inside = optimizer, True
        self._rates: list[_Rate] = []
        self._state: Any = None
        self._options: list[object] = []
        self._options_change = False

    @property
    def seen(self) -> bool:
        """Whether `changed` has looked at it."""
        return self._state is not None

    def changed(self) -> bool:
        """Tell, once, whether its state was replaced, or anything changed that a graph holds fixed."""
        state, self._state = self._state, self.optimizer.state
        options, self._options = self._options, _options_of(self.optimizer)
        if options and options != self._options:
            self._options_change = True
        return state is not self._state or options != self._options

    def hold(self, device: torch.device) -> None:
        """Put learning rates and counts on the device, if it can be part of a graph."""
        self.release()
        groups = self.optimizer.param_groups
        able = all("capturable" in group for group in groups) and not any(hooks_of(self.optimizer))
        self.inside = able and not self._options_change
        if not self.inside:
            return
        for group in groups:
            group["capturable"] = True
        for state in self.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and not value.ndim:  # counts, and running products of coefficients
                    state[name] = value.to(device)
        self._rates = [_Rate(group, device) for group in groups]

    def update(self) -> None:
        """Bring learning rates that the caller has changed to where the graph reads them."""
        for rate in self._rates:
            rate.update()

    def release(self) -> None:
        """Let learning rates be numbers again."""
        for rate in self._rates:
            rate.release()
        self._rates = []

    def tensors(self) -> list[tuple[dict[str, Any], str]]:
        """Return the places of the tensors of its state, which a step may bind anew."""
        states = self.optimizer.state.values()
        return [(state, name) for state in states for name, value in state.items() if isinstance(value, Tensor)]


class _Rate:
    """The learning rate of a group of parameters, in a tensor that stays where it is.

    Fused optimizers read it in float32, whatever the parameters are in.
    """

    def __init__(self, group: dict[str, Any], device: torch.device) -> None:
        dtype = torch.float32 if group.get("fused") else group["params"][0].dtype
        self._group, self._number = group, group["lr"]
        given = group["lr"]
        lies_there = isinstance(given, Tensor) and (given.device, given.dtype) == (device, dtype)
        self._tensor: Tensor = given if lies_there else torch.zeros((), dtype=dtype, device=device)

    def update(self) -> None:
        """Take up the number that the caller has put in the group, if there is one."""
        if self._group["lr"] is not self._tensor:
            self._number = self._group["lr"]
            self._tensor.fill_(self._number)
            self._group["lr"] = self._tensor

    def release(self) -> None:
        """Put the number back, unless another was written into the tensor, as torch's schedulers do."""
        if self._group["lr"] is self._tensor:
            found = self._tensor.item()
            same = found == torch.as_tensor(self._number, dtype=self._tensor.dtype).item()
            self._group["lr"] = self._number if same else found


def _options_of(optimizer: torch.optim.Optimizer) -> list[object]:
    """Return what a graph of an optimizer's update holds fixed: all options but the learning rate, and its hooks."""
    fixed = [
        id(group[name]) if isinstance(group[name], Tensor) else group[name]
        for group in optimizer.param_groups
        for name in optimizer.defaults
        if name not in ("lr", "capturable")
    ]
    return [*fixed, *map(len, hooks_of(optimizer))]
