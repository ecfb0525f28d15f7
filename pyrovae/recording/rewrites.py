"""What Inductor makes faster on a CPU when a graph says it otherwise.

Functions of this file take the place of torch's where a graph is compiled; the compiler traces them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

LN_2 = 0.693359375, -2.12194440e-4  # in two parts, of which the first has few enough digits for exact multiples
LOWEST, HIGHEST = -87.3, 89.0  # exp of what is below is 0 here, of what is above inf
COEFFICIENTS = (0.016625051, 0.08378023, 0.33334229, 0.99998462, 2.0, 2.0)  # of 2 exp(x) for |x| <= log(2) / 2
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
                node.target, after = EXPONENTIALS[node.target], True
            elif node.target is aten.tanh.default and value.dtype in FULL:
                node.target = plain_tanh
        if after:
            after_ours.add(node)


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
    return 1 / (1 + exp(-x))


def tanh(x: Tensor) -> Tensor:
    """Return ``tanh(x) = 2 sigmoid(2 x) - 1`` with the sigmoid above. The error is 2e-7 at most."""
    return 2 * sigmoid(2 * x) - 1


def plain_tanh(x: Tensor) -> Tensor:
    """Return the same with torch's sigmoid, which is several times as fast as the tanh of vectors.

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
