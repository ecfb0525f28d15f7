"""Loss of one minibatch as a function of tensors, which all engines compute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.programs import ModelGuide, Program, run_validated
from pyrovae.training.bfloat16 import bfloat16_networks

Bind = Callable[..., tuple[Program, Program, int]]


class StepLoss:
    """Loss of one minibatch.

    Args:
        programs: structure of model and guide.
        objective: an objective with a differentiable loss.
        bind: returns model and guide without arguments, and the number of data, for the inputs of a step.
        bfloat16: whether networks compute in bfloat16; see `bfloat16_networks`.

    Raises:
        TypeError: if the objective has no differentiable loss.

    """

    def __init__(self, programs: ModelGuide, objective: PyroELBO, bind: Bind, *, bfloat16: bool = False) -> None:
        if isinstance(objective, type):
            raise TypeError(
                f"an objective is an object, but received the class {objective.__name__}; give {objective.__name__}()"
            )
        if not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                "training needs an objective with a differentiable loss, which "
                f"{type(objective).__name__} does not have; use pyrovae.objectives, or train with pyro.infer.SVI"
            )
        self.programs, self.objective, self.bind, self.bfloat16 = programs, objective, bind, bfloat16

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its terms; with validation on, Pyro's checks raise one-line errors.

        Args:
            inputs: tensors that `bind` takes.

        Returns:
            The loss per datum, 0-dim, nats, differentiable; and loss, reconstruction and KL per datum, ``(3,)``, nats,
            detached. The last two are free of Pyro's scales, and zero for an objective without terms.

        """
        with bfloat16_networks(self.programs.all_modules) if self.bfloat16 else nullcontext():
            if is_validation_enabled():
                return run_validated(lambda: self._compute(*inputs), inputs[0].device, nan_counts=False)
            return self._compute(*inputs)

    def _compute(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        model, guide, count = self.bind(*inputs)
        size = self.programs.plate_size if self.programs.plate_size != self.programs.num_rows else count
        if not isinstance(self.objective, Objective):
            loss = self.objective.differentiable_loss(model, guide) / size
            return loss, torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)]).detach()
        terms = self.objective.terms_of(self.programs, model, guide)
        metrics = torch.stack([terms.loss.detach(), terms.reconstruction, terms.kl])
        metrics = metrics / count if size == count else torch.cat([metrics[:1] / size, metrics[1:] / count])
        return terms.loss / size, metrics
