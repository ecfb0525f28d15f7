"""Factorials less what cancels in the probabilities of counts.

The functions are pieced together by clamps and masks, since `torch.where` is slow on a CPU, and use no more terms than
the type of the numbers calls for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.distributions.polynomial import polynomial

_FAR = 16.0  # from which on the series are exact in float64
_LOG_FAR = math.log(_FAR)
_EXCESS_AT_FAR = math.lgamma(_FAR + 1) - _FAR * _LOG_FAR + _FAR
_EXCESS_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)  # of x^-1, x^-3, ...
_BINET = (1 / 12, 1 / 30, 53 / 210, 195 / 371, 22999 / 22737)  # of the continued fraction
_LACK_SERIES = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12)  # of x^-2, x^-4, ...


def log_and_excess(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log x``, and ``log x! - (x log x - x)`` which is about log(2 pi x) / 2, for real x > 0.

    Without the difference, a count of a million has a log-probability that float32 gets wrong by nats.
    """
    near, inverse, log = x.clamp(max=_FAR), x.clamp(min=_FAR).reciprocal_(), x.log()
    log_near, log_far = log.clamp(max=_LOG_FAR), (log - _LOG_FAR).relu()  # log(x / 16), or 0
    series = polynomial(inverse * inverse, _EXCESS_SERIES[: 5 if x.dtype == torch.float64 else 2]).mul_(inverse)
    excess = (near + 1).lgamma_().sub_(near * log_near).add_(near)
    constant = 0.5 * math.log(2 * math.pi * _FAR) - _EXCESS_AT_FAR
    return log, excess.add_(log_far, alpha=0.5).add_(series.add_(constant))


def log_and_excess_of_counts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same for x >= 1, right to float32: in fewer steps, since each new tensor costs as much as a logarithm.

    ``log x! - (x log x - x) = (x + 1/2) log(1 + 1/x) + log(2 pi x) / 2 - 1 + J(x + 1)`` with Binet's function J, of
    which five terms of the continued fraction are taken.
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
    carried, shifted = near.reciprocal(), near + 1  # digamma(x) = digamma(x + 1) - 1 / x
    for _ in range(num_steps - 1):
        carried, shifted = carried + shifted.reciprocal(), shifted + 1
    exact = near.log() - shifted.log() + carried + _lack_series(shifted, terms)
    return is_far * _lack_series(x.clamp(min=_FAR), terms) + (1 - is_far) * exact


def _lack_series(x: Tensor, terms: int) -> Tensor:
    inverse = x.reciprocal()
    square = inverse * inverse
    return 0.5 * inverse + square * polynomial(square, _LACK_SERIES[:terms])
