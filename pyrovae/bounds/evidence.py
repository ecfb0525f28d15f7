"""The ELBO of each datum: its reconstruction and KL terms, and the method by which each KL was computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.importance import ParticleBatch, iter_batches, iter_particles, scoring_context
from pyrovae.programs import ModelGuide, Program
from pyrovae.runtime.annotations import PositiveInt, checked


@dataclass(frozen=True, repr=False)
class ElboTerms:
    """The terms of the ELBO, nats: of each datum ``(B,)``, or of each particle ``(K, B)``.

    Attributes:
        reconstruction: E_q log p(x | z), the mean over particles; or log p(x | z) of each particle.
        kl: KL(q(z | x) || p(z)), summed over the latent sites.
        kl_of: the KL of each site.
        methods: for each site "closed form", or the reason why log q - log p was averaged over particles instead.

    """

    reconstruction: Tensor
    kl: Tensor
    kl_of: dict[str, Tensor]
    methods: dict[str, str]

    def __repr__(self) -> str:
        names = ("elbo", "reconstruction", "kl")
        means = ", ".join(f"{name} {getattr(self, name).mean():.3f}" for name in names)
        return f"ElboTerms(shape {(*self.kl.shape,)}; means: {means} nats)"

    @property
    def elbo(self) -> Tensor:
        """Reconstruction - KL."""
        return self.reconstruction - self.kl

    def map(self, function: Any) -> ElboTerms:
        """Return the terms after a linear function, such as a mean over particles."""
        kl_of = {name: function(value) for name, value in self.kl_of.items()}
        return ElboTerms(function(self.reconstruction), function(self.kl), kl_of, self.methods)


@checked
def elbo(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_particles: PositiveInt = 1,
    modules: Iterable[nn.Module] = (),
) -> ElboTerms:
    """Estimate the ELBO of each datum, with closed-form KL terms where they are valid.

    No annealing factor, plate size or `pyro.poutine.scale` reaches the result.

    Args:
        model: a Pyro program called with ``(x, *covariates)``.
        guide: another.
        x: ``(B, ...)``, the data.
        covariates: further arguments, with rows along the data plate.
        num_particles: K, draws of the guide over which log p(x | z) is averaged.
        modules: modules of the programs that cannot be found from them.

    Returns:
        Reconstruction and KL, each ``(B,)`` in nats.

    Raises:
        ValueError: if the programs break the contract (see `pyrovae.programs`).

    Example:
        >>> terms = elbo(vae.model, vae.guide, x, num_particles=10)
        >>> terms.elbo.mean(), terms.kl_of, terms.methods

    """
    args = (x, *covariates)
    with scoring_context(model, guide, args, modules=modules) as programs, torch.no_grad():
        parts = [
            elbo_terms(programs, iter_particles(programs, args, rows.to(x.device), num_particles))
            for rows in iter_batches(programs, len(x), batch_size=len(x))
        ]
    return _joined(parts)


def elbo_terms(programs: ModelGuide, particles: Iterable[ParticleBatch]) -> ElboTerms:
    """Average blocks of particles of the same data into the terms of the ELBO ``(B,)``."""
    return _joined([particle_terms(programs, block) for block in particles]).map(lambda terms: terms.mean(0))


def particle_terms(programs: ModelGuide, block: ParticleBatch) -> ElboTerms:
    """Return the terms ``(K, B)`` of the particles of a block; their mean over K estimates the ELBO."""
    kl_of = {name: block.kl[name].expand_as(block.log_likelihood) for name in programs.latents}
    return ElboTerms(block.log_likelihood, torch.stack(tuple(kl_of.values())).sum(0), kl_of, programs.kl)


def _joined(parts: list[ElboTerms]) -> ElboTerms:
    """Concatenate terms along their first axis."""
    return ElboTerms(
        reconstruction=torch.cat([terms.reconstruction for terms in parts]),
        kl=torch.cat([terms.kl for terms in parts]),
        kl_of={name: torch.cat([terms.kl_of[name] for terms in parts]) for name in parts[0].kl_of},
        methods=parts[0].methods,
    )
