"""ELBO objective with analytic KL terms and no device synchronization."""

from __future__ import annotations

import logging
from typing import Any

from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyrovae.distributions import NormalFlow
from pyrovae.objectives.base import (
    Objective,
    Site,
    Terms,
    guide_factors,
    require_gradient,
    scaled_sum,
    site_log_prob,
    sum_terms,
)
from pyrovae.objectives.schedules import Constant, Schedule
from pyrovae.programs import Program
from pyrovae.programs.analytic_kl import (
    CLOSED_FORM,
    Nodes,
    closed_form_kl,
    kl_by_dimension,
    latent_sites,
    observed_sites,
)
from pyrovae.programs.site_checks import unwrapped
from pyrovae.runtime.annotations import NonNegativeFloat, PositiveInt, checked

logger = logging.getLogger("pyrovae")


class ELBO(Objective):
    """Minus the ELBO, to be minimized by `pyro.infer.SVI` or `pyrovae.fit`.

    ``loss = -(E_q log p(x | z) - beta annealing(step) sum_j max(free_bits, KL_j))``

    It differs from `pyro.infer.TraceMeanField_ELBO` in four ways. The closed form of a site is used only if the sum of
    these terms is the ELBO; otherwise a warning on the logger names the reason, and `kl_methods` holds it. The loss
    stays on its device. Log-probabilities that a closed form replaces are not computed. The gradient of a KL without a
    closed form leaves out the score of the guide, which has mean zero and adds noise, unless there are free bits.

    With beta other than 1, annealing or free bits the loss is no bound; reported bounds never contain them. Free bits
    apply to the KL_j of each latent dimension, averaged over the unmasked data of the minibatch, particles and inner
    plates. If the KL of a site is not a sum over dimensions (a full-covariance guide, a mixture prior), the site as a
    whole gets free_bits times its number of dimensions.

    *Sticking the landing: Simple, lower-variance gradient estimators for variational inference (Roeder, Wu, Duvenaud
    2017)*, https://arxiv.org/abs/1703.09194, for the score;
    *beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al. 2017)*,
    https://openreview.net/forum?id=Sy2fzU9gl;
    *Improved variational inference with inverse autoregressive flow (Kingma et al. 2016)* for free bits,
    https://arxiv.org/abs/1606.04934

    Args:
        beta: factor of the KL.
        free_bits: nats of KL per latent dimension below which the KL costs the same, so that nothing pushes it lower.
        annealing: a factor of the KL that changes from step to step, such as ``schedules.Linear(1000)``.
        num_particles: draws of the guide per datum, whose losses are averaged.
        vectorize_particles: run the particles as one more batch axis instead of one after the other.
        max_plate_nesting: number of batch axes of plates; found by a run if vectorized and not given.

    Raises:
        ValueError: if beta or free_bits is negative or not finite.

    Example:
        >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=ELBO())
        >>> svi.step(x)

    """

    @checked
    def __init__(
        self,
        *,
        beta: NonNegativeFloat = 1.0,
        free_bits: NonNegativeFloat = 0.0,
        annealing: Schedule | None = None,
        num_particles: PositiveInt = 1,
        vectorize_particles: bool = False,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        super().__init__(
            num_particles=num_particles, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting
        )
        self.beta = beta
        self.free_bits = free_bits
        self.annealing = annealing or Constant()
        self.kl_methods: dict[str, str] = {}

    def kl_weight(self) -> float:
        """Return beta times the annealing of the current step."""
        return self.beta * self.annealing(self.step)

    @property
    def fixed(self) -> tuple[object, ...]:
        """Options that a traced step holds fixed; if they change, the step is traced again."""
        return (self.num_particles, self.free_bits, self.vectorize_particles, self.max_plate_nesting)

    def describe(self) -> dict[str, object]:
        """Return class name and options as JSON types, for the run folder."""
        options = {"beta": self.beta, "free_bits": self.free_bits, "annealing": self.annealing.describe()}
        return super().describe() | options

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run model and guide on ``args`` and return the loss with its terms."""
        reconstruction, kl, floors = _WeightedSum(), _WeightedSum(), _FreeBits(self.free_bits)
        factors: list[Tensor] = []
        for model_trace, guide_trace in self.traces(model, guide, *args, **kwargs):
            factors += guide_factors(guide_trace)
            for site in observed_sites(model_trace).values():
                reconstruction.add(site_log_prob(site), site)
            for name, site in latent_sites(guide_trace).items():
                require_gradient(name, site)
                if name in model_trace.nodes:
                    self._add_kl(kl, floors, name, model_trace, guide_trace)
                else:  # an auxiliary variable of the guide
                    kl.add(site_log_prob(site), site)
        weighted = sum_terms([*kl.scaled, *floors.terms()])
        weight = self.kl_weight()
        if isinstance(weight, Tensor) or weight != 1:
            weighted = weight * weighted
        loss = sum_terms([weighted - sum_terms(reconstruction.scaled), *factors])
        totals = (loss, *map(sum_terms, (reconstruction.unscaled, kl.unscaled)))
        return Terms(*(total if self.num_particles == 1 else total / self.num_particles for total in totals))

    def _add_kl(
        self, total: _WeightedSum, floors: _FreeBits, name: str, model_trace: Nodes, guide_trace: Nodes
    ) -> None:
        """Add the KL of one latent site, in closed form if that is a term of the ELBO."""
        guide_site, model_site = guide_trace.nodes[name], model_trace.nodes[name]
        kl, method = closed_form_kl(name, model_trace, guide_trace)
        if self.kl_methods.get(name) != method:
            self.kl_methods[name] = method
            if method != CLOSED_FORM:
                logger.warning("the KL of %r is estimated by Monte Carlo: %s", name, method)
        shared_weights = _share_weights(guide_site, model_site)
        scaled = not self.free_bits
        if self.free_bits:
            if not shared_weights or (isinstance(guide_site["scale"], Tensor) and guide_site["scale"].ndim):
                raise ValueError(
                    f"free bits need one scale and mask for {name!r}, but model and guide do not share theirs; "
                    "scale both by the same number, mask both by the very same tensor, or set free_bits=0"
                )
            floors.add(name, kl, guide_site, model_site)
        if kl is None:
            total.add(_log_guide_along_path(guide_trace, name), guide_site, scaled=scaled)
            total.add(-site_log_prob(model_site), model_site, scaled=scaled)
            return
        total.add(kl, guide_site, scaled=scaled)
        if not shared_weights:  # a log q - b log p = a (log q - log p) + (a - b) log p
            log_prior = site_log_prob(model_site)
            total.add(log_prior, guide_site)
            total.add(-log_prior, model_site)


class _WeightedSum:
    """Terms of several sites summed over their batch shapes, masked, with and without the scales of their sites."""

    def __init__(self) -> None:
        self.scaled: list[Tensor] = []
        self.unscaled: list[Tensor] = []

    def add(self, term: Tensor, site: Site, *, scaled: bool = True) -> None:
        """Add a term over the batch shape of a site; to the unscaled sum alone if not ``scaled``."""
        scale = site["scale"]
        weighted = scaled_sum(term, site)
        if scaled:
            self.scaled.append(weighted)
        if isinstance(scale, Tensor):
            weighted, scale = scale_and_mask(term.detach(), mask=site["mask"]).sum(), 1
        self.unscaled.append(weighted.detach() if scale == 1 else weighted.detach() / scale)


class _FreeBits:
    """KL terms averaged over data and particles, each counted as at least the free bits."""

    def __init__(self, free_bits: float) -> None:
        self.free_bits = free_bits
        self.sites: dict[str, tuple[Any, Any, float, Any]] = {}  # sum of the KL, count, smallest mean, Pyro's scale

    def add(self, name: str, kl: Tensor | None, guide_site: Site, model_site: Site) -> None:
        """Add one run's KL of a site: of each dimension, or of all of them if it is not a sum over dimensions.

        Args:
            name: name of the site.
            kl: its closed form over the batch shape, None if it is estimated.
            guide_site: the site of the guide.
            model_site: the site of the model.

        """
        batch_shape, event_shape = guide_site["fn"].batch_shape, guide_site["fn"].event_shape
        terms = kl_by_dimension(guide_site, model_site, closed_form=kl is not None)
        joint = terms is None
        if terms is None:
            terms = site_log_prob(guide_site) - site_log_prob(model_site) if kl is None else kl
        mask = guide_site["mask"]
        count: int | Tensor = batch_shape.numel()
        if isinstance(mask, Tensor):  # masked data are left out of the sum and of the mean
            count = mask.expand(batch_shape).sum()
            mask = mask if joint else mask.reshape(*mask.shape, *(1,) * len(event_shape))
        terms = scale_and_mask(terms, mask=mask)
        terms = terms.expand(batch_shape + terms.shape[len(batch_shape) :])
        total, number, *_ = self.sites.get(name, (0.0, 0))
        floor = self.free_bits * (event_shape.numel() if joint else 1)
        total = total + terms.sum(tuple(range(len(batch_shape))))
        self.sites[name] = (total, number + count, floor, guide_site["scale"])

    def terms(self) -> list[Tensor]:
        """Return for each site the sum over data, particles and dimensions, multiplied by Pyro's scales."""
        return [  # count max(floor, sum / count)
            scale * total.clamp(min=floor * count).sum() for total, count, floor, scale in self.sites.values()
        ]


def _log_guide_along_path(guide_trace: Nodes, name: str) -> Tensor:
    """Return log q of a draw without its score in the gradient, the derivative by the parameters at a fixed draw.

    The score has mean zero. It stays for draws after the first one, since their parameters may depend on other draws,
    and for Pyro's transformed distributions, which would have to invert the draw.
    """
    site = guide_trace.nodes[name]
    fn, value = site["fn"], site["value"]
    log_prob = site_log_prob(site)
    if name != next(iter(latent_sites(guide_trace))) or isinstance(unwrapped(fn), TransformedDistribution):
        return log_prob
    score = fn.base_log_prob(value) if isinstance(fn, NormalFlow) else fn.log_prob(value.detach())
    return log_prob - (score - score.detach())


def _share_weights(a: Site, b: Site) -> bool:
    """Return whether two sites are known to have the same scale and mask, without device synchronization."""
    scales = (a["scale"], b["scale"])
    numbers = not any(isinstance(scale, Tensor) for scale in scales)
    return a["mask"] is b["mask"] and (scales[0] is scales[1] or (numbers and scales[0] == scales[1]))
