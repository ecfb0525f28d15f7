"""Gaussian likelihood with mean and scale from the decoder."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import LogScaleNormal
from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.parametrization import floored, unfloored
from pyrovae.runtime.annotations import PositiveFloat, Shape


class HeteroscedasticGaussian(Likelihood):
    """Independent normal elements with mean and log-scale from the decoder.

    ``log p(x | z) = -1/2 sum_i [log 2 pi + log s_i^2 + (x_i - m_i)^2 / s_i^2]``, a density on the real numbers

    A large scale for elements that are hard to predict also weakens the gradient of their means; compare with a learned
    common scale, ``Gaussian(x_shape, learn_scale=True)``. If an element is reproduced exactly, the density grows
    without bound as the scale shrinks, and ``min_scale`` decides the maximum of the likelihood: report it with the
    number, and raise it if log p(x) follows it.

    *Leveraging the exact likelihood of deep latent variable models (Mattei, Frellsen 2018)*,
    https://arxiv.org/abs/1802.04826; *Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis,
    Levine 2021)*, https://arxiv.org/abs/2006.13202

    Args:
        x_shape: shape of one data point.
        min_scale: smooth lower bound of the scale, in units of x.

    Raises:
        ValueError: if min_scale is not positive and finite.

    """

    n_params = 2
    form = "continuous"
    min_log_scale: Tensor

    def __init__(
        self,
        x_shape: Shape,
        *,
        min_scale: Annotated[PositiveFloat, "the likelihood has no maximum if scales may be 0"] = 0.01,
    ) -> None:
        super().__init__(x_shape)
        self.register_buffer("min_log_scale", torch.tensor(math.log(min_scale)))

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, *x_shape, 2)``, mean and unfloored log-scale, into a distribution over x."""
        mean, log_scale = self.split(params)
        return self.independent(LogScaleNormal(mean, floored(log_scale, self.min_log_scale)))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the mean and a scale of 1, or of 3 min_scale if that is larger."""
        return self._params_at(mean, torch.ones(()))

    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the mean, and the standard deviation of all elements of data ``(N, *x_shape)`` as scale."""
        return self._params_at(mean, (x - mean).square().mean().sqrt())

    def _params_at(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the parameters of a mean and a 0-dim scale of at least 3 min_scale."""
        floor = self.min_log_scale
        log_scale = unfloored(torch.maximum(scale.to(floor).log(), floor + math.log(3)), floor)
        return torch.stack([mean, log_scale.to(mean).expand_as(mean)], -1)
