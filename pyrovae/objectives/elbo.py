"""The ELBO as an objective: closed-form KL terms where they are right, and no device synchronization."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyrovae.kl import CLOSED_FORM, closed_form_kl, latent_sites
from pyrovae.pair import Program
from pyrovae.sandbox import forked_random

logger = logging.getLogger("pyrovae")


@dataclass(frozen=True)
class Terms:
    """The two terms of the objective, summed over the data plate and multiplied by Pyro's scales; 0-dim tensors, nats."""

    reconstruction: Tensor
    kl: Tensor


class ELBO(TraceMeanField_ELBO):
    """Minus the ELBO, to be minimized by `pyro.infer.SVI` or `pyrovae.fit`.

    ``loss = -(E_q log p(x | z) - beta KL(q(z | x) || p(z)))``

    It differs from `pyro.infer.TraceMeanField_ELBO` in this. A site's closed form is used only where the sum of such
    terms is the ELBO; where Monte Carlo is used instead, a line on the logger says so, and `kl_methods` holds the
    reason. The loss stays on its device until it has been used. Log-probabilities that the closed form makes
    superfluous are not computed. With beta other than 1 the loss is no bound; reported bounds never contain it.

    *beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al. 2017)*,
    https://openreview.net/forum?id=Sy2fzU9gl

    Args:
        beta: factor of the KL.
        num_particles: draws of the guide per datum, whose losses are averaged.
        vectorize_particles: run them as one more batch axis instead of one after the other.
        max_plate_nesting: batch axes that plates take up; found by a run if vectorized and not given.

    Raises:
        ValueError: if beta is negative or not finite.

    Example:
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=ELBO())
        >>> svi.step(x)

    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        num_particles: int = 1,
        vectorize_particles: bool = False,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        if not (beta >= 0 and math.isfinite(beta)):
            raise ValueError(f"beta is at least 0 and finite, but received {beta}; 1 gives the ELBO")
        if num_particles < 1:
            raise ValueError(f"the objective needs at least 1 particle, but received num_particles={num_particles}")
        super().__init__(
            num_particles=num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting
        )
        self.beta = beta
        self.kl_methods: dict[str, str] = {}

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run the pair and return reconstruction and KL, differentiable."""
        reconstructions, kls = [], []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            reconstructions.append(self._reconstruction(model_trace))
            kls.append(self._kl(model_trace, guide_trace))
        return Terms(sum(reconstructions) / self.num_particles, sum(kls) / self.num_particles)

    def combine(self, terms: Terms) -> Tensor:
        """Return the loss, a 0-dim tensor, that is made of the terms."""
        return self.beta * terms.kl - terms.reconstruction

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a 0-dim tensor with gradients."""
        return self.combine(self.terms(model, guide, *args, **kwargs))

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss as a 0-dim tensor."""
        return self.differentiable_loss(model, guide, *args, **kwargs).detach()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradients to the parameters and return the loss as a 0-dim tensor."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.detach()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[poutine.Trace, poutine.Trace]:
        """Run the pair; with validation on, through Pyro's checks, which also compute every log-probability."""
        if is_validation_enabled():
            return Trace_ELBO._get_trace(self, model, guide, args, kwargs)  # noqa: SLF001 (the base's base)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    def _guess_max_plate_nesting(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        """Let Pyro's run for this draw from streams of its own."""
        with forked_random(0):
            super()._guess_max_plate_nesting(model, guide, args, kwargs)

    def _reconstruction(self, model_trace: poutine.Trace) -> Tensor:
        sites = (site for site in model_trace.nodes.values() if site["type"] == "sample" and site["is_observed"])
        return sum(_log_prob_sum(site) for site in sites if not site["infer"].get("_deterministic"))

    def _kl(self, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> Tensor:
        """Sum the KL terms of all latent sites, each multiplied by its scale."""
        total: Any = 0.0
        for name, guide_site in latent_sites(guide_trace).items():
            if not getattr(guide_site["fn"], "has_rsample", False):
                raise ValueError(
                    f"the guide's draw of {name!r} has no gradient: {type(guide_site['fn']).__name__} cannot be "
                    "reparametrized; use a distribution with has_rsample, or train with pyro.infer.TraceGraph_ELBO"
                )
            if name not in model_trace.nodes:  # an auxiliary variable of the guide's
                total = total + _log_prob_sum(guide_site)
                continue
            model_site = model_trace.nodes[name]
            kl, method = closed_form_kl(name, model_trace, guide_trace)
            self._remember(name, method)
            if kl is None:
                total = total + _log_prob_sum(guide_site) - _log_prob_sum(model_site)
                continue
            total = total + scale_and_mask(kl, guide_site["scale"], guide_site["mask"]).sum()
            excess = _difference(guide_site["scale"], model_site["scale"])
            if excess is not None:  # s_q log q - s_p log p = s_q KL + (s_q - s_p) log p
                log_prior = model_site["fn"].log_prob(model_site["value"])
                total = total + scale_and_mask(log_prior, excess, model_site["mask"]).sum()
        return total

    def _remember(self, name: str, method: str) -> None:
        if self.kl_methods.get(name) != method:
            self.kl_methods[name] = method
            if method != CLOSED_FORM:
                logger.warning("the KL of %r is estimated by Monte Carlo: %s", name, method)


def _log_prob_sum(site: Any) -> Tensor:  # noqa: ANN401 (a message of Pyro's)
    """Return a site's scaled and masked log-probability, summed; what Pyro's checks computed is used again."""
    if "log_prob_sum" in site:
        return site["log_prob_sum"]
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"]).sum()


def _difference(a: float | Tensor, b: float | Tensor) -> float | Tensor | None:
    """Return a - b, or None where they are known to be equal without asking the device."""
    if a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b):
        return None
    return a - b
