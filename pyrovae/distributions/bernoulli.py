"""A Bernoulli distribution for many binary elements."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class BinaryBernoulli(dist.Bernoulli):
    """`pyro.distributions.Bernoulli` by logits, with a faster log-probability.

    ``log p(x) = x l - max(l, 0) - log(1 + exp(-|l|))``

    torch computes the logarithm by ``log1p``, which takes the larger part of an evaluation's time on a CPU; ``log`` is
    vectorized. It is as good here: its argument lies between 1 and 2, so that the absolute error is that of rounding.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        logits, value = torch.broadcast_tensors(self.logits, value)
        return _LogProb.apply(logits, value)


class _LogProb(torch.autograd.Function):
    """The log-probability, with the gradient x - sigmoid(l), which holds at l = 0 too where the formula has a kink."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, value: Tensor) -> Tensor:
        log_one_plus = logits.abs().neg_().exp_().add_(1).log_()
        return torch.mul(value, logits).sub_(logits.clamp(min=0)).sub_(log_one_plus)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, value = ctx.saved_tensors
        for_logits, for_value = ctx.needs_input_grad
        return (
            gradient * (value - logits.sigmoid()) if for_logits else None,
            gradient * logits if for_value else None,
        )
