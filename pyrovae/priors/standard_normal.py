"""Standard normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from pyrovae.priors.base import Prior
from pyrovae.runtime.annotations import PositiveInt


class StandardNormal(Prior):
    """``p(z) = N(z; 0, I)``, without parameters.

    *Auto-encoding variational Bayes (Kingma, Welling 2014)*, https://arxiv.org/abs/1312.6114
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: PositiveInt) -> None:
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return N(0, I), of event shape ``(latent_dim,)``."""
        return dist.Normal(self.loc, self.scale).to_event(1)
