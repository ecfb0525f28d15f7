"""Laplace likelihood for real data with outliers."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.likelihoods.base import LocationLikelihood


class Laplace(LocationLikelihood):
    """Independent Laplace elements around the decoder's output, with one scale for all of them.

    ``log p(x | z) = -sum_i [log 2 s + |x_i - m_i| / s]``, a density on the real numbers

    Args:
        x_shape: shape of one data point.
        scale: mean absolute deviation s, in units of x; its initial value if learned.
        learn_scale: whether to train the scale.

    Raises:
        ValueError: if scale is not positive and finite.

    """

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn locations ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (location,) = self.split(params)
        return self.independent(dist.Laplace(location, self.scale))

    def scale_of(self, residuals: Tensor) -> Tensor:
        """Return the mean absolute value of residuals, 0-dim."""
        return residuals.abs().mean()
