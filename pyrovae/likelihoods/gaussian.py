"""Gaussian likelihood for real data."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import LogScaleNormal
from pyrovae.likelihoods.location import LocationLikelihood


class Gaussian(LocationLikelihood):
    """Independent normal elements around the decoder's output, with one scale for all of them.

    ``log p(x | z) = -1/2 sum_i [log 2 pi + log s^2 + (x_i - m_i)^2 / s^2]``, a density on the real numbers

    Images of bytes are dequantized before they are scored: a density of discrete values can be made as large as one
    likes by a small scale.

    Args:
        x_shape: shape of one datum.
        scale: standard deviation s, in units of x; where it is learned, its start.
        learn_scale: whether the scale is trained with the networks.

    Raises:
        ValueError: if the scale is not positive and finite.

    """

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn means ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (mean,) = self.split(params)
        return self.independent(LogScaleNormal(mean, self.log_scale))
