"""Normal posterior with a full covariance."""

from __future__ import annotations

import math

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import TriangularNormal
from pyrovae.posteriors.base import MAX_LOG_VARIANCE, MIN_LOG_VARIANCE, ClampedPosterior
from pyrovae.runtime.annotations import PositiveInt


class FullNormal(ClampedPosterior):
    """``q(z | x) = N(z; mean, L L^T)``, ``L = diag exp(log_variance / 2) (I + N)``, N strictly lower triangular.

    The encoder emits the mean and a matrix A ``(D, D)``. Its diagonal holds the log-variances, clamped as in
    `DiagonalNormal`; both triangles give ``N_ij = (A_ij + A_ji) / sqrt(2 D)``. The divisor keeps the correlations of an
    untrained encoder from growing with D. The output of the encoder grows with D^2: use `LowRankNormal` for many
    dimensions.

    *An introduction to variational autoencoders (Kingma, Welling 2019)*, section 2.5.1,
    https://arxiv.org/abs/1906.02691

    Args:
        latent_dim: D, the number of latent dimensions.
        min_log_variance: lower bound of the log-variance.
        max_log_variance: upper bound of the log-variance.

    Raises:
        ValueError: if latent_dim < 1 or min_log_variance >= max_log_variance.

    """

    def __init__(
        self,
        latent_dim: PositiveInt,
        *,
        min_log_variance: float = MIN_LOG_VARIANCE,
        max_log_variance: float = MAX_LOG_VARIANCE,
    ) -> None:
        super().__init__(latent_dim, min_log_variance=min_log_variance, max_log_variance=max_log_variance)
        self.n_params = 1 + latent_dim

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, latent_dim, 1 + latent_dim)``, mean and A, into a distribution over z."""
        mean, *_ = self.split(params)
        raw = params[..., 1:]
        scale = self.scale(raw.diagonal(dim1=-2, dim2=-1))
        lower = (raw + raw.mT).tril(-1) * (scale / math.sqrt(2 * self.latent_dim)).unsqueeze(-1)
        return TriangularNormal(mean, scale_tril=lower + scale.diag_embed())
