"""Parameters at which a distribution has a wanted mean."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def solve(mean_of: Callable[[Tensor], Tensor], mean: Tensor, *, low: float, high: float) -> Tensor:
    """Return x with ``mean_of(x) == mean``, element by element, in float64.

    Newton's method inside a bracket that every step makes smaller, halved where a step would leave it.

    Args:
        mean_of: a rising function that acts on each element by itself.
        mean: what is wanted.
        low: where ``mean_of`` lies below it.
        high: where it lies above.

    """
    mean = mean.detach().double()
    lower, upper = torch.full_like(mean, low), torch.full_like(mean, high)
    x = (lower + upper) / 2
    for _ in range(200):
        with torch.enable_grad():
            at = x.requires_grad_()
            value = mean_of(at)
            (slope,) = torch.autograd.grad(value.sum(), at)
        x, value = at.detach(), value.detach()
        lower, upper = torch.where(value < mean, x, lower), torch.where(value < mean, upper, x)
        step = x - (value - mean) / slope
        nearer = torch.where((step > lower) & (step < upper), step, (lower + upper) / 2)
        if ((nearer - x).abs() <= 4e-16 * (1 + x.abs())).all():
            return nearer
        x = nearer
    return x
