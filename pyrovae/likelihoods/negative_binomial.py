"""Negative binomial likelihood for overdispersed counts."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae import distributions
from pyrovae.likelihoods.base import Likelihood
from pyrovae.runtime.annotations import PositiveFloat, Shape


class NegativeBinomial(Likelihood):
    """Independent counts with mean m_i from the decoder and variance m_i + m_i^2 / r_i, with r_i learned per element.

    ``log p(x | z) = sum_i log Gamma(x_i + r_i) - log Gamma(r_i) - log x_i! + r_i log(r_i / (r_i + m_i))
    + x_i log(m_i / (r_i + m_i))``, a probability of integers >= 0

    *Deep generative modeling for single-cell transcriptomics (Lopez, Regier, Cole, Jordan, Yosef 2018)*,
    https://doi.org/10.1038/s41592-018-0229-2

    Args:
        x_shape: shape of one data point.
        total_count: r, the inverse dispersion; its initial value if learned. Poisson is the limit of large r.
        learn_total_count: whether to train r.

    Raises:
        ValueError: if total_count is not positive and finite.

    """

    n_params = 1
    form = "counts"

    def __init__(
        self,
        x_shape: Shape,
        *,
        total_count: Annotated[PositiveFloat, "Poisson is the limit of large values"] = 1.0,
        learn_total_count: bool = True,
    ) -> None:
        super().__init__(x_shape)
        log_total_count = torch.full(self.x_shape, math.log(total_count))
        if learn_total_count:
            self.log_total_count = nn.Parameter(log_total_count)
        else:
            self.register_buffer("log_total_count", log_total_count)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn logarithms of means ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (log_mean,) = self.split(params)
        return self.independent(distributions.NegativeBinomial(log_mean, self.log_total_count))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the logarithm of the mean, at least 0.001."""
        return mean.clamp(min=0.001).log().unsqueeze(-1)

    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        """Fit learned r of 1 to the variance of data ``(N, *x_shape)``, in [0.1, 100]; return initial parameters."""
        excess = (x - mean).square().mean(0) - mean
        if self.log_total_count.requires_grad and not self.log_total_count.any():
            with torch.no_grad():
                self.log_total_count.copy_((mean.square() / excess.clamp(min=1e-9)).clamp(0.1, 100).log())
        return self.initial_params(mean)
