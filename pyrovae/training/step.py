"""One gradient step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.pair import Pair, Program
from pyrovae.sandbox import MODULE_DIVIDER

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
            known = RegisteredParameters()
            terms = self.objective.terms_of(self.pair, known(model), known(guide))
            self.objective.step += 1
            loss = terms.loss / size
            shown = torch.stack([loss.detach(), terms.reconstruction / count, terms.kl / count])
        else:
            loss = self.objective.differentiable_loss(model, guide) / size
            shown = torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)]).detach()
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        return shown


class RegisteredParameters(Messenger):
    """Answers `pyro.module` for parameters that the store holds already, so that no handler outside has to.

    The answer is what the store would give, but a trace around the program does not record them, which took 0.4 of the
    7 milliseconds of a step of the default model. Our objectives read none of it; others may, such as those of Pyro
    that are compiled. Statements of ``pyro.param`` are left alone.
    """

    def _pyro_param(self, msg: Any) -> None:
        store = pyro.get_param_store()
        if MODULE_DIVIDER in msg["name"] and msg["name"] in store:
            msg["value"] = store[msg["name"]]
            msg["done"] = msg["stop"] = True
