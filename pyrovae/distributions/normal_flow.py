"""Normal distribution transformed by invertible layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from pyrovae.distributions.elements import BroadcastDistribution
from pyrovae.runtime.context import forked_random

MOMENT_PAIRS, MOMENT_ROUNDS = 16, 16  # mean and variance are estimated from 2 * 16 * 16 draws


class FlowLayer(nn.Module, ABC):
    """An invertible map of vectors, with an optional context that broadcasts against them."""

    @abstractmethod
    def forward(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map ``(*, D)`` to the result ``(*, D)`` and the log-determinant of the Jacobian, ``(*)``."""

    @abstractmethod
    def inverse(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the argument of `forward` that gives this value, and the log-determinant of `forward` there."""


class _Draw(NamedTuple):
    """A draw, the normal variable before the layers, its log-density, and the state in which both are valid."""

    value: Tensor
    start: Tensor
    log_prob: Tensor
    differentiable: bool
    versions: tuple[int, ...]


class NormalFlow(BroadcastDistribution):
    """``z = f_n(... f_1(m + s e))`` with e standard normal; the density by the change of variables.

    For the tensor that `rsample` returned last, `log_prob` does not invert the layers: it is a function of the noise,
    as with the caches of torch and Pyro, and its gradient is the total gradient along the path of z. For the gradient
    by z at fixed parameters, pass ``z.clone()`` or ``z.detach()``. A draw without gradients, or before a parameter
    changed in place, is inverted like any other value.

    Pyro's transforms keep their caches in the modules that hold the weights: the caches go stale when a weight changes
    in place, and a module with a cache cannot be deep-copied. Here the cache belongs to the distribution.

    Mean and variance are estimated from 512 draws in a separate random stream, in pairs of opposite noise: the standard
    deviation is accurate to about 4 percent, and the mean to 4 percent of the standard deviation or better.

    Args:
        loc: ``(*batch, D)``, m.
        scale: ``(*batch, D)``, s.
        layers: invertible maps, in the order in which they are applied.
        context: ``(*batch, C)``, second argument of every layer, or None.
        validate_args: whether arguments and values are validated.

    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        layers: Sequence[FlowLayer],
        *,
        context: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.context = loc, scale, context
        self.layers = tuple(layers)
        self._draw: _Draw | None = None
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        start = self.loc + self.scale * noise
        value, log_det = self._push(start)
        log_prob = self._log_density(noise, log_det)
        self._draw = _Draw(value, start.detach(), log_prob, torch.is_grad_enabled(), self._versions(value))
        return value

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``."""
        return self.rsample(sample_shape)

    def base_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``m + s e`` of the last draw, held fixed; of any other value zero.

        Its gradient by m and s is a part of the score of `log_prob` that needs no inversion. Its mean is zero.
        """
        draw = self._last_draw(value)
        if draw is None:
            return value.new_zeros(self.batch_shape)
        return self._log_density((draw.start - self.loc) / self.scale, 0.0)

    def _last_draw(self, value: Tensor) -> _Draw | None:
        """Return the last draw if it is this value and still valid."""
        draw = self._draw
        if draw is None or value is not draw.value or draw.versions != self._versions(value):
            return None
        return draw if draw.differentiable or not torch.is_grad_enabled() else None

    def _log_prob(self, value: Tensor) -> Tensor:
        draw = self._last_draw(value)
        if draw is not None:
            return draw.log_prob
        log_det: float | Tensor = 0.0
        for layer in reversed(self.layers):
            value, of_layer = layer.inverse(value, self.context)
            log_det = log_det + of_layer
        return self._log_density((value - self.loc) / self.scale, log_det)

    @property
    def mean(self) -> Tensor:
        """``(*batch, D)``, estimated."""
        return self._moments[0].expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """``(*batch, D)``, estimated."""
        return self._moments[1].expand(self._extended_shape())

    @lazy_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        total, squares = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        center = self._push(self.loc)[0]  # squares of distances from it do not cancel
        with forked_random(0, self.loc.device):
            for _ in range(MOMENT_ROUNDS):
                noise = torch.randn(MOMENT_PAIRS, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
                for signed in (noise, -noise):
                    shifted = self._push(self.loc + self.scale * signed)[0] - center
                    total, squares = total + shifted.sum(0), squares + shifted.square().sum(0)
        count = 2 * MOMENT_PAIRS * MOMENT_ROUNDS
        mean = total / count
        return center + mean, squares / count - mean.square()

    def _push(self, value: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the value after the layers, and the log-determinant of their Jacobian."""
        log_det: float | Tensor = 0.0
        for layer in self.layers:
            value, of_layer = layer(value, self.context)
            log_det = log_det + of_layer
        return value, log_det

    def _log_density(self, noise: Tensor, log_det: Tensor | float) -> Tensor:
        """Return the log-density of the value that the layers compute from the noise."""
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * noise.square().sum(-1) - self.scale.log().sum(-1) - constant - log_det

    def _versions(self, value: Tensor) -> tuple[int, ...]:
        """Return the number of changes in place of the value and of each parameter."""
        tensors = (value, self.loc, self.scale, *(p for layer in self.layers for p in layer.parameters()))
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
