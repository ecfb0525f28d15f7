"""The ELBO as an objective: closed-form KL terms where they are right, and no device synchronization."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.importance.sampling import check_num_particles
from pyrovae.objectives.base import Objective, Terms, require_gradient, site_log_prob
from pyrovae.objectives.schedules import Constant, Schedule
from pyrovae.objectives.sites import sites_of
from pyrovae.programs import Program
from pyrovae.programs.analytic_kl import CLOSED_FORM, Nodes, closed_form_kl, kl_by_dimension, latent_sites

logger = logging.getLogger("pyrovae")


class ELBO(Objective):
    """Minus the ELBO, to be minimized by `pyro.infer.SVI` or `pyrovae.fit`.

    ``loss = -(E_q log p(x | z) - beta annealing(step) sum_j max(free_bits, KL_j))``

    It differs from `pyro.infer.TraceMeanField_ELBO` in this. A site's closed form is used only where the sum of such
    terms is the ELBO; where Monte Carlo is used instead, a line on the logger says so, and `kl_methods` holds the
    reason. The loss stays on its device until it has been used. Log-probabilities that the closed form makes
    superfluous are not computed.

    With beta other than 1, annealing or free bits the loss is no bound; reported bounds never contain them. Free bits
    hold for the KL_j of each latent dimension, averaged over the minibatch, particles and plates inside, without
    what is masked. Where the KL of a site is not a sum over dimensions (a full-covariance guide, a mixture prior), the
    site as a whole gets free_bits times its dimensions.

    *beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al. 2017)*,
    https://openreview.net/forum?id=Sy2fzU9gl;
    *Improved variational inference with inverse autoregressive flow (Kingma et al. 2016)* for free bits,
    https://arxiv.org/abs/1606.04934

    Args:
        beta: factor of the KL.
        free_bits: nats of KL per latent dimension up to which it costs the same, so that nothing pushes it lower.
        annealing: a factor of the KL that changes from step to step, such as ``schedules.Linear(1000)``.
        num_particles: draws of the guide per datum, whose losses are averaged.
        vectorize_particles: run them as one more batch axis instead of one after the other.
        max_plate_nesting: batch axes that plates take up; found by a run if vectorized and not given.

    Raises:
        ValueError: if beta or free_bits is negative or not finite.

    Example:
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=ELBO())
        >>> svi.step(x)

    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        free_bits: float = 0.0,
        annealing: Schedule | None = None,
        num_particles: int = 1,
        vectorize_particles: bool = False,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        if not (beta >= 0 and math.isfinite(beta)):
            raise ValueError(f"beta is at least 0 and finite, but received {beta}; 1 gives the ELBO")
        if not (free_bits >= 0 and math.isfinite(free_bits)):
            raise ValueError(f"free_bits is at least 0 and finite, but received {free_bits}; 0 gives the ELBO")
        check_num_particles(num_particles)
        super().__init__(
            num_particles=num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting
        )
        self.beta = beta
        self.free_bits = free_bits
        self.annealing = annealing or Constant()
        self.kl_methods: dict[str, str] = {}

    def kl_weight(self) -> float:
        """Return beta times the annealing of the present step."""
        return self.beta * self.annealing(self.step)

    @property
    def fixed(self) -> tuple[object, ...]:
        """What a recorded step took from the objective as it was."""
        return (self.num_particles, self.free_bits, self.vectorize_particles, self.max_plate_nesting)

    def describe(self) -> dict[str, object]:
        """Return class and options, as a run folder keeps them."""
        return {
            "class": type(self).__name__,
            "beta": self.beta,
            "free_bits": self.free_bits,
            "annealing": self.annealing.describe(),
            "num_particles": self.num_particles,
        }

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run the pair on ``args`` and return the loss with its terms."""
        reconstruction, kl, floors = _Sum(), _Sum(), _Floors(self.free_bits)
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            for site in model_trace.nodes.values():
                if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic"):
                    reconstruction.add(site_log_prob(site), site)
            self._add_kl(kl, floors, model_trace, guide_trace)
        weighted = kl.scaled + floors.total() if self.free_bits else kl.scaled
        factor = self.kl_weight()
        alone = not isinstance(factor, Tensor) and factor == 1
        loss = (weighted if alone else factor * weighted) - reconstruction.scaled
        totals = [torch.as_tensor(total) for total in (loss, reconstruction.unscaled, kl.unscaled)]
        return Terms(*(total if self.num_particles == 1 else total / self.num_particles for total in totals))

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Nodes, Nodes]:
        """Run the pair; with validation on, through Pyro's checks, which also compute every log-probability."""
        if is_validation_enabled():
            return Trace_ELBO._get_trace(self, model, guide, args, kwargs)
        drawn = sites_of(guide, *args, **kwargs)
        return sites_of(model, *args, drawn=drawn, **kwargs), drawn

    def _add_kl(self, total: _Sum, floors: _Floors, model_trace: Nodes, guide_trace: Nodes) -> None:
        """Add the KL terms of all latent sites."""
        for name, guide_site in latent_sites(guide_trace).items():
            require_gradient(name, guide_site)
            if name not in model_trace.nodes:  # an auxiliary variable of the guide's
                total.add(site_log_prob(guide_site), guide_site)
                continue
            model_site = model_trace.nodes[name]
            kl, method = closed_form_kl(name, model_trace, guide_trace)
            self._remember(name, method)
            alike = _weighted_alike(guide_site, model_site)
            if self.free_bits:
                if not alike or (isinstance(guide_site["scale"], Tensor) and guide_site["scale"].ndim):
                    raise ValueError(
                        f"free bits need one scale and mask for {name!r}, but model and guide do not share theirs; "
                        "scale both by the same number, mask both by the very same tensor, or set free_bits=0"
                    )
                by_dimension = kl_by_dimension(guide_site, model_site, closed_form=kl is not None)
                floors.add(
                    name,
                    by_dimension if by_dimension is not None else _joint_kl(kl, guide_site, model_site),
                    guide_site,
                    joint=by_dimension is None,
                )
            scaled = not self.free_bits
            if kl is None:
                total.add(site_log_prob(guide_site), guide_site, scaled=scaled)
                total.add(-site_log_prob(model_site), model_site, scaled=scaled)
                continue
            total.add(kl, guide_site, scaled=scaled)
            if not alike:  # a log q - b log p = a (log q - log p) + (a - b) log p
                log_prior = site_log_prob(model_site)
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

    def add(self, term: Tensor, site: Any, *, scaled: bool = True) -> None:
        """Add a term over the batch shape of a site; to the unscaled sum alone if not ``scaled``."""
        scale = site["scale"]
        weighted = scale_and_mask(term, scale, site["mask"]).sum()
        if scaled:
            self.scaled = _plus(self.scaled, weighted)
        if isinstance(scale, Tensor):
            unscaled = scale_and_mask(term.detach(), mask=site["mask"]).sum()
        else:
            unscaled = weighted.detach() if scale == 1 else weighted.detach() / scale
        self.unscaled = _plus(self.unscaled, unscaled)


