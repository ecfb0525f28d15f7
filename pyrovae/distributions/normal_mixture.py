"""A mixture of diagonal normal distributions that is cheap for many values and many components."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class NormalMixture(dist.TorchDistribution):
    """``p(z) = sum_c w_c N(z; m_c, diag s_c^2)``.

    `pyro.distributions.MixtureSameFamily` holds a value for each of N events, C components and D elements. Here the
    squared distances are matrix products that hold ``(N, C)``, in float64, since expanded squares cancel.

    Args:
        logits: ``(C,)``, log-weights up to a constant.
        locs: ``(C, D)``.
        scales: ``(C, D)``, positive.
        validate_args: whether arguments and values are checked.

    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "locs": constraints.independent(constraints.real, 2),
        "scales": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector

    def __init__(self, logits: Tensor, locs: Tensor, scales: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits, self.locs, self.scales = logits, locs, scales
        super().__init__(torch.Size(), locs.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None) -> NormalMixture:
        """Return the distribution with a larger batch shape; its parameters are not repeated."""
        new = self._get_checked_instance(NormalMixture, _instance)
        new.logits, new.locs, new.scales = self.logits, self.locs, self.scales
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """``(*batch, D)``."""
        return (self.logits.softmax(-1) @ self.locs).expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """``(*batch, D)``."""
        second = self.logits.softmax(-1) @ (self.locs.square() + self.scales.square())
        return second.expand(self._extended_shape()) - self.mean.square()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        which = torch.multinomial(self.logits.softmax(-1), math.prod(shape[:-1]), replacement=True).reshape(shape[:-1])
        noise = torch.randn(shape, dtype=self.locs.dtype, device=self.locs.device)
        return self.locs[which] + self.scales[which] * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each event, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        squared = squared_distances if value.device.type != "mps" else squared_distances_by_element  # has no float64
        distances = squared(value, self.locs, self.scales)
        log_weights = self.logits.log_softmax(-1) - self.scales.log().sum(-1)
        log_prob = (log_weights - 0.5 * distances).logsumexp(-1) - 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return log_prob.to(value.dtype).expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


def squared_distances(value: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    """Return ``|(z - m_c) / s_c|^2`` of events ``(*, D)`` to components ``(C, D)``: ``(*, C)``, float64."""
    value, locs, precisions = value.double(), locs.double(), scales.double().square().reciprocal()
    weighted = locs * precisions
    return value.square() @ precisions.mT - 2 * (value @ weighted.mT) + (locs * weighted).sum(-1)


def squared_distances_by_element(value: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    """Return the same in the dtype of the value, at the price of holding ``(*, C, D)``."""
    return ((value.unsqueeze(-2) - locs) / scales).square().sum(-1)
