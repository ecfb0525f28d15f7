"""Discretized logistic likelihood for levels."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.likelihoods.base import LevelLikelihood
from pyrovae.likelihoods.parametrization import floored, solve, unfloored
from pyrovae.runtime.annotations import Shape


class DiscretizedLogistic(LevelLikelihood):
    """Independent levels: rounded logistic variables with location and log-scale from the decoder.

    ``log p(x | z) = sum_i log[F_i(x_i + 1/2) - F_i(x_i - 1/2)]``, a probability of integers from 0 to levels - 1

    F is the logistic distribution function; the first and the last level also get the probability beyond them.
    Location and scale refer to a variable that is -1 at level 0 and 1 at the last level. A smooth floor keeps the scale
    above an eighth of a level, at which the central level has probability 0.96.

    *PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017)*, https://arxiv.org/abs/1701.05517

    Args:
        x_shape: shape of one data point.
        levels: number of values of an element.

    Raises:
        ValueError: if levels < 2.

    """

    n_params = 2
    min_log_scale: Tensor

    def __init__(self, x_shape: Shape, levels: int = 256) -> None:
        super().__init__(x_shape, levels)
        self.register_buffer("min_log_scale", torch.tensor(math.log(self._level / 8)))

    @property
    def _level(self) -> float:
        """Distance of neighboring levels on the scale from -1 to 1."""
        return 2 / (self.levels - 1)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, *x_shape, 2)``, location and unfloored log-scale, into a distribution over x."""
        location, log_scale = self.split(params)
        return self.independent(self.elements(location, log_scale))

    def elements(self, location: Tensor, log_scale: Tensor) -> distributions.DiscretizedLogistic:
        """Return the distribution of each element, of any shape."""
        return distributions.DiscretizedLogistic(location, floored(log_scale, self.min_log_scale), self.levels)

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return a location with the mean, clipped to the interior, and a scale of an eighth of the range."""
        target, log_scale = self.clipped(mean), self.initial_log_scale(mean)
        location = solve(lambda at: self.elements(at, log_scale).mean, target, low=-50, high=50)
        return torch.stack([location, log_scale.expand_as(location)], -1).to(mean.dtype)

    def initial_log_scale(self, mean: Tensor) -> Tensor:
        """Return the decoder's value for a scale of 1/4 or one level, whichever is larger, in float64."""
        floor = self.min_log_scale.to(mean.device, torch.float64)
        return unfloored(torch.full_like(floor, math.log(max(0.25, self._level))), floor)
