"""Bernoulli distribution of many binary elements."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pyrovae.compile import is_recording
from pyrovae.distributions.elements import sum_dtype, unexpanded

FACTORS = 8  # probabilities multiplied before a logarithm is taken
COMPILED_FACTORS = 64  # numbers between 1 and 2 multiplied before a logarithm is taken, in compiled code
LANES = 16  # elements that a processor computes at once
BLOCK_ELEMENTS = 2**20  # elements summed at once on a CPU: larger tensors fall out of its cache


class BinaryBernoulli(dist.Bernoulli):
    """`pyro.distributions.Bernoulli` by logits, with a faster sum over elements.

    ``log p(x) = x l - max(l, 0) - log(1 + exp(-|l|))``
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each element, nats; in float32 its error is at most 5e-7."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        if logits.shape != value.shape:
            logits, value = torch.broadcast_tensors(logits, value)
        value = value if value.is_floating_point() else value.to(logits.dtype)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none")

    def log_prob_sum(self, value: Tensor, num_dims: int) -> Tensor:
        """Return the log-probability summed over the last axes, without gradients and with few logarithms.

        ``sum_i log p(x_i) = log prod_i sigmoid((2 x_i - 1) l_i)``

        Eight factors are multiplied at a time. Where eight of them underflow, and where x is not binary, it is
        ``sum_i (x_i l_i - max(l_i, 0)) + log prod_i sigmoid(|l_i|)``, whose factors are at least 1/2. Each element has
        the error of its dtype; sums are in float64.

        Args:
            value: x, of a shape that broadcasts against the batch shape.
            num_dims: n, the number of axes to sum over, at least 1.

        Returns:
            The batch shape without its last n axes, nats, in float64 where the device has it.

        """
        if type(self).log_prob is not BinaryBernoulli.log_prob:  # a subclass with its own log-probability
            return self.log_prob(value).flatten(-num_dims).sum(-1, dtype=sum_dtype(self.logits))
        if self._validate_args:
            self._validate_sample(value)
        with torch.no_grad():
            logits, value = (x.flatten(-num_dims) for x in torch.broadcast_tensors(self.logits, value))
            if is_recording():
                return _compiled_sum(logits, value)
            if logits.ndim == 1:
                return _sum(logits, value)
            size = BLOCK_ELEMENTS if logits.device.type == "cpu" else logits.numel()
            rows = max(1, size // max(1, math.prod(logits.shape[1:])))
            return torch.cat([_sum(*block) for block in zip(logits.split(rows), value.split(rows), strict=True)])


def _sum(logits: Tensor, value: Tensor) -> Tensor:
    """Return the log-probabilities ``(*batch,)`` of logits and values ``(*batch, E)``."""
    dtype, distinct = sum_dtype(logits), unexpanded(value)
    if (distinct == distinct.square()).all():
        signs = 2 * distinct.to(logits.dtype) - 1  # in the dtype of the logits, since bytes have no -1
        products = _products((logits * signs).sigmoid_())
        if not products.numel() or products.min() >= torch.finfo(products.dtype).tiny:  # underflow costs digits
            return products.log_().sum(-1, dtype=dtype)
    products = _products(logits.abs().sigmoid_())
    linear = (value * logits).sub_(logits.relu())  # exactly 0 where a certain element is right
    return products.log_().sum(-1, dtype=dtype) + linear.sum(-1, dtype=dtype)


def _products(factors: Tensor) -> Tensor:
    """Return products of groups of factors ``(*batch, E)``, and the factors that fill no group."""
    groups = factors.shape[-1] // FACTORS
    if not groups:
        return factors
    products = factors[..., : groups * FACTORS].unflatten(-1, (FACTORS, groups)).prod(-2)
    remainder = factors[..., groups * FACTORS :]
    return torch.cat([products, remainder], -1) if remainder.shape[-1] else products


def _compiled_sum(logits: Tensor, value: Tensor) -> Tensor:
    """Return the sum over the last axis in a form without branches, which Inductor compiles to one loop.

    ``sum_i (x_i l_i - max(l_i, 0)) - log prod_i (1 + exp(-|l_i|))``, many factors at a time, each at most 2
    """
    shape, logits = logits.shape[:-1], logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits, value = (torch.atleast_2d(x).flatten(0, -2) for x in (logits, value))
    lanes = logits.shape[-1] // LANES
    factors = lanes // math.ceil(lanes / COMPILED_FACTORS) if lanes else 1
    grouped = logits.shape[-1] // (factors * LANES) * factors * LANES
    linear, remainder = _terms(logits[..., grouped:], value[..., grouped:])
    total = (linear - remainder.log()).sum(-1, dtype=torch.float64)
    if grouped:
        blocks = (x[..., :grouped].unflatten(-1, (-1, factors, LANES)) for x in (logits, value))
        linear, products = _terms(*blocks)
        total = total + (linear.sum(-2) - products.prod(-2).log()).sum((-2, -1), dtype=torch.float64)
    return total.reshape(shape)


def _terms(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summands and the factors of `_compiled_sum`."""
    return value * logits - logits.relu(), 1 + (-logits.abs()).exp()
