"""Diagonal normal posterior."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import Event
from pyrovae.posteriors.base import Posterior
from pyrovae.posteriors.clamp import MAX_LOG_VARIANCE, MIN_LOG_VARIANCE, check_bounds, clamp


class DiagonalNormal(Posterior):
    """``q(z | x) = N(z; mean, diag exp(log_variance))``, both emitted by the encoder.

    The log-variance is clamped. At the default lower bound, a standard deviation of 0.0067, log q(z) computed from a
    float32 z is right to 2e-4 nats per dimension for means up to 4; at -30 it is off by nats. Beyond the bounds the
    value is cut but the gradient passes, so that a unit that ran out of bounds finds its way back.

    *Auto-encoding variational Bayes (Kingma, Welling 2014)*, https://arxiv.org/abs/1312.6114

    Args:
        latent_dim: D, the number of latent dimensions.
        min_log_variance: lower bound of the log-variance.
        max_log_variance: upper bound of the log-variance.

    Raises:
        ValueError: if the bounds are not in order.

    """

    n_params = 2

    def __init__(
        self,
        latent_dim: int,
        *,
        min_log_variance: float = MIN_LOG_VARIANCE,
        max_log_variance: float = MAX_LOG_VARIANCE,
    ) -> None:
        super().__init__(latent_dim)
        self.bounds = check_bounds(min_log_variance, max_log_variance)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, latent_dim, 2)``, mean and log-variance, into a distribution over z."""
        mean, log_variance = self.split(params)
        return Event(dist.Normal(mean, (0.5 * clamp(log_variance, self.bounds)).exp()), 1)
