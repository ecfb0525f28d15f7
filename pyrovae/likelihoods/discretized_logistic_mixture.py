"""Mixture of discretized logistics for levels."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.likelihoods.discretized_logistic import DiscretizedLogistic
from pyrovae.likelihoods.parametrization import solve
from pyrovae.runtime.annotations import PositiveInt, Shape


class DiscretizedLogisticMixture(DiscretizedLogistic):
    """Independent levels, each a mixture of discretized logistics with parameters from the decoder.

    ``log p(x | z) = sum_i log sum_c w_ic [F_ic(x_i + 1/2) - F_ic(x_i - 1/2)]``, a probability of whole numbers from 0
    to levels - 1

    Each element has its own components. Unlike in PixelCNN++, the channels of a pixel do not share the choice of a
    component, and the location of one channel does not depend on the value of another.

    *PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017)*, https://arxiv.org/abs/1701.05517

    Args:
        x_shape: shape of one data point.
        levels: number of values of an element.
        num_components: C, components per element.

    Raises:
        ValueError: if levels < 2 or num_components < 1.

    """

    def __init__(self, x_shape: Shape, levels: int = 256, *, num_components: PositiveInt = 5) -> None:
        super().__init__(x_shape, levels)
        self.num_components = num_components
        self.n_params = 3 * num_components

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, *x_shape, 3 C)``, logits, locations and log-scales, into a distribution over x."""
        logits, location, log_scale = self.check_shape(params).unflatten(-1, (3, self.num_components)).unbind(-2)
        weights = dist.Categorical(logits=logits)
        return self.independent(dist.MixtureSameFamily(weights, self.elements(location, log_scale)))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return equal weights and locations spread by one scale, with the mean clipped to the interior."""
        log_scale = self.initial_log_scale(mean)
        spread = 0.25 * torch.linspace(-1, 1, self.num_components).to(log_scale) * (self.num_components > 1)

        def mean_at(location: Tensor) -> Tensor:
            return self.elements(location.unsqueeze(-1) + spread, log_scale).mean.mean(-1)

        location = solve(mean_at, self.clipped(mean), low=-50, high=50).unsqueeze(-1) + spread  # (*x_shape, C)
        params = [torch.zeros_like(location), location, log_scale.expand_as(location)]
        return torch.cat(params, -1).to(mean.dtype)
