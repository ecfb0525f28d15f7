"""Adam in one pass over all parameters, with little work in Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """`torch.optim.Adam` with ``fused=True`` and the same numbers and state, at a fraction of its cost in Python.

    Parameters that have taken the same number of steps count them in one tensor.

    *Adam: A method for stochastic optimization (Kingma, Ba 2015)*, https://arxiv.org/abs/1412.6980

    Args:
        parameters: on one device, a CPU or CUDA.
        lr: the learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.

    Raises:
        ValueError: if a coefficient is out of range.

    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        parameters = list(parameters)
        on_cuda = any(parameter.is_cuda for parameter in parameters)
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, fused=True, capturable=on_cuda)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        (group,) = self.param_groups[:1]
        moved = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in moved]
        counts = [state.get("step") for state in states]
        if len(self.param_groups) > 1 or not moved or counts[0] is None or any(c is not counts[0] for c in counts):
            self._separate()
            super().step(closure)
            if any(count is None for count in counts):
                self._share()
            return
        count = counts[0].add_(1)
        torch._fused_adam_(
            moved,
            [parameter.grad for parameter in moved],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [count] * len(moved),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=None,
        )

    def load_state_dict(self, state_dict: Any) -> None:
        """Take up the state of an Adam, fused or not."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let parameters count in one tensor where all have taken as many steps."""
        counts = [state["step"] for state in self.state.values() if "step" in state]
        if counts and all(torch.equal(count, counts[0]) for count in counts):
            for state in self.state.values():
                state["step"] = counts[0]

    def _separate(self) -> None:
        """Let every parameter count in a tensor of its own."""
        taken: set[int] = set()
        for state in self.state.values():
            if "step" in state:
                if id(state["step"]) in taken:
                    state["step"] = state["step"].clone()
                taken.add(id(state["step"]))
