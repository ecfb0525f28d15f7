"""Multilayer perceptrons that keep any batch axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae import memory
from pyrovae.describe import Described


class MLPEncoder(Described, nn.Module):
    """From a datum to the parameters of its posterior.

    Weights start at Glorot's uniform distribution and biases at zero.

    Args:
        x_shape: shape of one datum.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity between layers.

    """

    def __init__(
        self,
        x_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (200, 200),
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.x_shape, self.out_shape = tuple(x_shape), tuple(out_shape)
        self.layers = _layers((math.prod(x_shape), *hidden, math.prod(out_shape)), activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*batch, *x_shape)`` to ``(*batch, *out_shape)``."""
        if tuple(x.shape[-len(self.x_shape) :]) != self.x_shape:
            raise ValueError(
                f"the encoder takes data of shape (*batch, {', '.join(map(str, self.x_shape))}), but received "
                f"{tuple(x.shape)}; build it with x_shape=data.x_shape"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"the encoder takes floating-point data, but received {x.dtype}; pyrovae.data.load(x) keeps bytes as "
                "bytes and transforms them batch by batch"
            )
        weight = next(self.layers.parameters())
        if x.dtype != weight.dtype:
            raise ValueError(
                f"data and encoder have one dtype, but the data are {x.dtype} and the encoder {weight.dtype}; convert "
                f"one of them, for instance by x.to({weight.dtype})"
            )
        flat = x.flatten(-len(self.x_shape))  # (*batch, prod(x_shape))
        return self.layers(flat).unflatten(-1, self.out_shape)  # (*batch, *out_shape)


class MLPDecoder(Described, nn.Module):
    """From a latent variable to the parameters of the likelihood.

    Weights start at Glorot's uniform distribution and biases at zero, but for the last layer's, which can be given.

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: shape of the output for one datum, ``likelihood.param_shape``.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity between layers.
        initial_params: ``out_shape``, the bias of the last layer at the start, for instance
            ``likelihood.initial_params(data.train.mean())``.

    """

    def __init__(
        self,
        latent_dim: int,
        out_shape: Sequence[int],
        *,
        hidden: Sequence[int] = (200, 200),
        activation: type[nn.Module] = nn.Tanh,
        initial_params: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim, self.out_shape = latent_dim, tuple(out_shape)
        self.layers = _layers((latent_dim, *hidden, math.prod(out_shape)), activation)
        if initial_params is not None:
            if tuple(initial_params.shape) != self.out_shape:
                raise ValueError(
                    f"initial_params has the shape of the decoder's output, {self.out_shape}, but received "
                    f"{tuple(initial_params.shape)}; make it with likelihood.initial_params(mean of x)"
                )
            with torch.no_grad():
                last = self.layers[-1]
                assert isinstance(last, nn.Linear)
                last.bias.copy_(initial_params.flatten())

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(*batch, latent_dim)`` to ``(*batch, *out_shape)``."""
        return self.layers(z).unflatten(-1, self.out_shape)


def _layers(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of the given widths, input and output included, with activations between them."""
    if min(widths) < 1:
        raise ValueError(f"every layer has at least one unit, but received widths {tuple(widths)}")
    weights = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    size = 4 * 4.0 * weights  # the weights, their gradients and the two moments of Adam
    memory.require(size, what=f"training a network with layers of {tuple(widths)} units", cure="choose smaller layers")
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])
