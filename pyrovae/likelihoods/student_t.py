"""Student's t likelihood for real data with heavy tails."""

from __future__ import annotations

import math
from typing import Annotated

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae import distributions
from pyrovae.likelihoods.base import LocationLikelihood
from pyrovae.runtime.annotations import PositiveFloat, Range, Shape


class StudentT(LocationLikelihood):
    """Independent Student's t elements around the decoder's output, with one scale for all of them.

    ``log p(x | z) = -sum_i [(v + 1) / 2 log(1 + (x_i - m_i)^2 / (v s^2)) + log(s B(v / 2, 1 / 2) sqrt(v))]``, a
    density on the real numbers

    The gradient of an outlier decreases with its distance, while it increases under a Gaussian. The variance,
    s^2 v / (v - 2), is infinite for df <= 2.

    Args:
        x_shape: shape of one data point.
        df: degrees of freedom v > 1, for which a mean exists; reconstructions and figures need one.
        scale: s, in units of x; its initial value if learned.
        learn_scale: whether to train the scale.

    Raises:
        ValueError: if the scale is not positive and finite, or df not finite and > 1.

    """

    def __init__(
        self,
        x_shape: Shape,
        *,
        df: Annotated[
            float, Range(1, exclusive=True), "a mean exists for df > 1; Gaussian is the limit of large df"
        ] = 5.0,
        scale: PositiveFloat = 1.0,
        learn_scale: bool = False,
    ) -> None:
        super().__init__(x_shape, scale=scale, learn_scale=learn_scale)
        self.df = float(df)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn locations ``(*batch, *x_shape, 1)`` into a distribution over x."""
        (location,) = self.split(params)
        return self.independent(distributions.StudentT(self.df, location, self.scale))

    def scale_of(self, residuals: Tensor) -> Tensor:
        """Return the scale whose mean absolute deviation equals the one of residuals, 0-dim."""
        v = self.df
        log_beta = math.lgamma(v / 2) + math.lgamma(0.5) - math.lgamma((v + 1) / 2)
        return residuals.abs().mean() * (v - 1) * math.exp(log_beta) / (2 * math.sqrt(v))
