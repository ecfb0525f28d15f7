"""Bernoulli likelihood for binary data."""

from __future__ import annotations

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.likelihoods.base import Likelihood


class Bernoulli(Likelihood):
    """Independent binary elements, given by their logits.

    ``log p(x | z) = sum_i x_i l_i - log(1 + exp(l_i))``

    Logits, never probabilities: those saturate in float32 and overstate log p(x). Grey values are outside the support
    and are refused, since their "likelihood" would be one of nothing: binarize them (see `pyrovae.data.transforms`).
    """

    n_params = 1
    form = "binary"
    base_measure = "counting"

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn logits ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (logits,) = self.split(params)
        return _Binary(logits=logits).to_event(len(self.x_shape))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the logits of the mean, clipped to [0.001, 0.999]."""
        return mean.clamp(0.001, 0.999).logit().unsqueeze(-1)


class _Binary(dist.Bernoulli):
    """A Bernoulli that names the cure when it is given grey values."""

    def _validate_sample(self, value: Tensor) -> None:
        binary = (value == 0) | (value == 1)
        if not binary.all():
            raise ValueError(
                f"Bernoulli scores data that are 0 or 1, but {int((~binary).sum())} of {value.numel()} values are not "
                f"(smallest {value.min():.3g}, largest {value.max():.3g}); binarize them, for instance with "
                "data.transforms.DynamicBinarization(), or choose a likelihood for grey values such as Gaussian"
            )
        super()._validate_sample(value)
