"""Gaussian likelihood for real data."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.likelihoods.base import Likelihood


class Gaussian(Likelihood):
    """Independent normal elements around the decoder's output, with one scale for all of them.

    ``log p(x | z) = -1/2 sum_i [log 2 pi + log s^2 + (x_i - m_i)^2 / s^2]``

    Images of bytes are dequantized before they are scored: a density of discrete values can be made as large as one
    likes by a small scale.

    Args:
        x_shape: shape of one datum.
        scale: standard deviation s, in units of x; where it is learned, its start.
        learn_scale: whether the scale is trained with the networks.

    Raises:
        ValueError: if the scale is not positive and finite.

    """

    n_params = 1
    form = "continuous"
    base_measure = "Lebesgue"

    def __init__(self, x_shape: tuple[int, ...], *, scale: float = 1.0, learn_scale: bool = False) -> None:
        super().__init__(x_shape)
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(
                f"the scale of a Gaussian is positive and finite, but received {scale}; 1.0 is the default"
            )
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn means ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (mean,) = self.split(params)
        return self.independent(dist.Normal(mean, self.log_scale.exp()))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the mean itself."""
        return mean.unsqueeze(-1)
