"""Diagonal normal posterior."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import Event
from pyrovae.posteriors.base import ClampedPosterior


class DiagonalNormal(ClampedPosterior):
    """``q(z | x) = N(z; mean, diag exp(log_variance))``, both emitted by the encoder.

    The log-variance is clamped. At the default lower bound, a standard deviation of 0.0067, log q(z) of a float32 z is
    right to 2e-4 nats per dimension for means up to 4; at -30 the error is several nats. Beyond the bounds the value is
    clamped but the gradient passes, so that a unit can return.

    *Auto-encoding variational Bayes (Kingma, Welling 2014)*, https://arxiv.org/abs/1312.6114

    Args:
        latent_dim: D, the number of latent dimensions.
        min_log_variance: lower bound of the log-variance.
        max_log_variance: upper bound of the log-variance.

    Raises:
        ValueError: if latent_dim < 1 or min_log_variance >= max_log_variance.

    """

    n_params = 2

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, latent_dim, 2)``, mean and log-variance, into a distribution over z."""
        mean, log_variance = self.split(params)
        return Event(dist.Normal(mean, self.scale(log_variance)), 1)
