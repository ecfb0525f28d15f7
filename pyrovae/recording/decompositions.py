"""What Inductor makes faster on a CPU when it is said in other operations.

Each function takes the place of one of torch's where a graph is compiled. Half precision is left alone: it would be
rounded more often.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

LN_2 = 0.693359375, -2.12194440e-4  # in two parts, of which the first has few enough digits for exact multiples
LOWEST, HIGHEST = -87.3, 89.0  # exp of what is below is 0 here, of what is above inf
COEFFICIENTS = (0.016625051, 0.08378023, 0.33334229, 0.99998462, 2.0, 2.0)  # of 2 exp(x) for |x| <= log(2) / 2
SMALLEST = 2**14  # elements for which it pays: what is not an exponential to Inductor, it computes anew for each reader


def addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return ``bias + left @ right``, the bias added in a loop that goes over the output anyway, where torch copies it
    into the output beforehand.
    """
    if not _is_full(bias) or beta != 1 or alpha != 1:
        return NotImplemented
    return left @ right + bias


def exp(x: Tensor) -> Tensor:
    """Return the exponential by operations that are parts of a loop, where Inductor calls a function for each vector.

    ``exp(x) = 2^(n-1) 2 exp(x - n log 2)`` with a whole number n, which is written into the exponent of a float32, and
    a polynomial of degree 5. The relative error is 2e-7 at most; what is below 2e-38 is 0.
    """
    if x.dtype != torch.float32 or x.numel() < SMALLEST:
        return NotImplemented
    x = x.clamp(LOWEST, HIGHEST)
    n = (x * (1 / math.log(2))).round()
    rest = x - n * LN_2[0] - n * LN_2[1]
    power = ((n.to(torch.int32) + 126) << 23).view(torch.float32)
    value: Any = COEFFICIENTS[0]
    for coefficient in COEFFICIENTS[1:]:
        value = value * rest + coefficient
    return value * power


def sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid with the exponential above."""
    return 1 / (1 + (-x).exp()) if x.dtype == torch.float32 and x.numel() >= SMALLEST else NotImplemented


def tanh(x: Tensor) -> Tensor:
    """Return ``tanh(x) = 2 sigmoid(2 x) - 1``, several times as fast as the tanh of vectors.

    The error is 2e-7 at most in float32, 4e-16 in float64.
    """
    return 2 * (2 * x).sigmoid() - 1 if _is_full(x) else NotImplemented


def _is_full(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)


DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    aten.addmm.default: addmm,
    aten.exp.default: exp,
    aten.sigmoid.default: sigmoid,
    aten.tanh.default: tanh,
}
