"""Bernoulli likelihood for binary data."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import BinaryBernoulli
from pyrovae.likelihoods.base import Likelihood


class Bernoulli(Likelihood):
    """Independent binary elements with logits from the decoder.

    ``log p(x | z) = sum_i x_i l_i - log(1 + exp(l_i))``, a probability of zeros and ones

    Parameters are logits, since probabilities saturate in float32 and overstate log p(x). Gray values raise an error:
    they are outside the support; binarize them (see `pyrovae.data.transforms`).
    """

    n_params = 1
    form = "binary"

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn logits ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (logits,) = self.split(params)
        return self.independent(BinaryBernoulli(logits=logits))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the logits of the mean, clipped to [0.001, 0.999]."""
        return mean.clamp(0.001, 0.999).logit().unsqueeze(-1)
