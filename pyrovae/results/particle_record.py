"""Draws of a guide and their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_PROBS = "log_prior", "log_likelihood", "log_guide"


@dataclass(frozen=True, repr=False)
class Particles:
    """Draws of a guide and their log-probabilities.

    Attributes:
        z: values of each latent site, ``(K, B, ...)``.
        log_prior: log p(z), ``(K, B)``, nats.
        log_likelihood: log p(x | z), ``(K, B)``, nats.
        log_guide: log q(z | x), ``(K, B)``, nats.

    """

    z: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor

    def __repr__(self) -> str:
        num_particles, num_data = self.log_prior.shape
        return f"Particles({num_particles} of {num_data} data; latent sites {', '.join(map(repr, self.z))})"

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z | x), ``(K, B)``, nats."""
        return self.log_prior + self.log_likelihood - self.log_guide

    def first(self, num_data: int) -> Particles:
        """Return the particles of the first data."""
        z = {site: value[:, :num_data] for site, value in self.z.items()}
        return Particles(z, *(getattr(self, name)[:, :num_data] for name in LOG_PROBS))

    @staticmethod
    def concatenate(parts: Sequence[Particles], dim: int) -> Particles:
        """Return one record of several batches of particles (dim 0) or of data (dim 1)."""
        z = {site: torch.cat([part.z[site] for part in parts], dim) for site in parts[0].z}
        return Particles(z, *(torch.cat([getattr(part, name) for part in parts], dim) for name in LOG_PROBS))
