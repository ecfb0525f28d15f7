"""Mixture of Gaussians as a prior."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyrovae.distributions import NormalMixture
from pyrovae.priors.base import Prior
from pyrovae.runtime.annotations import PositiveInt


class MixtureOfGaussians(Prior):
    """``p(z) = sum_c w_c N(z; m_c, diag s_c^2)`` with learned w, m and s.

    The components start with equal weights and unit scales at locations drawn from N(0, I), so that they differ.

    *VAE with a VampPrior (Tomczak, Welling 2018)*, https://arxiv.org/abs/1705.07120, for a comparison of priors.

    Args:
        latent_dim: D, the number of latent dimensions.
        num_components: C, the number of components.

    Raises:
        ValueError: if latent_dim < 1 or num_components < 1.

    """

    def __init__(self, latent_dim: PositiveInt, *, num_components: PositiveInt = 10) -> None:
        super().__init__(latent_dim)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.locs = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scales = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> TorchDistribution:
        """Return the mixture, of event shape ``(latent_dim,)``."""
        return NormalMixture(self.logits, self.locs, self.log_scales.exp())
