"""A categorical distribution of whole numbers, for logits that fill the memory."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.function import Function


class LevelCategorical(dist.TorchDistribution):
    """Whole numbers from 0 to L - 1 with a logit each, kept as floats so that they have a mean.

    ``log P(u) = l_u - log sum_k exp(l_k)``

    A batch of 128 images of bytes has logits of 98 MiB. Forward and backward each hold one more tensor of that size,
    the softmax that becomes the gradient; `pyro.distributions.Categorical` holds four.

    Args:
        logits: ``(*batch, L)``, not normalized.

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
        """Whole numbers from 0 to L - 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> LevelCategorical:
        """Return the distribution with a larger batch shape."""
        new = self._get_checked_instance(LevelCategorical, _instance)
        new.logits = self.logits.expand(*batch_shape, self.levels)
        super(LevelCategorical, new).__init__(new.logits.shape[:-1], validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape)
        return _LogProb.apply(self.logits.expand(*shape, self.levels), value.expand(shape))

    @property
    def probs(self) -> Tensor:
        """P(u) of each level, ``(*batch, L)``."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """sum_u u P(u)."""
        return self.probs @ self._numbers

    @property
    def variance(self) -> Tensor:
        """sum_u (u - E[u])^2 P(u)."""
        return (self.probs * (self._numbers - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw levels, as floats of the logits' type."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            rows = self.probs.reshape(-1, self.levels)
            drawn = rows.multinomial(torch.Size(sample_shape).numel(), replacement=True)  # (batch, samples)
            return drawn.T.reshape(shape).to(self.logits.dtype)

    @property
    def _numbers(self) -> Tensor:
        return torch.arange(self.levels, dtype=self.logits.dtype, device=self.logits.device)


class _LogProb(Function):
    """The log-probability, with the gradient one-hot(u) - softmax(l), made in the softmax's own memory."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, value: Tensor) -> Tensor:
        return logits.gather(-1, value.long().unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        logits, value = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        index, gradient = value.long().unsqueeze(-1), gradient.unsqueeze(-1)
        softmax = logits.softmax(-1)
        if torch.is_grad_enabled():  # a second derivative is wanted, which needs the softmax itself
            return (-gradient * softmax).scatter_add(-1, index, gradient), None
        return softmax.mul_(-gradient).scatter_add_(-1, index, gradient), None
