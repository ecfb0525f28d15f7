"""Poisson likelihood for counts."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.likelihoods.base import Likelihood


class Poisson(Likelihood):
    """Independent counts with log-means from the decoder.

    ``log p(x | z) = sum_i x_i l_i - exp(l_i) - log x_i!``, a probability of integers >= 0

    The variance equals the mean; for overdispersed counts `NegativeBinomial` fits better.
    """

    n_params = 1
    form = "counts"

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn logarithms of means ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (log_rate,) = self.split(params)
        return self.independent(distributions.Poisson(log_rate))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the logarithm of the mean, at least 0.001."""
        return mean.clamp(min=0.001).log().unsqueeze(-1)
