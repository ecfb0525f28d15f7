"""Mixture of diagonal normal distributions for many values and many components."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.elements import BroadcastDistribution, sum_dtype


class NormalMixture(BroadcastDistribution):
    """``p(z) = sum_c w_c N(z; m_c, diag s_c^2)``.

    `pyro.distributions.MixtureSameFamily` holds a tensor of N events, C components and D elements. This class computes
    squared distances by matrix products ``(N, C)``, in float64, since expanded squares cancel.

    Args:
        logits: ``(C,)``, log-weights up to a constant.
        locs: ``(C, D)``.
        scales: ``(C, D)``, positive.
        validate_args: whether arguments and values are validated.

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
        components = self.logits.softmax(-1).multinomial(math.prod(shape[:-1]), replacement=True).reshape(shape[:-1])
        noise = torch.randn(shape, dtype=self.locs.dtype, device=self.locs.device)
        return self.locs[components] + self.scales[components] * noise

    def _log_prob(self, value: Tensor) -> Tensor:
        squared = squared_distances if sum_dtype(value) == torch.float64 else squared_distances_by_element
        distances = squared(value, self.locs, self.scales)
        log_weights = self.logits.log_softmax(-1) - self.scales.log().sum(-1)
        log_prob = (log_weights - 0.5 * distances).logsumexp(-1) - 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return log_prob.to(value.dtype)


def squared_distances(value: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    """Return ``|(z - m_c) / s_c|^2`` of events ``(*, D)`` to components ``(C, D)``: ``(*, C)``, float64."""
    value, locs, precisions = value.double(), locs.double(), scales.double().square().reciprocal()
    weighted = locs * precisions
    return value.square() @ precisions.mT - 2 * (value @ weighted.mT) + (locs * weighted).sum(-1)


def squared_distances_by_element(value: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    """Return the same in the dtype of the value, by a tensor ``(*, C, D)``."""
    return ((value.unsqueeze(-2) - locs) / scales).square().sum(-1)
