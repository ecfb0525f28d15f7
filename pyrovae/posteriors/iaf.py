"""Inverse autoregressive flow as a posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional

from pyrovae.distributions import FlowLayer, NormalFlow
from pyrovae.posteriors.base import MAX_LOG_VARIANCE, MIN_LOG_VARIANCE, ClampedPosterior
from pyrovae.runtime.annotations import NonNegativeInt, PositiveInt

OPEN_GATE = 2.0  # initial logit of the gate, s = 0.88: a layer starts near the identity


class IAF(ClampedPosterior):
    """A diagonal normal transformed by autoregressive layers: in each, ``z_i <- s_i z_i + (1 - s_i) m_i``.

    s in (0, 1) and m are functions of the z before i and of a context from the encoder; the order of the variables is
    reversed from layer to layer. A draw with its log q takes one pass; log q of any other z is computed one variable
    after the other. See `pyrovae.distributions.NormalFlow` for its gradient and the estimated mean and standard
    deviation.

    *Improved variational inference with inverse autoregressive flow (Kingma et al. 2016)*,
    https://arxiv.org/abs/1606.04934

    Args:
        latent_dim: D, the number of latent dimensions.
        num_layers: autoregressive layers.
        hidden: widths of the hidden layers of each autoregressive layer.
        num_context: context numbers per latent dimension, emitted by the encoder for the layers.
        activation: class of the nonlinearity between hidden layers, without weights.
        min_log_variance: lower bound of the log-variance of the normal.
        max_log_variance: upper bound of the log-variance of the normal.

    Raises:
        ValueError: if a number of layers, units or context numbers is invalid, or min_log_variance >= max_log_variance.

    """

    def __init__(
        self,
        latent_dim: PositiveInt,
        *,
        num_layers: Annotated[PositiveInt, "for 0 use DiagonalNormal"] = 2,
        hidden: Sequence[PositiveInt] = (64,),
        num_context: NonNegativeInt = 2,
        activation: type[nn.Module] = nn.Tanh,
        min_log_variance: float = MIN_LOG_VARIANCE,
        max_log_variance: float = MAX_LOG_VARIANCE,
    ) -> None:
        super().__init__(latent_dim, min_log_variance=min_log_variance, max_log_variance=max_log_variance)
        if not hidden:
            raise ValueError("`hidden` of IAF must be one or more widths, got (); give for instance hidden=(64,)")
        self.n_params = 2 + num_context
        self.layers = nn.ModuleList(
            AutoregressiveLayer(
                latent_dim, latent_dim * num_context, tuple(hidden), activation=activation, backwards=index % 2 == 1
            )
            for index in range(num_layers)
        )

    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, latent_dim, 2 + num_context)``, mean, log-variance and context, into a distribution."""
        mean, log_variance, *_ = self.split(params)
        scale = self.scale(log_variance)
        context = params[..., 2:].flatten(-2)  # (*batch, D * num_context)
        return InverseAutoregressiveFlow(mean, scale, tuple(self.layers), context=context)  # type: ignore[arg-type]


class InverseAutoregressiveFlow(NormalFlow):
    """A `NormalFlow` through autoregressive layers."""


class AutoregressiveLayer(FlowLayer):
    """The gated update of each variable given those before it.

    *MADE: masked autoencoder for distribution estimation (Germain et al. 2015)*, https://arxiv.org/abs/1502.03509

    Args:
        latent_dim: D.
        context_size: length of the context, an input of all hidden units.
        hidden: widths of the hidden layers.
        activation: class of the nonlinearity between them.
        backwards: whether the last variable comes first.

    """

    def __init__(
        self,
        latent_dim: PositiveInt,
        context_size: int,
        hidden: tuple[int, ...],
        *,
        activation: type[nn.Module] = nn.Tanh,
        backwards: bool,
    ) -> None:
        super().__init__()
        positions = torch.arange(1, latent_dim + 1)  # of each variable in the order
        self.order = tuple(range(latent_dim))[:: -1 if backwards else 1]
        inputs = positions.flip(0) if backwards else positions
        outputs = inputs - 1  # m and s of a variable depend on the variables before it
        layers = []
        for width in hidden:
            units = torch.arange(width) * latent_dim // width  # 0 to D - 1, last position on which each unit depends
            layers.append(MaskedLinear(units.unsqueeze(1) >= inputs))
            inputs = units
        layers.append(MaskedLinear(outputs.repeat(2).unsqueeze(1) >= inputs))
        self.layers, self.activation = nn.ModuleList(layers), activation()
        self.context = nn.Linear(context_size, hidden[0], bias=False) if context_size else None
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)
            layers[-1].bias[latent_dim:] = OPEN_GATE

    def forward(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map ``(*, D)`` to the result and the log-determinant ``(*)``."""
        first, *rest = self.layers
        out = first(value) + self._encode_context(context)
        for layer in rest:
            out = layer(self.activation(out))
        goal, gate = out.chunk(2, -1)
        return goal + gate.sigmoid() * (value - goal), functional.logsigmoid(gate).sum(-1)

    def inverse(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the argument that `forward` maps to a value, and the log-determinant of `forward` there."""
        first, *middle, last = self.layers
        masked_first, masked_last = first.masked_weight(), last.masked_weight()  # type: ignore[operator]
        bias = last.bias
        assert isinstance(bias, Tensor)
        latent_dim = len(self.order)
        before: Any = first.bias + self._encode_context(context)  # type: ignore[operator]
        variables: dict[int, Tensor] = {}
        log_gates = []
        for position, index in enumerate(self.order):
            out = before
            for layer in middle:
                out = layer(self.activation(out))
            own = slice(index, None, latent_dim)  # its two outputs
            goal, gate = functional.linear(self.activation(out), masked_last[own], bias[own]).unbind(-1)
            log_gates.append(functional.logsigmoid(gate))
            variables[index] = goal + (value[..., index] - goal) * log_gates[-1].neg().exp()
            if position < latent_dim - 1:
                before = before + variables[index].unsqueeze(-1) * masked_first[:, index]
        ordered = torch.stack([variables[index] for index in range(latent_dim)], -1)
        log_gates = [log_gate.expand(ordered.shape[:-1]) for log_gate in log_gates]
        return ordered, torch.stack(log_gates, -1).sum(-1)

    def _encode_context(self, context: Tensor | None) -> Tensor | float:
        return 0.0 if self.context is None or context is None else self.context(context)


class MaskedLinear(nn.Linear):
    """A linear layer with a mask ``(outputs, inputs)`` of the inputs on which each output depends."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def masked_weight(self) -> Tensor:
        """Return the weights times the mask."""
        return self.weight * self.mask

    def forward(self, value: Tensor) -> Tensor:
        """Map ``(*, inputs)`` to ``(*, outputs)``."""
        return functional.linear(value, self.masked_weight(), self.bias)
