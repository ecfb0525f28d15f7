"""A negative binomial distribution that is right at large counts and in the limit of a Poisson distribution."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.function import Function
from pyrovae.distributions.stirling import digamma_lack, log_and_excess

HUGE = 80.0  # log m above which all else is small against m, which float32 will soon not hold
RANGE = (-60.0, 40.0)  # of log r: below it x is 0, above it the distribution is a Poisson one


class NegativeBinomial(dist.TorchDistribution):
    """Whole numbers from 0 on with mean m and variance m + m^2 / r.

    ``log P(x) = log Gamma(x + r) - log Gamma(r) - log x! + r log(r / (r + m)) + x log(m / (r + m))``

    For large x or r its terms cancel, and torch's loses nats in float32; here what remains of them is computed: see
    `Poisson`, to which it tends for large r.

    Args:
        log_mean: log m of each element.
        log_total_count: log r of each element; beyond -60 and 40 nothing changes any more.

    """

    arg_constraints = {"log_mean": constraints.real, "log_total_count": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_total_count: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_mean, self.log_total_count = log_mean, log_total_count
        shape = torch.broadcast_shapes(log_mean.shape, log_total_count.shape)
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> NegativeBinomial:
        """Return the distribution with a larger batch shape."""
        new = self._get_checked_instance(NegativeBinomial, _instance)
        new.log_mean, new.log_total_count = self.log_mean.expand(batch_shape), self.log_total_count
        super(NegativeBinomial, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return _LogProb.apply(self.log_mean, self.log_total_count, value)

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """The variance, m + m^2 / r."""
        return self.mean + (2 * self.log_mean - self.log_total_count).exp()

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw counts, as floats of the mean's type: Poisson draws whose rate is a gamma variable."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            gamma = torch._standard_gamma(self.log_total_count.exp().expand(shape))
            return torch.poisson(gamma * (self.log_mean - self.log_total_count).exp())


def _log_ratio(log_mean: Tensor, total_count: Tensor, value: Tensor) -> Tensor:
    """Return log((r + m) / (r + x)), which grows like log m where m is beyond all else."""
    capped = log_mean.clamp(max=HUGE)
    mean = capped.exp()
    difference = mean - value
    ratio = difference.sign() * (difference.abs() / (total_count + torch.minimum(mean, value))).log1p()
    return ratio + (log_mean - capped)


class _LogProb(Function):
    """The saddle-point form, exact with its corrections: two deviances and what factorials exceed x log x - x by.

    What depends on x or r alone is computed in its shape.
    """

    generate_vmap_rule = True

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
            value * of_value + at_least_1 * torch.expm1(-of_value)  # less 1 where x = 0
        )
        return (log_total - log_both) + (both_excess - total_excess) - value_excess - deviance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

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
