"""One gradient step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.pair import Pair, Program

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def fused_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return Adam that updates all parameters in one pass."""
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, fused=fused)


class EagerStep:
    """Loss, gradients, clipping and update, without waiting for the device.

    Args:
        pair: the structure of the programs.
        objective: with a differentiable loss.
        parameters: that are trained.
        optimizer: of these.
        clip_norm: largest norm of the gradient of the loss per datum, or None.

    """

    def __init__(
        self,
        pair: Pair,
        objective: PyroELBO,
        parameters: list[Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
    ) -> None:
        self.pair = pair
        self.objective = objective
        self.parameters = parameters
        self.optimizer = optimizer
        self.clip_norm = clip_norm

    def __call__(self, model: Program, guide: Program, *, size: int, count: int) -> Tensor:
        """Move the parameters once.

        Args:
            model: without arguments, on one minibatch.
            guide: the same.
            size: of the data plate, by which the loss is divided.
            count: of the data in the minibatch.

        Returns:
            Loss, reconstruction and KL per datum, ``(3,)``, nats, the last two free of Pyro's scales; they are zero
            where the objective does not tell.

        """
        if isinstance(self.objective, Objective):
            terms = self.objective.terms_of(self.pair, model, guide)
            self.objective.step += 1
            loss = terms.loss / size
            shown = torch.stack([loss.detach(), terms.reconstruction / count, terms.kl / count])
        else:
            loss = self.objective.differentiable_loss(model, guide) / size
            shown = torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)]).detach()
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        return shown