def _plus(total: float | Tensor, term: Tensor) -> Tensor:
    """Return the sum; of the first term the term itself, without an operation that has to be gone through backwards."""
    return total + term if isinstance(total, Tensor) else term


class _Floors:
    """KL terms averaged over data and particles, each counted as no less than the free bits."""

    def __init__(self, free_bits: float) -> None:
        self.free_bits = free_bits
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int | Tensor] = {}
        self.floors: dict[str, float] = {}
        self.scales: dict[str, Any] = {}

    def add(self, name: str, kl: Tensor, site: Any, *, joint: bool) -> None:
        """Add the KL of a site, over its batch shape and, unless it is of all dimensions jointly, its event shape."""
        batch_shape, event_shape = site["fn"].batch_shape, site["fn"].event_shape
        mask = site["mask"]
        count: int | Tensor = batch_shape.numel()
        if isinstance(mask, Tensor):  # what is masked is not there, neither in the sum nor in the mean
            count = mask.expand(batch_shape).sum()
            mask = mask if joint else mask.reshape(*mask.shape, *(1,) * len(event_shape))
        kl = scale_and_mask(kl, mask=mask)
        kl = kl.expand(batch_shape + kl.shape[len(batch_shape) :])
        self.sums[name] = self.sums.get(name, 0.0) + kl.sum(tuple(range(len(batch_shape))))
        self.counts[name] = self.counts.get(name, 0) + count
        self.floors[name] = self.free_bits * (event_shape.numel() if joint else 1)
        self.scales[name] = site["scale"]

    def total(self) -> Tensor | float:
        """Return the sum over data, particles and dimensions, multiplied by Pyro's scales."""
        total: Tensor | float = 0.0
        for name, found in self.sums.items():  # count max(floor, sum / count)
            total = total + self.scales[name] * found.clamp(min=self.floors[name] * self.counts[name]).sum()
        return total


def _joint_kl(kl: Tensor | None, guide_site: Any, model_site: Any) -> Tensor:
    """Return the KL of a site over its batch shape: its closed form, or log q - log p of the draw."""
    return site_log_prob(guide_site) - site_log_prob(model_site) if kl is None else kl


def _weighted_alike(a: Any, b: Any) -> bool:
    """Tell whether two sites are known to have the same scale and mask without asking the device."""
    scales = (a["scale"], b["scale"])
    known = not any(isinstance(scale, Tensor) for scale in scales)
    return a["mask"] is b["mask"] and (scales[0] is scales[1] or (known and scales[0] == scales[1]))
