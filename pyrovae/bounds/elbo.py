"""The ELBO of each datum, its reconstruction and KL terms apart, and how the KL of each site was computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.pair import Pair, Program
from pyrovae.particles import Block, blocks, check_num_particles, scoring, walk


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
    with scoring(model, guide, args, modules=modules) as pair, torch.no_grad():
        parts = []
        for rows, count in walk(pair, len(x), batch_size=len(x)):
            terms = elbo_terms(pair, blocks(pair, args, rows, num_particles))
            parts.append([terms.reconstruction[:count], *(terms.kl_of[name][:count] for name in pair.latents)])
        reconstruction, *kls = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        return ElboTerms(
            reconstruction,
            sum(kls, torch.zeros_like(reconstruction)),
            dict(zip(pair.latents, kls, strict=True)),
            pair.kl,
        )


def elbo_terms(pair: Pair, particles: Iterable[Block]) -> ElboTerms:
    """Average blocks of particles of the same data into the terms of the ELBO ``(B,)``."""
    count = 0
    sums: dict[str | None, Tensor] = {}
    for block in particles:
        size = len(block.log_likelihood)
        count += size
        values = {None: block.log_likelihood, **block.kl}
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value.expand(size, -1).sum(0)
    means = {name: total / count for name, total in sums.items()}
    reconstruction = means.pop(None)
    return ElboTerms(reconstruction, sum(means.values(), torch.zeros_like(reconstruction)), means, pair.kl)
