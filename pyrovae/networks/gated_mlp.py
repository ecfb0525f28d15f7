"""Multilayer perceptrons whose layers have gates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.head import dense_head, head_width
from pyrovae.networks.layers import he, hidden_layers, linear
from pyrovae.networks.mlp import joined


class GatedMLPEncoder(Encoder):
    """From a datum to the parameters of its posterior, by layers ``(W1 x + b1) * sigmoid(W2 x + b2)``.

    Weights start at He's normal distribution and biases at zero. W1 and W2 are the two halves of one linear layer.

    *Language modeling with gated convolutional networks (Dauphin et al. 2017)*, https://arxiv.org/abs/1612.08083;
    for images *VAE with a VampPrior (Tomczak, Welling 2018)*, https://arxiv.org/abs/1705.07120

    Args:
        x_shape: shape of one datum.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: C, how many covariates are joined to the flattened datum.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: if a layer has no units, or training the network does not fit into memory.

    """

    def __init__(
        self,
        x_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        hidden: Sequence[int] = (300, 300),
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim)
        widths = (math.prod(x_shape) + covariate_dim, *hidden)
        layers = hidden_layers(widths, nn.GLU, then=math.prod(out_shape), initialize=he, gated=True)
        self.layers = nn.Sequential(*layers, linear(widths[-1], math.prod(out_shape), he))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, *out_shape)``."""
        return self.layers(joined(x.flatten(1), covariates)).unflatten(-1, self.out_shape)  # (N, *out_shape)


class GatedMLPDecoder(Decoder):
    """From a latent variable to the parameters of the likelihood, by layers ``(W1 z + b1) * sigmoid(W2 z + b2)``.

    See `GatedMLPEncoder`.

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: shape of the output for one datum, ``likelihood.param_shape``.
        covariate_dim: C, how many covariates are joined to z.
        hidden: widths of the hidden layers.
        features: of each element, where it has more than 8 parameters: these come from a map that elements share.
        initial_params: ``out_shape``, the bias of the last layer at the start, for instance
            ``likelihood.initial_params(data.train.mean())``; the output at z = 0 (and covariates of 0).

    Raises:
        ValueError: if a layer has no units, or training the network does not fit into memory.

    """

    def __init__(
        self,
        latent_dim: int,
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        hidden: Sequence[int] = (300, 300),
        features: int = 8,
        initial_params: Tensor | None = None,
    ) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=covariate_dim, initial_params=initial_params)
        widths = (latent_dim + covariate_dim, *hidden)
        layers = hidden_layers(widths, nn.GLU, then=head_width(out_shape, features), initialize=he, gated=True)
        head = dense_head(
            widths[-1],
            out_shape,
            features=features,
            activation=nn.SiLU,
            initialize=he,
            initial_params=initial_params,
        )
        self.layers = nn.Sequential(*layers, head)

    def output_layer(self) -> nn.Module:
        """Return the last layer."""
        return self.layers[-1]

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        return self.layers(joined(z, covariates)).reshape(-1, *self.out_shape)
