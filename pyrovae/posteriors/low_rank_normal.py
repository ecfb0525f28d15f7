"""Normal posterior with correlations of low rank."""

from __future__ import annotations

import math
from typing import Annotated

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import LowRankNormal as LowRankNormalDistribution
from pyrovae.posteriors.base import MAX_LOG_VARIANCE, MIN_LOG_VARIANCE, ClampedPosterior
from pyrovae.runtime.annotations import PositiveInt


class LowRankNormal(ClampedPosterior):
    """``q(z | x) = N(z; mean, S (I + V V^T) S)``, with ``S = diag exp(log_variance / 2)`` and V of shape (D, rank).

    The encoder emits V times the square root of the rank, so that the variance from correlations does not depend on the
    rank at the start. The log-variance of the uncorrelated part is clamped as in `DiagonalNormal`.

    *Gaussian variational approximation with factor covariance structure (Ong, Nott, Smith 2018)*,
    https://arxiv.org/abs/1701.03208

    Args:
        latent_dim: D, the number of latent dimensions.
        rank: number of columns of V.
        min_log_variance: lower bound of the log-variance.
        max_log_variance: upper bound of the log-variance.

    Raises:
        ValueError: if latent_dim < 1, rank < 1 or min_log_variance >= max_log_variance.

    """

    def __init__(
        self,
        latent_dim: PositiveInt,
        *,
        rank: Annotated[PositiveInt, "for 0 use DiagonalNormal"] = 2,
        min_log_variance: float = MIN_LOG_VARIANCE,
        max_log_variance: float = MAX_LOG_VARIANCE,
    ) -> None:
        super().__init__(latent_dim, min_log_variance=min_log_variance, max_log_variance=max_log_variance)
        self.rank = rank
        self.n_params = 2 + rank

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, latent_dim, 2 + rank)``, mean, log-variance and factors, into a distribution over z."""
        mean, log_variance, *_ = self.split(params)
        log_variance = self.clamp(log_variance)
        factors = params[..., 2:] * ((0.5 * log_variance).exp() / math.sqrt(self.rank)).unsqueeze(-1)
        return LowRankNormalDistribution(mean, factors, log_variance.exp())
