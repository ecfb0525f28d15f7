"""The ELBO as an objective: closed-form KL terms where they are right, and no device synchronization."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
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
    """The two terms of the objective, summed over the data plate; 0-dim tensors, nats.

    Attributes:
        reconstruction: multiplied by Pyro's scales, differentiable.
        kl: the same.
        unscaled_reconstruction: as it belongs to the ELBO of the minibatch, without gradients.
        unscaled_kl: the same.

    """

    reconstruction: Tensor
    kl: Tensor
    unscaled_reconstruction: Tensor
    unscaled_kl: Tensor


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
        if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(f"num_particles is a whole number of at least 1, but received {num_particles!r}")
        super().__init__(
            num_particles=num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting
        )
        self.beta = beta
        self.kl_methods: dict[str, str] = {}

    def describe(self) -> dict[str, object]:
        """Return class and options, as a run folder keeps them."""
        return {"class": type(self).__name__, "beta": self.beta, "num_particles": self.num_particles}

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run the pair and return reconstruction and KL, differentiable."""
        reconstruction, kl = _Sum(), _Sum()
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            for site in model_trace.nodes.values():
                if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic"):
                    reconstruction.add(_log_prob(site), site)
            self._add_kl(kl, model_trace, guide_trace)
        totals = (reconstruction.scaled, kl.scaled, reconstruction.unscaled, kl.unscaled)
        return Terms(*(torch.as_tensor(total) / self.num_particles for total in totals))

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
            return Trace_ELBO._get_trace(self, model, guide, args, kwargs)  # without the warning of the base between
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    def _guess_max_plate_nesting(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        """Let Pyro's run for this draw from streams of its own."""
        with forked_random(0, "cuda" if torch.cuda.is_initialized() else "cpu"):
            super()._guess_max_plate_nesting(model, guide, args, kwargs)

    def _add_kl(self, total: _Sum, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> None:
        """Add the KL terms of all latent sites."""
        for name, guide_site in latent_sites(guide_trace).items():
            if not getattr(guide_site["fn"], "has_rsample", False):
                raise ValueError(
                    f"the guide's draw of {name!r} has no gradient: {type(guide_site['fn']).__name__} cannot be "
                    "reparametrized; use a distribution with has_rsample, or train with pyro.infer.TraceGraph_ELBO"
                )
            if name not in model_trace.nodes:  # an auxiliary variable of the guide's
                total.add(_log_prob(guide_site), guide_site)
                continue
            model_site = model_trace.nodes[name]
            kl, method = closed_form_kl(name, model_trace, guide_trace)
            self._remember(name, method)
            if kl is None:
                total.add(_log_prob(guide_site), guide_site)
                total.add(-_log_prob(model_site), model_site)
                continue
            total.add(kl, guide_site)
            if not _weighted_alike(guide_site, model_site):  # a log q - b log p = a (log q - log p) + (a - b) log p
                log_prior = _log_prob(model_site)
                total.add(log_prior, guide_site)
                total.add(-log_prior, model_site)

    def _remember(self, name: str, method: str) -> None:
        if self.kl_methods.get(name) != method:
            self.kl_methods[name] = method
            if method != CLOSED_FORM:
                logger.warning("the KL of %r is estimated by Monte Carlo: %s", name, method)


class _Sum:
    """A sum of the terms of several sites, once with their scales and once without, both with their masks."""

    def __init__(self) -> None:
        self.scaled: float | Tensor = 0.0
        self.unscaled: float | Tensor = 0.0

    def add(self, term: Tensor, site: Any) -> None:
        """Add a term over the batch shape of a site."""
        scale = site["scale"]
        scaled = scale_and_mask(term, scale, site["mask"]).sum()
        self.scaled = self.scaled + scaled
        known = not isinstance(scale, Tensor)
        unscaled = scaled.detach() / scale if known else scale_and_mask(term.detach(), mask=site["mask"]).sum()
        self.unscaled = self.unscaled + unscaled


def _log_prob(site: Any) -> Tensor:
    """Return a site's log-probability, free of scale and mask; what Pyro's checks computed is used again."""
    return site["unscaled_log_prob"] if "unscaled_log_prob" in site else site["fn"].log_prob(site["value"])


def _weighted_alike(a: Any, b: Any) -> bool:
    """Tell whether two sites are known to have the same scale and mask without asking the device."""
    scales = (a["scale"], b["scale"])
    known = not any(isinstance(scale, Tensor) for scale in scales)
    return a["mask"] is b["mask"] and (scales[0] is scales[1] or (known and scales[0] == scales[1]))
