"""A Bernoulli distribution for many binary elements."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pyrovae.compile import is_recording
from pyrovae.distributions.elements import unexpanded
from pyrovae.distributions.function import Function

FACTORS = 8  # probabilities that are multiplied before a logarithm is taken
MOST_FACTORS = 64  # the same of numbers between 1 and 2, where it is compiled
LANES = 16  # elements that a processor computes at once
BLOCK_ELEMENTS = 2**20  # elements summed at once on a CPU: what falls out of its cache costs more than the arithmetic


class BinaryBernoulli(dist.Bernoulli):
    """`pyro.distributions.Bernoulli` by logits, with a faster log-probability.

    ``log p(x) = x l - max(l, 0) - log(1 + exp(-|l|))``
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        if logits.shape != value.shape:
            logits, value = torch.broadcast_tensors(logits, value)
        return _LogProb.apply(logits, value)

    def log_prob_of_events(self, value: Tensor, num_dims: int) -> Tensor:
        """Return the log-probability summed over the last axes, with its gradient, in fewer operations.

        It is torch's function that computes them. Where x is 0 and all but certain, its error is half a unit in the
        last place of the logit, in float32 5e-7 at most, which is more than that of `log_prob`.

        Args:
            value: x, of a shape that broadcasts against the batch shape.
            num_dims: n, how many axes to sum over, at least 1.

        Returns:
            The batch shape of both together without its last n axes, nats.

        """
        logits = self.logits
        if logits.dtype != value.dtype or logits.dtype not in (torch.float32, torch.float64) or not self._plain:
            return self.log_prob(value).flatten(-num_dims).sum(-1)
        if self._validate_args:
            self._validate_sample(value)
        if logits.shape != value.shape:
            logits, value = torch.broadcast_tensors(logits, value)
        if num_dims > 1:
            logits, value = logits.flatten(-num_dims), value.flatten(-num_dims)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)

    def log_prob_sum(self, value: Tensor, num_dims: int) -> Tensor:
        """Return the log-probability summed over the last axes, without gradients and with few logarithms.

        ``sum_i log p(x_i) = log prod_i sigmoid((2 x_i - 1) l_i)``

        Eight factors at a time. Where eight of them underflow, and where x are not zeros and ones, it is
        ``sum_i (x_i l_i - max(l_i, 0)) + log prod_i sigmoid(|l_i|)``, whose factors are at least 1/2. The error is that
        of float32 in each element; sums of many are in float64.

        Args:
            value: x, zeros and ones, of a shape that broadcasts against the batch shape.
            num_dims: n, how many axes to sum over, at least 1.

        Returns:
            The batch shape without its last n axes, nats, in float64 where the device has it.

        """
        if not self._plain:
            log_prob = self.log_prob(value).flatten(-num_dims)
            return log_prob.sum(-1, dtype=log_prob.dtype if log_prob.device.type == "mps" else torch.float64)
        if self._validate_args:
            self._validate_sample(value)
        with torch.no_grad():
            logits, value = (x.flatten(-num_dims) for x in torch.broadcast_tensors(self.logits, value))
            if is_recording():
                return _recorded_sum(logits, value)
            out = logits.new_empty(
                logits.shape[:-1], dtype=torch.float32 if logits.device.type == "mps" else torch.float64
            )
            return _sum_into(out, logits, value)

    @property
    def _plain(self) -> bool:
        """Whether no class made from this one has a log-probability of its own."""
        return type(self).log_prob is BinaryBernoulli.log_prob


