"""Draws of a guide and their log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Particles:
    """Draws from a guide and their log-probabilities.

    Attributes:
        z: for each latent site ``(K, B, ...)``.
        log_prior: log p(z), ``(K, B)``, nats.
        log_likelihood: log p(x | z), ``(K, B)``, nats.
        log_guide: log q(z | x), ``(K, B)``, nats.

    """

    z: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z | x), ``(K, B)``, nats."""
        return self.log_prior + self.log_likelihood - self.log_guide

    @classmethod
    def concatenate(cls, parts: Sequence[Particles]) -> Particles:
        """Join particles of different data."""
        return cls(
            z={name: torch.cat([part.z[name] for part in parts], 1) for name in parts[0].z},
            log_prior=torch.cat([part.log_prior for part in parts], 1),
            log_likelihood=torch.cat([part.log_likelihood for part in parts], 1),
            log_guide=torch.cat([part.log_guide for part in parts], 1),
        )
