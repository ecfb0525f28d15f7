"""Distributions of counts that are accurate for large counts in float32."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.elements import BroadcastDistribution, SavesInputs
from pyrovae.distributions.series import digamma_lack, log_and_excess, log_and_excess_of_counts

HUGE = 80.0  # log m above which all other terms are negligible against m, near the largest number of float32
RANGE = (-60.0, 40.0)  # of log r: below it x is 0, above it the distribution is a Poisson distribution


class Poisson(BroadcastDistribution):
    """Counts with a given logarithm of their mean.

    ``log P(x) = x l - exp(l) - log x!``

    At a count of a million the three terms are a million times as large as their sum. `log_prob` computes the sum
    without cancellation, as ``-x (d + exp(-d) - 1)`` with d = log(x) - l and a correction: *Fast and accurate
    computation of binomial probabilities (Loader 2000)*,
    https://www.r-project.org/doc/reports/CLoader-dbinom-2002.pdf

    Args:
        log_rate: l of each element.
        validate_args: whether arguments and values are validated.

    """

    arg_constraints = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, validate_args=validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _PoissonLogProb.apply(self.log_rate, value)

    @property
    def mean(self) -> Tensor:
        """exp(l)."""
        return self.log_rate.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """exp(l)."""
        return self.mean

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, in the dtype of the log-rate."""
        return torch.poisson(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))


class NegativeBinomial(BroadcastDistribution):
    """Counts with mean m and variance m + m^2 / r.

    ``log P(x) = log Gamma(x + r) - log Gamma(r) - log x! + r log(r / (r + m)) + x log(m / (r + m))``

    For large x or r the terms cancel, and torch's log-probability is wrong by nats in float32; `log_prob` computes
    their sum without cancellation, as in `Poisson`, the limit for large r.

    Args:
        log_mean: log m of each element.
        log_total_count: log r of each element; values beyond -60 and 40 have no further effect.
        validate_args: whether arguments and values are validated.

    """

    arg_constraints = {"log_mean": constraints.real, "log_total_count": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_total_count: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_mean, self.log_total_count = log_mean, log_total_count
        shape = torch.broadcast_shapes(log_mean.shape, log_total_count.shape)
        super().__init__(shape, validate_args=validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _NegativeBinomialLogProb.apply(self.log_mean, self.log_total_count, value)

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """The variance, m + m^2 / r."""
        return self.mean + (2 * self.log_mean - self.log_total_count).exp()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, in the dtype of the log-mean: Poisson variables whose rate is a gamma variable."""
        shape = self._extended_shape(torch.Size(sample_shape))
        gamma = dist.Gamma(self.log_total_count.exp(), 1.0, validate_args=False).expand(shape).sample()
        return torch.poisson(gamma * (self.log_mean - self.log_total_count).exp())


class _PoissonLogProb(SavesInputs):
    """The log-probability, with the gradient x - exp(l); functions of x alone are computed in the shape of x."""

    @staticmethod
    def forward(log_rate: Tensor, value: Tensor) -> Tensor:
        at_least_1 = value.clamp(min=1)
        of_counts = log_and_excess if value.dtype == torch.float64 else log_and_excess_of_counts
        log_value, excess = of_counts(at_least_1)
        distance = log_value - log_rate
        beyond = distance.neg().expm1_().mul_(at_least_1)  # exp(l) - x, or exp(l) - 1 where x = 0
        return distance.mul_(value).add_(beyond).add_(excess).neg_()  # the excess of 1 is 1, which completes x = 0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        log_rate, value = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        return (value - log_rate.exp()).mul_(gradient).sum_to_size(log_rate.shape), None


class _NegativeBinomialLogProb(SavesInputs):
    """The saddle-point form, made exact by corrections: two deviances, and factorials less x log x - x.

    Functions of x or r alone are computed in the shape of x or r.
    """

    @staticmethod
    def forward(log_mean: Tensor, log_total_count: Tensor, value: Tensor) -> Tensor:
        total_count = log_total_count.clamp(*RANGE).exp()
        at_least_1 = value.clamp(min=1)
        log_value, value_excess = log_and_excess(at_least_1)
        log_total, total_excess = log_and_excess(total_count)
        log_both, both_excess = log_and_excess(value + total_count)
        of_total = _log_ratio(log_mean, total_count, value)
        of_value = of_total + log_value - log_mean
        deviance = total_count * (of_total + torch.expm1(-of_total)) + (
            value * of_value + at_least_1 * torch.expm1(-of_value)  # too small by 1 where x = 0, as the excess
        )
        return (log_total - log_both) + (both_excess - total_excess) - value_excess - deviance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        log_mean, log_total_count, value = ctx.saved_tensors
        for_mean, for_total_count, _ = ctx.needs_input_grad
        total_count = log_total_count.clamp(*RANGE).exp()
        weight = gradient * total_count
        mean = log_mean.clamp(max=HUGE).exp()
        fraction = (mean - value) / (total_count + mean)
        grad_mean = grad_total_count = None
        if for_mean:
            grad_mean = (-weight * fraction).sum_to_size(log_mean.shape)
        if for_total_count:
            lack = digamma_lack(total_count) - digamma_lack(value + total_count)
            slope = fraction - _log_ratio(log_mean, total_count, value) + lack
            grad_total_count = (weight * slope).sum_to_size(log_total_count.shape)
        return grad_mean, grad_total_count, None


def _log_ratio(log_mean: Tensor, total_count: Tensor, value: Tensor) -> Tensor:
    """Return log((r + m) / (r + x)), which grows like log m for huge m."""
    capped = log_mean.clamp(max=HUGE)
    mean = capped.exp()
    difference = mean - value
    ratio = difference.sign() * (difference.abs() / (total_count + torch.minimum(mean, value))).log1p()
    return ratio + (log_mean - capped)