class _LogProb(Function):
    """The log-probability, with the gradient x - sigmoid(l), which holds at l = 0 too where the formula has a kink."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, value: Tensor) -> Tensor:
        log = logits.abs().neg_().exp_().log1p_()
        return torch.mul(value, logits).sub_(logits.relu()).sub_(log)  # in this order large terms cancel first

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, value = ctx.saved_tensors
        for_logits, for_value = ctx.needs_input_grad
        return (
            (value - logits.sigmoid()).mul_(gradient) if for_logits else None,
            gradient * logits if for_value else None,
        )


def _recorded_sum(logits: Tensor, value: Tensor) -> Tensor:
    """Return the sum over the last axis in a form without branches, of which a compiler makes one loop.

    ``sum_i (x_i l_i - max(l_i, 0)) - log prod_i (1 + exp(-|l_i|))``, many factors at a time, each at most 2
    """
    shape, logits = logits.shape[:-1], logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits, value = (torch.atleast_2d(each).flatten(0, -2) for each in (logits, value))
    lanes = logits.shape[-1] // LANES
    factors = lanes // math.ceil(lanes / MOST_FACTORS) if lanes else 1
    whole = logits.shape[-1] // (factors * LANES) * factors * LANES
    linear, rest = _terms(logits[..., whole:], value[..., whole:])
    terms = [(linear - rest.log()).sum(-1, dtype=torch.float64)]
    if whole:
        blocks = (each[..., :whole].unflatten(-1, (-1, factors, LANES)) for each in (logits, value))
        linear, products = _terms(*blocks)
        terms.append((linear.sum(-2) - products.prod(-2).log()).sum((-2, -1), dtype=torch.float64))
    return sum(terms[1:], terms[0]).reshape(shape)


def _terms(logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is to be summed and what is to be multiplied."""
    return value * logits - logits.relu(), 1 + (-logits.abs()).exp()


def _sum_into(out: Tensor, logits: Tensor, value: Tensor) -> Tensor:
    """Write the log-probabilities of logits and values ``(*batch, E)`` into ``(*batch,)``, block by block."""
    limit = BLOCK_ELEMENTS if logits.device.type == "cpu" else logits.numel()
    per_row = math.prod(logits.shape[1:])
    if logits.ndim > 2 and per_row > limit:
        for row in zip(out, logits, value, strict=True):
            _sum_into(*row)
    elif logits.ndim == 1:
        _sum_into(out.unsqueeze(0), logits.unsqueeze(0), value.unsqueeze(0))
    else:
        size = max(1, limit // max(1, per_row))
        memory = torch.empty_like(logits[:size], memory_format=torch.contiguous_format)
        distinct = unexpanded(value)
        binary = bool((distinct == distinct.square()).all())
        signs = (2 * distinct.to(logits.dtype) - 1).expand_as(value) if binary else None  # bytes have no -1
        for start in range(0, len(out), size):
            part = slice(start, start + size)
            sign = None if signs is None else signs[part]
            _sum_block(out[part], logits[part], value[part], sign, memory[: len(out[part])])
    return out


def _sum_block(out: Tensor, logits: Tensor, value: Tensor, signs: Tensor | None, memory: Tensor) -> None:
    """Write the log-probabilities of one block: of zeros and ones by signs, 2 x - 1; memory is of the logits' shape."""
    if signs is not None:
        products = _products(torch.mul(logits, signs, out=memory).sigmoid_())
        if products.numel() and products.min() >= torch.finfo(products.dtype).tiny:  # underflow costs digits
            torch.sum(products.log_(), -1, dtype=out.dtype, out=out)
            return
    hits = _products(torch.abs(logits, out=memory).sigmoid_())
    torch.sum(hits.log_(), -1, dtype=out.dtype, out=out)
    torch.clamp_min(logits, 0, out=memory).addcmul_(logits, value, value=-1)  # max(l, 0) - x l, exactly 0 at a hit
    out.sub_(memory.sum(-1, dtype=out.dtype))


def _products(factors: Tensor) -> Tensor:
    """Return products of some factors each ``(*batch, E)``, then the factors that remain."""
    groups = factors.shape[-1] // FACTORS
    if not groups:
        return factors
    products = factors[..., : groups * FACTORS].unflatten(-1, (FACTORS, groups)).prod(-2)
    rest = factors[..., groups * FACTORS :]
    return torch.cat([products, rest], -1) if rest.shape[-1] else products
