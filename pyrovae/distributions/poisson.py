"""A Poisson distribution that is right at large counts in float32."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.function import Function
from pyrovae.distributions.stirling import log_and_excess, log_and_excess_of_counts


class Poisson(dist.TorchDistribution):
    """Whole numbers from 0 on, given by the logarithm of their mean.

    ``log P(x) = x l - exp(l) - log x!``

    At a count of a million the three terms are a million times their sum. What remains after they have cancelled,
    ``-x (d + exp(-d) - 1)`` with d = log(x) - l, is computed instead (see *Fast and accurate computation of binomial
    probabilities (Loader 2000)*, https://www.r-project.org/doc/reports/CLoader-dbinom-2002.pdf).

    Args:
        log_rate: l of each element.

    """

    arg_constraints = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> Poisson:
        """Return the distribution with a larger batch shape."""
        new = self._get_checked_instance(Poisson, _instance)
        new.log_rate = self.log_rate.expand(batch_shape)
        super(Poisson, new).__init__(new.log_rate.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return _LogProb.apply(self.log_rate, value)

    @property
    def mean(self) -> Tensor:
        """exp(l)."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """exp(l)."""
        return self.log_rate.exp()

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, as floats of the rate's type."""
        with torch.no_grad():
            return torch.poisson(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))


class _LogProb(Function):
    """The log-probability, with the gradient x - exp(l); what depends on x alone is computed in its shape."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_rate: Tensor, value: Tensor) -> Tensor:
        at_least_1 = value.clamp(min=1)
        of_counts = log_and_excess if value.dtype == torch.float64 else log_and_excess_of_counts
        log_value, excess = of_counts(at_least_1)
        distance = log_value - log_rate
        beyond = distance.neg().expm1_().mul_(at_least_1)  # exp(l) - x, or exp(l) - 1 where x = 0
        return distance.mul_(value).add_(beyond).add_(excess).neg_()  # the excess is 1 where x = 0, too

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        log_rate, value = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        return (value - log_rate.exp()).mul_(gradient).sum_to_size(log_rate.shape), None
