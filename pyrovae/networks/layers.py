"""Linear layers, of which the networks are made, and the memory that training them takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyrovae.runtime import memory

Initialize = Callable[[Tensor], object]


def he(weight: Tensor) -> Tensor:
    """Fill a weight with draws from N(0, 2 / fan-in).

    *Delving deep into rectifiers (He et al. 2015)*, https://arxiv.org/abs/1502.01852
    """
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def glorot(weight: Tensor) -> Tensor:
    """Fill a weight with draws from U(-a, a), a = sqrt(6 / (fan-in + fan-out)).

    *Understanding the difficulty of training deep feedforward neural networks (Glorot, Bengio 2010)*,
    https://proceedings.mlr.press/v9/glorot10a.html
    """
    return nn.init.xavier_uniform_(weight)


def linear(fan_in: int, fan_out: int, initialize: Initialize = glorot) -> nn.Linear:
    """Return a linear layer with biases at zero."""
    layer = nn.Linear(fan_in, fan_out)
    initialize(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Tanh(nn.Tanh):
    """`torch.nn.Tanh`, four times as fast on a CPU where no gradient is recorded.

    ``tanh(x) = 2 sigmoid(2 x) - 1``, with an error of 2e-7 at most in float32 and 4e-16 in float64
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return tanh(x), of the same shape."""
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        return torch.mul(x, 2).sigmoid_().mul_(2).sub_(1)


def nonlinearity(activation: type[nn.Module]) -> nn.Module:
    """Return a layer of a class, in its faster form where there is one."""
    return Tanh() if activation is nn.Tanh else activation()


def hidden_layers(
    widths: Sequence[int],
    activation: type[nn.Module],
    *,
    then: int | None = None,
    initialize: Initialize = glorot,
    gated: bool = False,
) -> list[nn.Module]:
    """Return layers of the given widths, that of the input first, each with its activation.

    Args:
        widths: of the input and of each layer.
        activation: class of the nonlinearity.
        then: width of the linear output that follows, if one does, which counts in what is checked.
        initialize: fills the weights.
        gated: whether a layer emits twice its width, of which the activation makes one.

    Raises:
        ValueError: if a layer has no units, or training them does not fit into memory.

    """
    everything = (*widths,) if then is None else (*widths, then)
    if min(everything) < 1:
        raise ValueError(f"every layer has at least one unit, but received widths {everything}")
    factor = 2 if gated else 1
    pairs = list(zip(widths, widths[1:], strict=False))
    weights = factor * sum(a * b for a, b in pairs) + widths[-1] * (then or 0)
    require_training(weights, what=f"a network with layers of {everything} units", hint="choose smaller layers")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairs:
        layers += [linear(fan_in, factor * fan_out, initialize), nonlinearity(activation)]
    return layers


def require_training(weights: float, *, what: str, hint: str) -> None:
    """Refuse a network whose training does not fit: its weights, their gradients and the two moments of Adam."""
    size = 4 * torch.get_default_dtype().itemsize * float(weights)
    memory.require(size, what=f"training {what}", hint=hint)
