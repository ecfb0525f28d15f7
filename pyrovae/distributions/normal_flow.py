"""A normal distribution carried through invertible layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from pyrovae.runtime.context import forked_random

MOMENT_PAIRS, MOMENT_ROUNDS = 16, 16  # mean and variance are those of 2 * 16 * 16 draws


class FlowLayer(nn.Module, ABC):
    """An invertible map of vectors, which may depend on a context that broadcasts against them."""

    @abstractmethod
    def forward(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map ``(*, D)`` to the result ``(*, D)`` and the log-determinant of the Jacobian, ``(*)``."""

    @abstractmethod
    def inverse(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the argument of `forward` that gives this value, and the log-determinant of `forward` there."""


@dataclass(frozen=True)
class _Draw:
    """A draw, its log-density, and the state in which both hold."""

    value: Tensor
    log_prob: Tensor
    differentiable: bool
    versions: tuple[int, ...]


class NormalFlow(dist.TorchDistribution):
    """``z = f_n(... f_1(m + s e))`` with e standard normal; the density by the change of variables.

    log q of the last draw, asked for with that very tensor, is not inverted: it is a function of the noise, as with
    the caches of torch and Pyro, so that its gradient is the total one, along the path of z. For the gradient by z at
    fixed parameters, ask for ``z.clone()`` or ``z.detach()``. A draw made without gradients, or before a parameter was
    changed in place, is inverted as any other value is.

    Pyro's transforms keep their caches in the modules that hold the weights: they go stale when a weight is changed in
    place, and a module with one cannot be deep-copied. Nothing is kept there here.

    Mean and variance are those of 512 draws in a random stream of their own, in pairs of opposite noise: the standard
    deviation is right to about 4 percent, and the mean to as much of it, better the closer the layers are to linear.

    Args:
        loc: ``(*batch, D)``, m.
        scale: ``(*batch, D)``, s.
        layers: of which the first is applied first.
        context: ``(*batch, C)``, handed to every layer, or None.
        validate_args: whether arguments and values are checked.

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

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None) -> NormalFlow:
        """Return the distribution with a larger batch shape; its parameters and its context are not repeated."""
        new = self._get_checked_instance(type(self), _instance)
        new.loc, new.scale, new.context, new.layers = self.loc, self.scale, self.context, self.layers
        new._draw = None
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        value, log_det = self._push(noise)
        log_prob = self._log_density(noise, log_det)
        self._draw = _Draw(value, log_prob, torch.is_grad_enabled(), self._versions(value))
        return value

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each event, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        drawn = self._draw
        if drawn is not None and value is drawn.value and drawn.versions == self._versions(value):
            if drawn.differentiable or not torch.is_grad_enabled():
                return drawn.log_prob
        log_det: float | Tensor = 0.0
        for layer in reversed(self.layers):
            value, of_layer = layer.inverse(value, self.context)
            log_det = log_det + of_layer
        log_prob = self._log_density((value - self.loc) / self.scale, log_det)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @property
    def mean(self) -> Tensor:
        """``(*batch, D)``, estimated."""
        return self._moments[0]

    @property
    def variance(self) -> Tensor:
        """``(*batch, D)``, estimated."""
        return self._moments[1]

    @lazy_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        total, squares = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        center = self._push(torch.zeros_like(self.loc))[0]  # squares are taken about it: those of far values cancel
        with forked_random(0, self.loc.device):
            for _ in range(MOMENT_ROUNDS):
                noise = torch.randn(MOMENT_PAIRS, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
                for signed in (noise, -noise):
                    shifted = self._push(signed)[0] - center
                    total, squares = total + shifted.sum(0), squares + shifted.square().sum(0)
        count = 2 * MOMENT_PAIRS * MOMENT_ROUNDS
        mean = total / count
        variance = squares / count - mean.square()
        shape = self._extended_shape()
        return (center + mean).expand(shape), variance.expand(shape)

    def _push(self, noise: Tensor) -> tuple[Tensor, Tensor | float]:
        value = self.loc + self.scale * noise
        log_det: float | Tensor = 0.0
        for layer in self.layers:
            value, of_layer = layer(value, self.context)
            log_det = log_det + of_layer
        return value, log_det

    def _log_density(self, noise: Tensor, log_det: Tensor | float) -> Tensor:
        """Return the log-density at what the layers make of the noise."""
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * noise.square().sum(-1) - self.scale.log().sum(-1) - constant - log_det

    def _versions(self, value: Tensor) -> tuple[int, ...]:
        """Return how often the value and each parameter were changed in place."""
        tensors = (value, self.loc, self.scale, *(p for layer in self.layers for p in layer.parameters()))
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
