"""Normal posterior with correlations of low rank."""

from __future__ import annotations

import math

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import LowRankNormal as LowRankNormalDistribution
from pyrovae.posteriors.base import Posterior
from pyrovae.posteriors.clamp import MAX_LOG_VARIANCE, MIN_LOG_VARIANCE, check_bounds, clamp


class LowRankNormal(Posterior):
    """``q(z | x) = N(z; mean, S (I + V V^T) S)``, with ``S = diag exp(log_variance / 2)`` and V of shape (D, rank).

    The encoder emits V times the square root of the rank: the variance that correlations add is then independent of
    the rank at the start. The log-variance, of what is not correlated, is clamped as that of `DiagonalNormal`.

    *Gaussian variational approximation with factor covariance structure (Ong, Nott, Smith 2018)*,
    https://arxiv.org/abs/1701.03208

    Args:
        latent_dim: D, the number of latent dimensions.
        rank: number of directions.
        min_log_variance: lower bound of the log-variance.
        max_log_variance: upper bound of the log-variance.

    Raises:
        ValueError: if there is no direction, or the bounds are not in order.

    """

    def __init__(
        self,
        latent_dim: int,
        *,
        rank: int = 2,
        min_log_variance: float = MIN_LOG_VARIANCE,
        max_log_variance: float = MAX_LOG_VARIANCE,
    ) -> None:
        super().__init__(latent_dim)
        if rank < 1:
            raise ValueError(f"the rank is at least 1, but received rank={rank}; 0 would be a DiagonalNormal")
        self.rank = rank
        self.n_params = 2 + rank
        self.bounds = check_bounds(min_log_variance, max_log_variance)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, latent_dim, 2 + rank)``, mean, log-variance and factors, into a distribution over z."""
        mean, log_variance, *_ = self.split(params)
        log_variance = clamp(log_variance, self.bounds)
        factors = params[..., 2:] * ((0.5 * log_variance).exp() / math.sqrt(self.rank)).unsqueeze(-1)
        return LowRankNormalDistribution(mean, factors, log_variance.exp())
