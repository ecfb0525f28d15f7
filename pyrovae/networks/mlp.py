"""Multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.head import dense_head, head_width
from pyrovae.networks.layers import hidden_layers, linear


class MLPEncoder(Encoder):
    """From a datum to the parameters of its posterior, by linear layers.

    Weights start at Glorot's uniform distribution and biases at zero.

    Args:
        x_shape: shape of one datum.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: C, how many covariates are joined to the flattened datum.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity between layers.

    Raises:
        ValueError: if a layer has no units, or training the network does not fit into memory.

    """

    def __init__(
        self,
        x_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        hidden: Sequence[int] = (200, 200),
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim)
        widths = (math.prod(x_shape) + covariate_dim, *hidden)
        layers = hidden_layers(widths, activation, then=math.prod(out_shape))
        self.layers = nn.Sequential(*layers, linear(widths[-1], math.prod(out_shape)))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, *out_shape)``."""
        flat = x.flatten(1)  # (N, prod(x_shape))
        return self.layers(joined(flat, covariates)).unflatten(-1, self.out_shape)  # (N, *out_shape)


class MLPDecoder(Decoder):
    """From a latent variable to the parameters of the likelihood, by linear layers.

    Weights start at Glorot's uniform distribution and biases at zero, but for the last layer's, which can be given.

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: shape of the output for one datum, ``likelihood.param_shape``.
        covariate_dim: C, how many covariates are joined to z.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity between layers.
        features: of each element, where it has more than 8 parameters: these come from a map that elements share.
        initial_params: ``out_shape``, the bias of the last layer at the start, for instance
            ``likelihood.initial_params(data.train.mean())``; the output at z = 0 (and covariates of 0) where the
            activation is 0 at 0.

    Raises:
        ValueError: if a layer has no units, or training the network does not fit into memory.

    """

    def __init__(
        self,
        latent_dim: int,
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        hidden: Sequence[int] = (200, 200),
        activation: type[nn.Module] = nn.Tanh,
        features: int = 8,
        initial_params: Tensor | None = None,
    ) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=covariate_dim, initial_params=initial_params)
        widths = (latent_dim + covariate_dim, *hidden)
        layers = hidden_layers(widths, activation, then=head_width(out_shape, features))
        head = dense_head(
            widths[-1], out_shape, features=features, activation=activation, initial_params=initial_params
        )
        self.layers = nn.Sequential(*layers, head)

    def output_layer(self) -> nn.Module:
        """Return the last layer."""
        return self.layers[-1]

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        return self.layers(joined(z, covariates)).reshape(-1, *self.out_shape)


def joined(x: Tensor, covariates: Tensor | None) -> Tensor:
    """Return ``(N, D)`` and covariates ``(N, C)`` side by side."""
    return x if covariates is None else torch.cat([x, covariates], -1)
