"""Series and differences that stay accurate where formulas cancel.

The functions combine their pieces by clamps and masks, since `torch.where` is slow on a CPU, and use only the terms
that the dtype needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_FAR = 16.0  # from this x on the series are exact in float64
_LOG_FAR = math.log(_FAR)
_EXCESS_AT_FAR = math.lgamma(_FAR + 1) - _FAR * _LOG_FAR + _FAR
_EXCESS_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)  # coefficients of x^-1, x^-3, ...
_BINET = (1 / 12, 1 / 30, 53 / 210, 195 / 371, 22999 / 22737)  # numerators of the continued fraction
_LACK_SERIES = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)  # coefficients of x^-2, x^-4, ...


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return ``c_0 + c_1 x + c_2 x^2 + ...`` of two coefficients or more, by Horner's scheme."""
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total


def log_and_excess(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log x`` and ``log x! - (x log x - x)``, about log(2 pi x) / 2, for real x > 0.

    Without the difference, float32 is wrong by nats in the log-probability of a count of a million.
    """
    near, inverse, log = x.clamp(max=_FAR), x.clamp(min=_FAR).reciprocal_(), x.log()
    log_near, log_far = log.clamp(max=_LOG_FAR), (log - _LOG_FAR).relu()  # log(x / 16), or 0
    series = polynomial(inverse * inverse, _EXCESS_SERIES[: 5 if x.dtype == torch.float64 else 2]).mul_(inverse)
    excess = (near + 1).lgamma_().sub_(near * log_near).add_(near)
    constant = 0.5 * math.log(2 * math.pi * _FAR) - _EXCESS_AT_FAR
    return log, excess.add_(log_far, alpha=0.5).add_(series.add_(constant))


def log_and_excess_of_counts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same for x >= 1, accurate in float32 and four times as fast.

    ``log x! - (x log x - x) = (x + 1/2) log(1 + 1/x) + log(2 pi x) / 2 - 1 + J(x + 1)`` with five terms of the
    continued fraction of Binet's function J
    """
    log, after = x.log(), x + 1
    binet = after.reciprocal().mul_(_BINET[-1])
    for coefficient in _BINET[-2::-1]:
        binet.add_(after).reciprocal_().mul_(coefficient)
    step = x.reciprocal().log1p_().mul_(after.sub_(0.5))
    return log, binet.add_(step).add_(log, alpha=0.5).add_(0.5 * math.log(2 * math.pi) - 1)


def digamma_lack(x: Tensor) -> Tensor:
    """Return ``log x - digamma(x)``, about 1 / (2 x), for real x > 0."""
    terms, num_steps = (7, 12) if x.dtype == torch.float64 else (4, 6)
    is_far = (x >= _FAR).to(x.dtype)
    near = x.clamp(max=_FAR)
    correction, shifted = near.reciprocal(), near + 1  # digamma(x) = digamma(x + 1) - 1 / x
    for _ in range(num_steps - 1):
        correction, shifted = correction + shifted.reciprocal(), shifted + 1
    exact = near.log() - shifted.log() + correction + _lack_series(shifted, terms)
    return is_far * _lack_series(x.clamp(min=_FAR), terms) + (1 - is_far) * exact


def _lack_series(x: Tensor, terms: int) -> Tensor:
    inverse = x.reciprocal()
    square = inverse * inverse
    return 0.5 * inverse + square * polynomial(square, _LACK_SERIES[:terms])
