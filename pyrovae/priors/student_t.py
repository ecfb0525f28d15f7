"""Student's t prior."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution

from pyrovae import distributions
from pyrovae.priors.base import Prior
from pyrovae.runtime.annotations import PositiveFloat, PositiveInt


class StudentT(Prior):
    """``p(z) = prod_d t(z_d; df)``, with location 0 and scale 1: heavier tails than N(0, I), without parameters.

    *t3-Variational autoencoder: learning heavy-tailed data with Student's t and power divergence (Kim et al. 2024)*,
    https://arxiv.org/abs/2312.01133

    Args:
        latent_dim: D, the number of latent dimensions.
        df: degrees of freedom; the variance is ``df / (df - 2)`` above 2 and infinite below.

    Raises:
        ValueError: if latent_dim < 1 or df is not positive and finite.

    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: PositiveInt, *, df: PositiveFloat = 5.0) -> None:
        super().__init__(latent_dim)
        self.df = float(df)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.tensor(1.0), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the distribution, of event shape ``(latent_dim,)``."""
        return distributions.StudentT(self.df, self.loc, self.scale).to_event(1)
