"""Continuous Bernoulli likelihood for grey values."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.parametrization import solve


class ContinuousBernoulli(Likelihood):
    """Independent elements in [0, 1] with logits from the decoder.

    ``log p(x | z) = sum_i x_i l_i - log((exp(l_i) - 1) / l_i)``, a density on [0, 1]

    Bernoulli's formula with the normalizing constant of a density on [0, 1]; the mean is not sigmoid(l). It is right
    for every l, while torch's own distribution is wrong beyond ``|l| = 16``.

    *The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem, Cunningham 2019)*,
    https://arxiv.org/abs/1907.06845
    """

    n_params = 1
    form = "unit"

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn logits ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (logits,) = self.split(params)
        return self.independent(distributions.ContinuousBernoulli(logits))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the logits at which x has the mean, clipped to [0.001, 0.999]."""
        target = mean.double().clamp(0.001, 0.999)
        logits = solve(lambda logits: distributions.ContinuousBernoulli(logits).mean, target, low=-2e3, high=2e3)
        return logits.to(mean.dtype).unsqueeze(-1)
