"""Logistic distribution rounded to levels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import constraints

from pyrovae.distributions.elements import BroadcastDistribution

EDGES = 16  # edges between levels whose probabilities the mean holds in memory at once


class DiscretizedLogistic(BroadcastDistribution):
    """The integer u from 0 to L - 1 that is nearest to a logistic variable; the ends take the mass beyond them.

    ``P(u) = F(u + 1/2) - F(u - 1/2)``, open at both ends, F(y) = sigmoid((y - m) / s)

    The difference is computed as ``sigmoid(b) sigmoid(-a) (1 - exp(a - b))``, which does not cancel, so that the
    log-probability of a level far from the location is accurate too.

    *PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017)*, https://arxiv.org/abs/1701.05517

    Args:
        loc: location m, in units in which levels 0 to L - 1 are -1 to 1.
        log_scale: logarithm of the scale s, in the same units.
        levels: L.
        validate_args: whether arguments and values are validated.

    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}

    def __init__(self, loc: Tensor, log_scale: Tensor, levels: int, *, validate_args: bool | None = None) -> None:
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Integers from 0 to L - 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _LogProb.apply(value, *torch.broadcast_tensors(self.loc, self.log_scale, value)[:2], self.levels)

    @property
    def mean(self) -> Tensor:
        """sum_{k >= 1} P(u >= k)."""
        edges = torch.arange(1, self.levels, dtype=self.loc.dtype, device=self.loc.device) * 2 - self.levels
        loc, inverse = self.loc.unsqueeze(-1), (-self.log_scale).exp().unsqueeze(-1)
        parts = (edges / (self.levels - 1)).split(EDGES)
        mean = torch.stack([((loc - part) * inverse).sigmoid().sum(-1) for part in parts]).sum(0)
        return mean.expand(self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw levels, in the dtype of the location."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).logit()
        x = self.loc + self.log_scale.exp() * noise
        return ((x + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)


def _standardized(value: Tensor, loc: Tensor, log_scale: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Return 1 / s, (u - m) / s, half a level in units of s, the edges a and b of u, and b - a; infinity is 1e30.

    The infinite edges are added as masks in the shape of u, since `masked_fill` and `where` are slow on a CPU.
    """
    inverse = log_scale.neg().exp()
    center = ((2 * value - (levels - 1)) / (levels - 1) - loc) * inverse  # 2 u - (L - 1) is exact in float32
    half = (inverse / (levels - 1)).clamp(min=torch.finfo(inverse.dtype).tiny)
    below, above = 1e30 * (value <= 0).to(half.dtype), 1e30 * (value >= levels - 1).to(half.dtype)
    return inverse, center, half, center - half - below, center + half + above, 2 * half + (below + above)


class _LogProb(Function):
    """``log P = min(b, 0) - max(a, 0) + log[(1 - exp(a - b)) / (1 + exp(-|a|)) / (1 + exp(-|b|))]``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, loc: Tensor, log_scale: Tensor, levels: int) -> Tensor:
        _, _, _, low, high, width = _standardized(value, loc, log_scale, levels)
        both = low.abs().neg_().exp_().add_(1) * high.abs().neg_().exp_().add_(1)
        ratio = width.neg_().expm1_().neg_() / both
        return ratio.log_() + high.clamp(max=0) - low.clamp(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.levels = inputs[3]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        value, loc, log_scale = ctx.saved_tensors
        inverse, center, half, low, high, width = _standardized(value, loc, log_scale, ctx.levels)
        _, for_loc, for_log_scale, _ = ctx.needs_input_grad
        above, below = high.neg().sigmoid(), low.sigmoid()  # mass above and below the level
        pull = above - below
        grad_loc = grad_log_scale = None
        if for_loc:
            grad_loc = -(gradient * pull * inverse)
        if for_log_scale:
            widening = width * (-width).exp() / -torch.expm1(-width)
            grad_log_scale = -gradient * (center * pull + half * (above + below) + widening)
        return None, grad_loc, grad_log_scale, None
