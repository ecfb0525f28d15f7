"""The ELBO of each datum, its reconstruction and KL terms apart, and how the KL of each site was computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.importance import ParticleBatch, iter_batches, iter_particles, scoring_context
from pyrovae.importance.sampling import check_num_particles
from pyrovae.programs import ModelGuide, Program


@dataclass(frozen=True)
class ElboTerms:
    """The terms of the ELBO of each datum, nats.

    Attributes:
        reconstruction: E_q log p(x | z), ``(B,)``, the mean over particles.
        kl: KL(q(z | x) || p(z)), ``(B,)``, summed over the latent sites.
        kl_of: the same for each site.
        methods: for each site "closed form", or the reason why log q - log p was averaged over particles instead.

    """

    reconstruction: Tensor
    kl: Tensor
    kl_of: dict[str, Tensor]
    methods: dict[str, str]

    @property
    def elbo(self) -> Tensor:
        """Reconstruction - KL, ``(B,)``."""
        return self.reconstruction - self.kl


def elbo(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_particles: int = 1,
    modules: Iterable[nn.Module] = (),
) -> ElboTerms:
    """Estimate the ELBO of each datum, with closed-form KL terms where they are right.

    The arguments are those of `pyrovae.particles`. No annealing factor, plate size or `pyro.poutine.scale` reaches the
    result.

    Returns:
        The terms ``(B,)``.

    """
    check_num_particles(num_particles)
    args = (x, *covariates)
    with scoring_context(model, guide, args, modules=modules) as programs, torch.no_grad():
        parts = []
        for rows, count in iter_batches(programs, len(x), batch_size=len(x)):
            parts.append((elbo_terms(programs, iter_particles(programs, args, rows, num_particles)), count))
    return ElboTerms(
        reconstruction=torch.cat([terms.reconstruction[:count] for terms, count in parts]),
        kl=torch.cat([terms.kl[:count] for terms, count in parts]),
        kl_of={name: torch.cat([terms.kl_of[name][:count] for terms, count in parts]) for name in programs.latents},
        methods=programs.kl,
    )


def elbo_terms(programs: ModelGuide, particles: Iterable[ParticleBatch]) -> ElboTerms:
    """Average blocks of particles of the same data into the terms of the ELBO ``(B,)``."""
    total = 0
    reconstruction: float | Tensor = 0.0
    kl_of: dict[str, float | Tensor] = dict.fromkeys(programs.latents, 0.0)
    for block in particles:
        size = len(block.log_likelihood)
        total += size
        reconstruction = reconstruction + block.log_likelihood.sum(0)
        kl_of = {name: kl_of[name] + value.expand(size, -1).sum(0) for name, value in block.kl.items()}
    means = {name: torch.as_tensor(value) / total for name, value in kl_of.items()}
    kl = torch.stack(tuple(means.values())).sum(0)
    return ElboTerms(torch.as_tensor(reconstruction) / total, kl, means, programs.kl)
