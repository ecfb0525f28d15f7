"""Categorical likelihood for levels."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.likelihoods.inversion import solve
from pyrovae.likelihoods.levels import LevelLikelihood


class Categorical(LevelLikelihood):
    """Independent levels, the decoder emitting a logit for each value that an element can take.

    ``log p(x | z) = sum_i l_i[x_i] - log sum_k exp(l_i[k])``, a probability of whole numbers from 0 to levels - 1

    It can learn any distribution of one element, but not that neighboring levels are alike; with 256 levels its
    decoder's last layer is by far the largest. `DiscretizedLogistic` has 2 parameters instead.

    *Pixel recurrent neural networks (van den Oord, Kalchbrenner, Kavukcuoglu 2016)*, https://arxiv.org/abs/1601.06759

    Args:
        x_shape: shape of one datum.
        levels: number of values that an element can take.

    Raises:
        ValueError: if there are not at least two.

    """

    def __init__(self, x_shape: tuple[int, ...], levels: int = 256) -> None:
        super().__init__(x_shape, levels)
        self.n_params = levels

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn logits ``(*batch, *x_shape, levels)`` into a distribution over x."""
        return self.independent(distributions.LevelCategorical(self.check_shape(params)))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the logits a k of the maximum-entropy distribution with that mean, which is clipped off the ends."""
        top = self.levels - 1
        wanted = mean.double().clamp(0.001 * top, 0.999 * top)
        slope = solve(self._mean_at, wanted, low=-50, high=50)
        return (slope.unsqueeze(-1) * slope.new_tensor(range(self.levels))).to(mean.dtype)

    def _mean_at(self, slope: Tensor) -> Tensor:
        """Return the mean of P(k) ~ exp(a k), the derivative of log((exp(a levels) - 1) / (exp(a) - 1))."""
        whole, step = (distributions.ContinuousBernoulli(logits).mean for logits in (slope * self.levels, slope))
        return self.levels * whole - step
