"""Base class of the objectives, and functions that read the sites of a trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.programs import ModelGuide, Program
from pyrovae.programs.analytic_kl import Nodes
from pyrovae.runtime.context import forked_random

Site = Mapping[str, Any]


@dataclass(frozen=True)
class Terms:
    """One evaluation of an objective, summed over the data plate; 0-dim tensors, nats.

    Attributes:
        loss: the minimized loss, multiplied by Pyro's scales, differentiable.
        reconstruction: E_q log p(x | z) of the data in the minibatch, without scales and gradients.
        kl: KL(q(z | x) || p(z)) of the data in the minibatch, without scales, gradients, beta, annealing or free bits.

    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class Objective(Trace_ELBO, ABC):
    """Base class of the objectives: a `pyro.infer.ELBO` whose loss stays on its device.

    To write your own, derive a class and define ``terms``. `traces` runs model and guide, once for each of
    ``num_particles``; define a constructor without this argument if there is always one. `latent_sites` and
    `observed_sites` list their sample sites, `site_log_prob` gives a log-probability, `scaled_sum` sums it with Pyro's
    scale and mask, and `closed_form_kl` gives an analytic KL. `pyrovae.fit` and `capture` call ``terms(model, guide)``
    with programs that hold their data, so that ``args`` is empty there. A loss that is a function of importance weights
    derives from `ImportanceWeighted` instead; otherwise early stopping watches the ELBO. Extend ``describe`` if the
    class has options, so that a run folder holds them. `pyrovae.testing.check` tests the result.

    A complete objective, after *Understanding disentangling in beta-VAE (Burgess et al. 2018)*,
    https://arxiv.org/abs/1804.03599:

        >>> from pyrovae.objectives import Objective, Terms, latent_sites, observed_sites, scaled_sum, site_log_prob
        >>> class Capacity(Objective):
        ...     '''Minus E log p(x | z), plus gamma |KL - capacity|, with one draw of the guide per datum.'''
        ...
        ...     def __init__(self, *, capacity: float = 5.0, gamma: float = 10.0) -> None:
        ...         super().__init__()
        ...         self.capacity, self.gamma = capacity, gamma
        ...
        ...     def describe(self):
        ...         return super().describe() | {"capacity": self.capacity, "gamma": self.gamma}
        ...
        ...     def terms(self, model, guide, *args, **kwargs):
        ...         ((model_trace, guide_trace),) = self.traces(model, guide, *args, **kwargs)
        ...         loss, log_likelihood, kl = 0.0, 0.0, 0.0
        ...         for site in observed_sites(model_trace).values():
        ...             loss = loss - scaled_sum(site_log_prob(site), site)
        ...             log_likelihood = log_likelihood + site_log_prob(site).sum().detach()
        ...         for name, site in latent_sites(guide_trace).items():
        ...             difference = site_log_prob(site) - site_log_prob(model_trace.nodes[name])  # (B,)
        ...             excess = (difference.mean() - self.capacity).abs()
        ...             loss = loss + self.gamma * scaled_sum(excess.expand_as(difference), site)
        ...             kl = kl + difference.sum().detach()
        ...         return Terms(loss, log_likelihood, kl)
        >>> pyrovae.fit(vae.model, vae.guide, data, objective=Capacity())

    While a step is traced for compilation, 0-dim tensors stand for `step` and `kl_weight`. A formula that converts them
    to numbers or branches on them makes training fall back to eager steps, and so does one that changes attributes. A
    dictionary does not find them among its keys; put its values into a tensor.

    Attributes:
        step: gradient steps so far, an argument of schedules; `loss_and_grads` and `pyrovae.fit` count them.
        num_weighted: K, particles inside the logarithm of the maximized bound; 1 for an ELBO.

    """

    step: int = 0
    num_weighted: int = 1

    def kl_weight(self) -> float:
        """Return the factor of the KL at the current step."""
        return 1.0

    @property
    def fixed(self) -> tuple[object, ...]:
        """Options that a traced step holds fixed; if they change, the step is traced again."""
        return (self.num_particles,)

    @abstractmethod
    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run model and guide on ``args``, empty if the programs hold their data, and return the terms."""

    def terms_of(self, programs: ModelGuide, model: Program, guide: Program) -> Terms:
        """Return the terms of programs without arguments, whose structure is known."""
        return self.terms(model, guide)

    def describe(self) -> dict[str, object]:
        """Return class name and options as JSON types, for the run folder."""
        return {"class": type(self).__name__, "num_particles": self.num_particles}

    def traces(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
        """Yield the traces of model and guide, the model replayed against the guide.

        One pair per particle, or a single one if particles are vectorized. Scales, masks and plates of a site are left
        to the caller: ``site["scale"]``, ``site["mask"]``, ``site["cond_indep_stack"]``.
        """
        yield from self._get_traces(model, guide, args, kwargs)

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

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        """Run model and guide; Pyro's checks, which compute every log-probability, run if validation is on."""
        if is_validation_enabled():
            return super()._get_trace(model, guide, args, kwargs)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs), guide_trace

    def _guess_max_plate_nesting(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        """Run Pyro's guess in a random stream of its own."""
        device = next((arg.device for arg in args if isinstance(arg, Tensor)), torch.device("cpu"))
        with forked_random(0, device):
            super()._guess_max_plate_nesting(model, guide, args, kwargs)


def site_log_prob(site: Site) -> Tensor:
    """Return the log-probability of a site over its batch shape, in nats, without scale and mask."""
    return site["unscaled_log_prob"] if "unscaled_log_prob" in site else site["fn"].log_prob(site["value"])


def scaled_sum(term: Tensor, site: Site) -> Tensor:
    """Return the sum of a term over the batch shape of a site, with Pyro's scale and mask of the site."""
    total: Tensor = scale_and_mask(term, site["scale"], site["mask"]).sum()
    return total


def guide_factors(guide_trace: Nodes) -> list[Tensor]:
    """Return the sum of each `pyro.factor` of a guide, with its scale; Pyro adds them to the loss."""
    return [
        scaled_sum(site_log_prob(site), site)
        for site in guide_trace.nodes.values()
        if site["type"] == "sample" and isinstance(site["fn"], Unit)
    ]


def sum_terms(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors; zero if there are none."""
    return sum(terms[1:], terms[0]) if terms else torch.zeros(())


def require_gradient(name: str, site: Site) -> None:
    """Check that a draw of the guide is reparametrized.

    Raises:
        ValueError: if its distribution has no ``rsample``.

    """
    if not getattr(site["fn"], "has_rsample", False):
        raise ValueError(
            f"the guide's draw of {name!r} must have a gradient, but {type(site['fn']).__name__} cannot be "
            "reparametrized; use a distribution with has_rsample, or train by pyro.infer.SVI with TraceGraph_ELBO"
        )
