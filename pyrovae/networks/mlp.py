"""Multilayer perceptrons, with and without gates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.layers import dense_head, glorot, he, hidden_layers, join, linear
from pyrovae.runtime.annotations import NonNegativeInt, PositiveInt, Shape


class MLPEncoder(Encoder):
    """Linear layers from a datum to the parameters of its posterior.

    Initial weights are drawn from Glorot's uniform distribution; initial biases are zero.

    Args:
        x_shape: shape of one datum.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: C, number of covariates, appended to the flattened datum.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity between layers.

    Raises:
        ValueError: if a layer has no units.

    """

    _initialize = staticmethod(glorot)

    def __init__(
        self,
        x_shape: Shape,
        out_shape: Shape,
        *,
        covariate_dim: NonNegativeInt = 0,
        hidden: Sequence[PositiveInt] = (200, 200),
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim)
        widths = (math.prod(x_shape) + covariate_dim, *hidden)
        layers = hidden_layers(widths, activation, initialize=self._initialize)
        self.layers = nn.Sequential(*layers, linear(widths[-1], math.prod(out_shape), self._initialize))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, *out_shape)``."""
        return self.layers(join(x.flatten(1), covariates)).unflatten(-1, self.out_shape)  # (N, *out_shape)


class MLPDecoder(Decoder):
    """Linear layers from a latent variable to the parameters of the likelihood.

    Initial weights are drawn from Glorot's uniform distribution; initial biases are zero.

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: shape of the output for one datum, ``likelihood.param_shape``.
        covariate_dim: C, number of covariates, appended to z.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity between layers.
        features: of each element; more than 8 parameters per element are a map of them that all elements share.

    Raises:
        ValueError: if a layer has no units.

    """

    _initialize = staticmethod(glorot)

    def __init__(
        self,
        latent_dim: PositiveInt,
        out_shape: Shape,
        *,
        covariate_dim: NonNegativeInt = 0,
        hidden: Sequence[PositiveInt] = (200, 200),
        activation: type[nn.Module] = nn.Tanh,
        features: PositiveInt = 8,
    ) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=covariate_dim)
        widths = (latent_dim + covariate_dim, *hidden)
        layers = hidden_layers(widths, activation, initialize=self._initialize)
        head = dense_head(
            widths[-1],
            out_shape,
            features=features,
            activation=nn.SiLU if activation is nn.GLU else activation,
            initialize=self._initialize,
        )
        self.layers = nn.Sequential(*layers, head)

    def output_layer(self) -> nn.Module:
        """Return the last layer."""
        return self.layers[-1]

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        return self.layers(join(z, covariates)).reshape(-1, *self.out_shape)


class GatedMLPEncoder(MLPEncoder):
    """Gated layers ``(W1 x + b1) * sigmoid(W2 x + b2)`` from a datum to the parameters of its posterior.

    Initial weights are drawn from He's normal distribution; initial biases are zero. W1 and W2 are the two halves of
    one linear layer.

    *Language modeling with gated convolutional networks (Dauphin et al. 2017)*, https://arxiv.org/abs/1612.08083;
    for images *VAE with a VampPrior (Tomczak, Welling 2018)*, https://arxiv.org/abs/1705.07120

    Args:
        x_shape: shape of one datum.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: C, number of covariates, appended to the flattened datum.
        hidden: widths of the hidden layers.

    Raises:
        ValueError: if a layer has no units.

    """

    _initialize = staticmethod(he)

    def __init__(
        self,
        x_shape: Shape,
        out_shape: Shape,
        *,
        covariate_dim: NonNegativeInt = 0,
        hidden: Sequence[PositiveInt] = (300, 300),
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim, hidden=hidden, activation=nn.GLU)


class GatedMLPDecoder(MLPDecoder):
    """Gated layers ``(W1 z + b1) * sigmoid(W2 z + b2)`` from a latent variable to the parameters of the likelihood.

    See `GatedMLPEncoder`.

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: shape of the output for one datum, ``likelihood.param_shape``.
        covariate_dim: C, number of covariates, appended to z.
        hidden: widths of the hidden layers.
        features: of each element; more than 8 parameters per element are a map of them that all elements share.

    Raises:
        ValueError: if a layer has no units.

    """

    _initialize = staticmethod(he)

    def __init__(
        self,
        latent_dim: PositiveInt,
        out_shape: Shape,
        *,
        covariate_dim: NonNegativeInt = 0,
        hidden: Sequence[PositiveInt] = (300, 300),
        features: PositiveInt = 8,
    ) -> None:
        super().__init__(
            latent_dim,
            out_shape,
            covariate_dim=covariate_dim,
            hidden=hidden,
            activation=nn.GLU,
            features=features,
        )
