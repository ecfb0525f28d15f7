"""Unconstrained coordinates of the latent variables, and the densities of model and guide over them."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import MixtureSameFamilyConstraint
from torch.distributions.transforms import Transform

from pyrovae.importance.particle_batches import draw_guide, draw_prior, score_guide, score_model
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.layout import from_pyro, sum_over_sites, to_float64
from pyrovae.programs.site_checks import PERIOD, is_periodic
from pyrovae.runtime.context import forked_random

logger = logging.getLogger("pyrovae")

Mapped = tuple[dict[str, Tensor], Tensor]  # z of each site, and log |dz/du|
RUN_TO_RUN = 1e-4  # largest difference of two runs, relative and in nats, more than rounding
ROUND_TRIP = 1e-3  # largest relative error of z mapped to u and back


class UnconstrainedLatents:
    """All latent variables of some rows as vectors u in R^D, for methods that follow gradients.

    ``z = T(u)``, site by site with torch's bijection to its support, and ``log p(x, u) = log p(x, z) + log |dz/du|``

    Densities are differentiable in u, chunk by chunk, and free of plate and scale factors.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.

    Raises:
        ValueError: if the support of a site differs between elements.

    """

    def __init__(self, programs: ModelGuide, args: tuple[Any, ...], rows: Tensor) -> None:
        self.programs, self.args, self.rows = programs, args, rows
        guide_trace, _ = run(*programs.bind(args, rows))
        self._transforms: dict[str, Transform] = {}
        self._shapes: dict[str, torch.Size] = {}
        for name in programs.latents:
            site = guide_trace.nodes[name]
            z = from_pyro(programs, name, site["value"])
            support = PERIOD if is_periodic(site["fn"]) else site["fn"].support
            while isinstance(support, MixtureSameFamilyConstraint):  # torch has no transform for it
                support = support.base_constraint
            transform = biject_to(support)
            if not _comes_back(transform, z):
                raise ValueError(
                    f"the support of {name!r} cannot be brought to all of R: it varies along a plate inside the data "
                    "plate, or z lies on its edge; give the site a support that is the same for all elements"
                )
            self._transforms[name], self._shapes[name] = transform, transform.inv(z).shape[2:]
        self.sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}

    def check_densities(self, *, with_guide: bool) -> None:
        """Check the densities at two draws of the guide, from a random stream apart, before chains follow them.

        Log one line if log p(x | z) changes with z but passes no gradient to it.

        Raises:
            ValueError: if model or guide draws random numbers beside z, such as dropout.

        """
        with forked_random(0, self.rows.device), torch.enable_grad():
            u = self.draw(2)[0].requires_grad_()
            _, log_likelihood = self.log_joint_terms(u)
            for log_density in (self.log_joint, self.log_guide) if with_guide else (self.log_joint,):
                if not torch.allclose(log_density(u), log_density(u), rtol=RUN_TO_RUN, atol=RUN_TO_RUN, equal_nan=True):
                    raise ValueError(
                        "chains need the same densities in each run of model and guide, but two runs at the same z "
                        "differ; turn off dropout and other random numbers beside z"
                    )
        if not log_likelihood.requires_grad and not torch.equal(log_likelihood[0], log_likelihood[1]):
            logger.warning(
                "log p(x | z) passes no gradient to z (it is computed under torch.no_grad, or detached): chains find "
                "their way by the prior alone, so that AIS is loose, and gaps have no meaning"
            )

    @property
    def dim(self) -> int:
        """D, the number of latent dimensions of a datum over all sites."""
        return sum(self.sizes.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the D dimensions, such as ``z[3]``."""
        return tuple(
            f"{name}[{', '.join(map(str, index))}]" if index else name
            for name, shape in self._shapes.items()
            for index in itertools.product(*map(range, shape))
        )

    def draw(self, num_particles: int) -> tuple[Tensor, Tensor]:
        """Draw u ``(K, B, D)`` from the guide, with log q(u | x) ``(K, B)``, without gradients."""
        with torch.no_grad():
            z, log_guide = draw_guide(self.programs, self.args, self.rows, num_particles)
            u = self.flatten(z)
            return u, sum_over_sites(log_guide) + self.log_det(u)

    def draw_prior(self, num_particles: int) -> Tensor:
        """Draw u ``(K, B, D)`` from the prior."""
        with torch.no_grad():
            return self.flatten_prior(draw_prior(self.programs, self.args, self.rows, num_particles))

    def flatten_prior(self, z: Mapping[str, Tensor]) -> Tensor:
        """Return u ``(K, B, D)`` for draws z of the prior.

        Raises:
            ValueError: if they leave the support of the guide, so that no u has the value z.

        """
        for name, transform in self._transforms.items():
            if not _comes_back(transform, z[name]):
                raise ValueError(
                    f"the prior draws {name!r} outside the support of the guide, where chains never go; give the guide "
                    "the support of the prior"
                )
        return self.flatten(z)

    def flatten(self, z: Mapping[str, Tensor]) -> Tensor:
        """Return u ``(K, B, D)`` for z ``(K, B, ...)`` of each site."""
        parts = (transform.inv(z[name]) for name, transform in self._transforms.items())
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], 2)

    def log_joint(self, u: Tensor) -> Tensor:
        """Return log p(x, u) ``(K, B)`` in nats and float64."""
        log_prior, log_likelihood = self.log_joint_terms(u)
        return log_prior + log_likelihood

    def log_det(self, u: Tensor) -> Tensor:
        """Return log |dz/du| ``(K, B)`` for u ``(K, B, D)``."""
        return self.to_latents(u)[1]

    def log_joint_terms(self, u: Tensor, mapped: Mapped | None = None) -> tuple[Tensor, Tensor]:
        """Return log p(u) and log p(x | u), each ``(K, B)`` in nats and float64; `mapped` is `to_latents` of u."""
        z, log_det = mapped or self.to_latents(u)
        scores = score_model(self.programs, self.args, self.rows, z, with_kl=False)
        return sum_over_sites(scores.prior) + log_det, scores.likelihood

    def log_guide(self, u: Tensor, mapped: Mapped | None = None) -> Tensor:
        """Return log q(u | x) ``(K, B)`` in nats and float64; `mapped` is `to_latents` of u."""
        z, log_det = mapped or self.to_latents(u)
        return sum_over_sites(score_guide(self.programs, self.args, self.rows, z)) + log_det

    def to_latents(self, u: Tensor) -> Mapped:
        """Return z ``(K, B, ...)`` of each site, and log |dz/du| ``(K, B)``."""
        z, total = {}, to_float64(u.new_zeros(u.shape[:2]))
        for (name, transform), part in zip(
            self._transforms.items(), u.split(list(self.sizes.values()), 2), strict=True
        ):
            part = part.reshape(*part.shape[:2], *self._shapes[name])
            z[name] = transform(part)
            log_det = transform.log_abs_det_jacobian(part, z[name])
            total = total + to_float64(log_det).reshape(*u.shape[:2], -1).sum(2)
        return z, total


def _comes_back(transform: Transform, z: Tensor) -> bool:
    """Return whether z mapped to u and back is z."""
    try:
        there, back = (value.nan_to_num(0.0).broadcast_to(z.shape) for value in (z, transform(transform.inv(z))))
        return torch.allclose(back, there, rtol=ROUND_TRIP, atol=ROUND_TRIP * there.abs().max().item())
    except (RuntimeError, ValueError):
        return False
