"""Categorical likelihood for levels."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.likelihoods.base import LevelLikelihood
from pyrovae.likelihoods.parametrization import solve
from pyrovae.runtime.annotations import Shape


class Categorical(LevelLikelihood):
    """Independent levels, with one logit per level from the decoder.

    ``log p(x | z) = sum_i l_i[x_i] - log sum_k exp(l_i[k])``, a probability of integers from 0 to levels - 1

    It can learn any distribution of an element, but no similarity of neighboring levels. With 256 levels the last layer
    of the decoder is by far the largest; `DiscretizedLogistic` has 2 parameters per element.

    *Pixel recurrent neural networks (van den Oord, Kalchbrenner, Kavukcuoglu 2016)*, https://arxiv.org/abs/1601.06759

    Args:
        x_shape: shape of one data point.
        levels: number of values of an element.

    Raises:
        ValueError: if levels < 2.

    """

    def __init__(self, x_shape: Shape, levels: int = 256) -> None:
        super().__init__(x_shape, levels)
        self.n_params = levels

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn logits ``(*batch, *x_shape, levels)`` into a distribution over x."""
        return self.independent(distributions.LevelCategorical(self.check_shape(params)))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the logits a k of the maximum-entropy distribution with the mean, clipped to the interior."""
        slope = solve(self._mean_at, self.clipped(mean), low=-50, high=50)
        return (slope.unsqueeze(-1) * slope.new_tensor(range(self.levels))).to(mean.dtype)

    def _mean_at(self, slope: Tensor) -> Tensor:
        """Return the mean of P(k) ~ exp(a k), the derivative of log((exp(a levels) - 1) / (exp(a) - 1))."""
        whole, step = (distributions.ContinuousBernoulli(logits).mean for logits in (slope * self.levels, slope))
        return self.levels * whole - step
