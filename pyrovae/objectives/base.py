"""What the objectives have in common: a loss that stays on its device, made of terms that are told apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyrovae.programs import ModelGuide, Program
from pyrovae.runtime.context import forked_random


@dataclass(frozen=True)
class Terms:
    """One evaluation of an objective, summed over the data plate; 0-dim tensors, nats.

    Attributes:
        loss: what is minimized, multiplied by Pyro's scales, differentiable.
        reconstruction: E_q log p(x | z) of the data in the minibatch, free of scales and gradients.
        kl: the same of KL(q(z | x) || p(z)), without beta, annealing or free bits.

    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class Objective(Trace_ELBO, ABC):
    """Base of the objectives: a `pyro.infer.ELBO` whose loss does not wait for the device.

    While a step is recorded, 0-dim tensors stand for `step` and `kl_weight`, so that formulas of them follow their
    values; a formula that makes numbers of them, or branches, is run eagerly.

    Attributes:
        step: gradient steps so far, which schedules read; `loss_and_grads` and `pyrovae.fit` count them.
        num_weighted: K, particles inside the logarithm of the bound that is maximized; 1 for an ELBO.

    """

    step: int = 0
    num_weighted: int = 1

    def kl_weight(self) -> float:
        """Return the factor of the KL at the present step."""
        return 1.0

    @property
    def fixed(self) -> tuple[object, ...]:
        """What a recorded step took from the objective as it was: where it differs, the step is recorded anew."""
        return (self.num_particles,)

    @abstractmethod
    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run the pair on ``args`` and return the loss with its terms."""

    def terms_of(self, programs: ModelGuide, model: Program, guide: Program) -> Terms:
        """Return the terms of programs without arguments, whose structure is known."""
        return self.terms(model, guide)

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return class and options, as a run folder keeps them."""

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a 0-dim tensor with gradients."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a 0-dim tensor."""
        with torch.no_grad():
            return self.terms(model, guide, *args, **kwargs).loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradients to the parameters, count the step, and return the loss as a 0-dim tensor."""
        loss = self.terms(model, guide, *args, **kwargs).loss
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        self.step += 1
        return loss.detach()

    def _guess_max_plate_nesting(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        """Let Pyro's run for this draw from streams of its own."""
        where = next((each.device for each in args if isinstance(each, Tensor)), torch.device("cpu"))
        with forked_random(0, where):
            super()._guess_max_plate_nesting(model, guide, args, kwargs)


def site_log_prob(site: Any) -> Tensor:
    """Return a site's log-probability, free of scale and mask; what Pyro's checks computed is used again."""
    return site["unscaled_log_prob"] if "unscaled_log_prob" in site else site["fn"].log_prob(site["value"])


def require_gradient(name: str, site: Any) -> None:
    """Refuse a draw of the guide that cannot be reparametrized."""
    if not getattr(site["fn"], "has_rsample", False):
        raise ValueError(
            f"the guide's draw of {name!r} has no gradient: {type(site['fn']).__name__} cannot be "
            "reparametrized; use a distribution with has_rsample, or train with pyro.infer.TraceGraph_ELBO"
        )
