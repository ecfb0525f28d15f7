"""Base class of the likelihoods with a location and one scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyrovae.likelihoods.base import Likelihood
from pyrovae.runtime.annotations import PositiveFloat, Shape


class LocationLikelihood(Likelihood):
    """Base of the likelihoods of real numbers around the decoder's output, with one scale for all of them.

    Args:
        x_shape: shape of one data point.
        scale: in units of x; its initial value if learned.
        learn_scale: whether to train the scale.

    Raises:
        ValueError: if scale is not positive and finite.

    """

    n_params = 1
    form = "continuous"

    def __init__(self, x_shape: Shape, *, scale: PositiveFloat = 1.0, learn_scale: bool = False) -> None:
        super().__init__(x_shape)
        log_scale = torch.tensor(math.log(scale))
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @property
    def scale(self) -> Tensor:
        """The scale, in units of x."""
        return self.log_scale.exp()

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the mean itself."""
        return mean.unsqueeze(-1)

    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        """Set a learned scale of 1 to the spread of data ``(N, *x_shape)`` around their mean, and return the mean."""
        scale = self.scale_of(x - mean)
        if self.log_scale.requires_grad and not self.log_scale.any() and scale > 0:
            with torch.no_grad():
                self.log_scale.copy_(scale.log())
        return self.initial_params(mean)

    def scale_of(self, residuals: Tensor) -> Tensor:
        """Return the scale of residuals of any shape, 0-dim; by default their root mean square."""
        return residuals.square().mean().sqrt()
