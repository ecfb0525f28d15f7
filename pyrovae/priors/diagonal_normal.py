"""Diagonal normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyrovae.priors.base import Prior
from pyrovae.runtime.annotations import PositiveInt


class DiagonalNormal(Prior):
    """``p(z) = N(z; loc, diag exp(log_scale)^2)`` with learned loc and log_scale, initially N(0, I).

    The first layer of the networks can undo this prior: it makes training easier, not the model richer.

    Args:
        latent_dim: D, the number of latent dimensions.

    """

    def __init__(self, latent_dim: PositiveInt) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> TorchDistribution:
        """Return the normal, of event shape ``(latent_dim,)``."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
