"""The loss of one minibatch as a function of tensors: what every engine computes, eagerly or recorded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.programs import ModelGuide, Program, run_validated
from pyrovae.runtime.context import registered_once
from pyrovae.runtime.distributed import Shard, group
from pyrovae.training.bfloat16 import bfloat16_networks
from pyrovae.training.shared_noise import SharedNoise

Bind = Callable[..., tuple[Program, Program, int]]


class StepLoss:
    """The loss of one minibatch.

    Attributes:
        share: the part of the minibatch that the inputs are, where processes share it; None if they are all of it.
        row_axes: of the draws of noise, where processes share them.

    Args:
        programs: the structure of the programs.
        objective: with a differentiable loss.
        bind: from the inputs of a step to model and guide without arguments, and their number of data.
        half: whether networks compute in bfloat16; see `bfloat16_networks`.

    Raises:
        TypeError: if the objective has no differentiable loss.

    """

    def __init__(self, programs: ModelGuide, objective: PyroELBO, bind: Bind, *, half: bool = False) -> None:
        if isinstance(objective, type):
            raise TypeError(
                f"an objective is an object, but received the class {objective.__name__}; give {objective.__name__}()"
            )
        if not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                "training needs an objective with a differentiable loss, which "
                f"{type(objective).__name__} does not have; use pyrovae.objectives, or train with pyro.infer.SVI"
            )
        self.programs, self.objective, self.bind, self.half = programs, objective, bind, half
        self.share: Shard | None = None
        self.row_axes: list[int | None] = []
        self._registered: set[tuple[str, int]] = set()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss per datum, differentiable, and what is shown of it.

        Args:
            inputs: tensors, those that `bind` takes.

        Returns:
            The loss, 0-dim, nats; and loss, reconstruction and KL per datum, ``(3,)``, nats, the last two free of
            Pyro's scales and zero where the objective does not tell. Where processes share the minibatch, these are
            this process's parts of sums over all of them.

        """
        if self.share is None and not self.half:
            return self._terms(*inputs)
        noise = nullcontext() if self.share is None else SharedNoise(self.row_axes, self.share, group().rank)
        with noise, bfloat16_networks(self.programs.all_modules) if self.half else nullcontext():
            loss, shown = self._terms(*inputs)
        return (loss, shown) if self.share is None else (loss * self.share.weight, shown * self.share.weight)

    def _terms(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and what is shown; with Pyro's checks on, what they find is told in one line."""
        if not is_validation_enabled():
            return self._computed(*inputs)
        return run_validated(lambda: self._computed(*inputs), inputs[0].device, nan_counts=False)

    def _computed(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        model, guide, count = self.bind(*inputs)
        size = self.programs.plate_size if self.programs.plate_size != self.programs.num_rows else count
        if not isinstance(self.objective, Objective):
            loss = self.objective.differentiable_loss(model, guide) / size
            return loss, torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)]).detach()
        with registered_once(self._registered):
            terms = self.objective.terms_of(self.programs, model, guide)
        loss = terms.loss / size
        shown = torch.stack([terms.loss.detach(), terms.reconstruction, terms.kl])
        return loss, shown / count if size == count else torch.cat([shown[:1] / size, shown[1:] / count])
