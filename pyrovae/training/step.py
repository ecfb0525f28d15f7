"""One gradient step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor

from pyrovae.objectives import ELBO
from pyrovae.pair import Program

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def fused_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return Adam that updates all parameters in one pass."""
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, fused=fused)


class EagerStep:
    """Loss, gradients, clipping and update, without waiting for the device.

    Args:
        objective: with a differentiable loss.
        parameters: that are trained.
        optimizer: of these.
        clip_norm: largest norm of the gradient of the loss per datum, or None.

    """

    def __init__(
        self,
        objective: PyroELBO,
        parameters: list[Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
    ) -> None:
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
        if isinstance(self.objective, ELBO):
            terms = self.objective.terms(model, guide)
            loss = self.objective.combine(terms) / size
            shown = torch.stack([loss.detach(), terms.unscaled_reconstruction / count, terms.unscaled_kl / count])
        else:
            loss = self.objective.differentiable_loss(model, guide) / size
            shown = torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)]).detach()
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        return shown
