"""Discretized logistic likelihood for levels."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.likelihoods.floor import floored, unfloored
from pyrovae.likelihoods.inversion import solve
from pyrovae.likelihoods.levels import LevelLikelihood


class DiscretizedLogistic(LevelLikelihood):
    """Independent levels: logistic variables rounded, their location and log-scale emitted by the decoder.

    ``log p(x | z) = sum_i log[F_i(x_i + 1/2) - F_i(x_i - 1/2)]``, a probability of whole numbers from 0 to levels - 1

    F is the logistic distribution function, and the ends take what lies beyond them. Location and scale are those of a
    variable that is -1 at level 0 and 1 at the last one. The scale stays above an eighth of a level, which is a
    probability of 0.96 for the level in the middle; it is approached smoothly.

    *PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017)*, https://arxiv.org/abs/1701.05517

    Args:
        x_shape: shape of one datum.
        levels: number of values that an element can take.

    Raises:
        ValueError: if there are not at least two.

    """

    n_params = 2
    min_log_scale: Tensor

    def __init__(self, x_shape: tuple[int, ...], levels: int = 256) -> None:
        super().__init__(x_shape, levels)
        self.register_buffer("min_log_scale", torch.tensor(math.log(self._level / 8)))

    @property
    def _level(self) -> float:
        """Distance of two levels on the scale from -1 to 1."""
        return 2 / (self.levels - 1)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, *x_shape, 2)``, location and log-scale before its floor, into a distribution over x."""
        location, log_scale = self.split(params)
        return self.independent(self.elements(location, log_scale))

    def elements(self, location: Tensor, log_scale: Tensor) -> distributions.DiscretizedLogistic:
        """Return the distribution of each element, of any shape."""
        return distributions.DiscretizedLogistic(location, floored(log_scale, self.min_log_scale), self.levels)

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return a location with that mean, clipped off the ends, and a scale of an eighth of the range."""
        wanted, log_scale = self.clipped(mean), self.initial_log_scale(mean)
        location = solve(lambda at: self.elements(at, log_scale).mean, wanted, low=-50, high=50)
        return torch.stack([location, log_scale.expand_as(location)], -1).to(mean.dtype)

    def clipped(self, mean: Tensor) -> Tensor:
        """Return a mean that lies off the ends, in float64."""
        top = self.levels - 1
        return mean.double().clamp(0.001 * top, 0.999 * top)

    def initial_log_scale(self, mean: Tensor) -> Tensor:
        """Return the log-scale before its floor that makes the scale 1/4, or a level if that is more, in float64."""
        floor = self.min_log_scale.to(mean.device, torch.float64)
        return unfloored(torch.full_like(floor, math.log(max(0.25, self._level))), floor)
