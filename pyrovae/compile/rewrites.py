"""What Inductor makes faster on a CPU when a graph says it otherwise.

Functions of this file take the place of torch's where a graph is compiled; the compiler traces them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

LN_2 = 0.693359375, -2.12194440e-4  # in two parts, of which the first has few enough digits for exact multiples
LOWEST, HIGHEST = -87.3, 89.0  # exp of what is below is 0 here, of what is above inf
COEFFICIENTS = (0.016625051, 0.08378023, 0.33334229, 0.99998462, 2.0, 2.0)  # of 2 exp(x) for |x| <= log(2) / 2
ROUNDING = 1.5 * 2**23 + 126  # a float32 n + this, rounded, has n + 126 in its last bits; whole for |n| < 2^22
FLAT = 9.0  # from where on tanh is 1 up to 3e-8
NUMERATOR = (1.33933442e-08, 2.06366894e-05, 3.49717773e-03, 0.133822858, 1.0)  # of tanh(x) / x in x^2 up to FLAT,
DENOMINATOR = (7.79239372e-07, 3.28831782e-04, 2.58828364e-02, 0.467155963, 1.0)  # 2.5e-7 too small where it is near 1
FULL = torch.float32, torch.float64
SMALLEST = 2**14  # elements for which an exponential pays: what is none to Inductor, it computes anew for each reader


def rewrite_for_cpu(graph: fx.Graph) -> None:
    """Let functions of this file take the place of torch's in a graph.

    Half precision is left alone, which would be rounded more often, and so are exponentials of what depends, without a
    matrix product in between, on another that was replaced. Ours read their argument many times, and where one reads
    another Inductor goes through all of it for each time, again and again.
    """
    after_ours: set[fx.Node] = set()
    for node in graph.nodes:
        after = node.target not in PRODUCTS and not after_ours.isdisjoint(node.all_input_nodes)
        if node.target is aten.addmm.default:
            if not node.kwargs and node.meta["val"].dtype in FULL:
                node.target = addmm
        elif node.target in EXPONENTIALS:
            value = node.args[0].meta["val"]
            if value.dtype == torch.float32 and value.numel() >= SMALLEST and not after:
                node.target, after = _ours(node), True
            elif node.target is aten.tanh.default and value.dtype in FULL:
                node.target = plain_tanh
        if after:
            after_ours.add(node)


def _ours(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return the function that takes the place of a node's."""
    negated = _only_reads(node, aten.neg.default) if node.target is aten.exp.default else None
    negative = negated is not None and _only_reads(negated, aten.abs.default) is not None
    return exp_of_negative if negative else EXPONENTIALS[node.target]


def _only_reads(node: fx.Node, target: Any) -> fx.Node | None:
    """Return what a node reads if it is such an operation, and nothing else reads it, nor writes to it by a view."""
    source: Any = node.args[0]
    return source if source.target is target and len(source.users) == 1 else None


def addmm(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``bias + left @ right``, the bias added in a loop that goes over the output anyway, where torch copies it
    into the output beforehand.
    """
    return left @ right + bias


def exp(x: Tensor) -> Tensor:
    """Return the exponential by operations that are parts of a loop, where Inductor calls a function for each vector.

    ``exp(x) = 2^(n-1) 2 exp(x - n log 2)`` with a whole number n, which is written into the exponent of a float32, and
    a polynomial of degree 5. The relative error is 2e-7 at most; what is below 2e-38 is 0.
    """
    return _exp(x.clamp(LOWEST, HIGHEST))


def exp_of_negative(x: Tensor) -> Tensor:
    """Return the exponential of what is at most 0; of more than 89 it is no number that means anything.

    A bound that NaN passes takes as long as four other operations.
    """
    return _exp(x.clamp_min(LOWEST))


def _exp(x: Tensor) -> Tensor:
    shifted = x * (1 / math.log(2)) + ROUNDING
    n = shifted - ROUNDING
    power = (shifted.view(torch.int32) << 23).view(torch.float32)  # 2^(n-1)
    return _polynomial(x - n * LN_2[0] - n * LN_2[1], COEFFICIENTS) * power


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return a polynomial, the coefficient of the highest power first."""
    value: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid with the exponential above."""
    return 1 / (1 + exp(-x))


def tanh(x: Tensor) -> Tensor:
    """Return tanh as a quotient of polynomials.

    The relative error is 6e-7 at most. Near 1 it is too small by 2.4e-7 in the mean, so that rounding does not take it
    beyond; a gradient that is made of it, ``1 - tanh(x)^2``, is right to 1e-6.
    """
    x = x.clamp(-FLAT, FLAT)
    square = x * x
    return x * _polynomial(square, NUMERATOR) / _polynomial(square, DENOMINATOR)


def plain_tanh(x: Tensor) -> Tensor:
    """Return ``tanh(x) = 2 sigmoid(2 x) - 1`` with torch's sigmoid, several times as fast as the tanh of vectors.

    The error is 2e-7 at most in float32, 4e-16 in float64.
    """
    return 2 * (2 * x).sigmoid() - 1


def exp_(x: Tensor) -> Tensor:
    """Write the exponential above into its argument."""
    return x.copy_(exp(x))


def sigmoid_(x: Tensor) -> Tensor:
    """Write the sigmoid above into its argument."""
    return x.copy_(sigmoid(x))


def tanh_(x: Tensor) -> Tensor:
    """Write the tanh above into its argument."""
    return x.copy_(tanh(x))


EXPONENTIALS: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.exp.default: exp,
    aten.exp_.default: exp_,
    aten.sigmoid.default: sigmoid,
    aten.sigmoid_.default: sigmoid_,
    aten.tanh.default: tanh,
    aten.tanh_.default: tanh_,
}
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    addmm,
}
