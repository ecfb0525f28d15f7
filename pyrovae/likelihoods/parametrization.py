"""Floors of log-scales, and parameters at which a distribution has a given mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def floored(log_scale: Tensor, floor: Tensor) -> Tensor:
    """Return a log-scale above the floor: ``floor + exp(asinh(t / 2))`` with ``t = log_scale - floor``.

    This is t + 1/t for large t and -1/t far below 0. Value and gradient decay as a power, not exponentially, so that a
    scale near the floor still recovers; the gradient of a hard clamp is 0.
    """
    return floor + ((log_scale - floor) / 2).asinh().exp()


def unfloored(log_scale: Tensor, floor: Tensor) -> Tensor:
    """Return the argument at which `floored` equals ``log_scale``, a value above the floor."""
    height = log_scale - floor
    return floor + height - torch.reciprocal(height)


def solve(mean_of: Callable[[Tensor], Tensor], mean: Tensor, *, low: float, high: float) -> Tensor:
    """Return x with ``mean_of(x) == mean``, element by element, in float64.

    Newton's method in a bracket that shrinks with each step; a step out of the bracket is replaced by its midpoint.

    Args:
        mean_of: an increasing elementwise function.
        mean: the target values.
        low: a point at which ``mean_of`` is below the target.
        high: a point at which it is above.

    """
    mean = mean.detach().double()
    lower, upper = torch.full_like(mean, low), torch.full_like(mean, high)
    x = (lower + upper) / 2
    for _ in range(200):
        with torch.enable_grad():
            point = x.requires_grad_()
            value = mean_of(point)
            (slope,) = torch.autograd.grad(value.sum(), point)
        x, value = point.detach(), value.detach()
        lower, upper = torch.where(value < mean, x, lower), torch.where(value < mean, upper, x)
        step = x - (value - mean) / slope
        step = torch.where((step > lower) & (step < upper), step, (lower + upper) / 2)
        if ((step - x).abs() <= 4e-16 * (1 + x.abs())).all():
            return step
        x = step
    return x
