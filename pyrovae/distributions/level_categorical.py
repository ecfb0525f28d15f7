"""Categorical distribution of integers, for logits that fill the memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.elements import BroadcastDistribution, SavesInputs


class LevelCategorical(BroadcastDistribution):
    """Integers from 0 to L - 1 with one logit each, stored as floats so that they have a mean.

    ``log P(u) = l_u - log sum_k exp(l_k)``

    128 MNIST images of bytes have logits of 98 MiB. Forward and backward together hold one more tensor of this size,
    the softmax that becomes the gradient; `pyro.distributions.Categorical` holds four.

    Args:
        logits: ``(*batch, L)``, not normalized.
        validate_args: whether arguments and values are validated.

    """

    arg_constraints = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def levels(self) -> int:
        """L, the number of levels."""
        return self.logits.shape[-1]

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Integers from 0 to L - 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def _log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(self.logits.shape[:-1], value.shape)
        return _LogProb.apply(self.logits.expand(*shape, self.levels), value.expand(shape))

    @property
    def probs(self) -> Tensor:
        """P(u) of each level, ``(*batch, L)``."""
        return self.logits.softmax(-1).expand(*self.batch_shape, self.levels)

    @property
    def mean(self) -> Tensor:
        """sum_u u P(u)."""
        return self.probs @ self._numbers

    @property
    def variance(self) -> Tensor:
        """sum_u (u - E[u])^2 P(u)."""
        return (self.probs * (self._numbers - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw levels, in the dtype of the logits."""
        shape = self._extended_shape(torch.Size(sample_shape))
        rows = self.probs.reshape(-1, self.levels)
        draws = rows.multinomial(torch.Size(sample_shape).numel(), replacement=True)  # (batch, samples)
        return draws.T.reshape(shape).to(self.logits.dtype)

    @property
    def _numbers(self) -> Tensor:
        return torch.arange(self.levels, dtype=self.logits.dtype, device=self.logits.device)


class _LogProb(SavesInputs):
    """The log-probability, with the gradient one-hot(u) - softmax(l), computed in the memory of the softmax."""

    @staticmethod
    def forward(logits: Tensor, value: Tensor) -> Tensor:
        return logits.gather(-1, value.long().unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        logits, value = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        index, gradient = value.long().unsqueeze(-1), gradient.unsqueeze(-1)
        softmax = logits.softmax(-1)
        if torch.is_grad_enabled():  # a second derivative needs the softmax itself
            return (-gradient * softmax).scatter_add(-1, index, gradient), None
        return softmax.mul_(-gradient).scatter_add_(-1, index, gradient), None
