"""Gaussian likelihood whose scale the decoder emits too."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions import LogScaleNormal
from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.floor import floored, unfloored


class HeteroscedasticGaussian(Likelihood):
    """Independent normal elements, mean and log-scale of each emitted by the decoder.

    ``log p(x | z) = -1/2 sum_i [log 2 pi + log s_i^2 + (x_i - m_i)^2 / s_i^2]``, a density on the real numbers

    The decoder can buy its way out of elements that are hard to predict by a large scale there, which also weakens the
    gradient to their means; compare with a learned common scale, ``Gaussian(x_shape, learn_scale=True)``. And where an
    element is reproduced exactly the density grows without bound as the scale shrinks, so that the maximum of the
    likelihood is decided by ``min_scale``: report it with the number, and raise it if log p(x) follows it.

    *Leveraging the exact likelihood of deep latent variable models (Mattei, Frellsen 2018)*,
    https://arxiv.org/abs/1802.04826; *Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis,
    Levine 2021)*, https://arxiv.org/abs/2006.13202

    Args:
        x_shape: shape of one datum.
        min_scale: the scale lies above it, in units of x; approached smoothly.

    Raises:
        ValueError: if the bound is not positive and finite.

    """

    n_params = 2
    form = "continuous"
    base_measure = "Lebesgue"
    min_log_scale: Tensor

    def __init__(self, x_shape: tuple[int, ...], *, min_scale: float = 0.01) -> None:
        super().__init__(x_shape)
        if not (min_scale > 0 and math.isfinite(min_scale)):
            raise ValueError(
                f"the scale of a HeteroscedasticGaussian needs a positive and finite lower bound, but received "
                f"min_scale={min_scale}; without one the likelihood has no maximum"
            )
        self.register_buffer("min_log_scale", torch.tensor(math.log(min_scale)))

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, *x_shape, 2)``, mean and log-scale before its floor, into a distribution over x."""
        mean, log_scale = self.split(params)
        return self.independent(LogScaleNormal(mean, floored(log_scale, self.min_log_scale)))

    def initial_params(self, mean: Tensor) -> Tensor:
        """Return the mean, with a scale of 1 or, if the bound is larger, of 3 times the bound."""
        return self._params_at(mean, torch.ones(()))

    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return the mean, with the standard deviation of all elements of data ``(N, *x_shape)`` around it as scale.

        An element that hardly varies gets it too: a smaller one would have to wait for an exact mean.
        """
        return self._params_at(mean, (x - mean).square().mean().sqrt())

    def _params_at(self, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the parameters of a mean and a scale, 0-dim, of 3 times the bound at least."""
        floor = self.min_log_scale
        log_scale = unfloored(torch.maximum(scale.to(floor).log(), floor + math.log(3)), floor)
        return torch.stack([mean, log_scale.to(mean).expand_as(mean)], -1)
