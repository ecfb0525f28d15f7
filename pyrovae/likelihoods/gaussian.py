"""Gaussian likelihood for real data."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import LogScaleNormal
from pyrovae.likelihoods.base import LocationLikelihood


class Gaussian(LocationLikelihood):
    """Independent normal elements around the decoder's output, with one scale for all of them.

    ``log p(x | z) = -1/2 sum_i [log 2 pi + log s^2 + (x_i - m_i)^2 / s^2]``, a density on the real numbers

    Dequantize integer images first: the density of discrete values has no upper bound as the scale shrinks.

    Args:
        x_shape: shape of one data point.
        scale: standard deviation s, in units of x; its initial value if learned.
        learn_scale: whether to train the scale.

    Raises:
        ValueError: if scale is not positive and finite.

    """

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn means ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (mean,) = self.split(params)
        return self.independent(LogScaleNormal(mean, self.log_scale))
