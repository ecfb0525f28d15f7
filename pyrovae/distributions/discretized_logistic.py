"""A logistic distribution rounded to levels."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.function import Function

_AT_ONCE = 16  # edges whose probabilities a mean holds in memory


class DiscretizedLogistic(dist.TorchDistribution):
    """Whole numbers u from 0 to L - 1: the nearest to a logistic variable, the ends taking what lies beyond them.

    ``P(u) = F(u + 1/2) - F(u - 1/2)``, open at both ends, F(y) = sigmoid((y - m) / s)

    The difference is computed as ``sigmoid(b) sigmoid(-a) (1 - exp(a - b))``, which has nothing to cancel: the
    log-probability of a level far from the location is right too. *PixelCNN++ (Salimans, Karpathy, Chen, Kingma 2017)*,
    https://arxiv.org/abs/1701.05517

    Args:
        loc: location, on the scale on which levels 0 to L - 1 are -1 to 1.
        log_scale: logarithm of the scale, on the same.
        levels: L.

    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}

    def __init__(self, loc: Tensor, log_scale: Tensor, levels: int, *, validate_args: bool | None = None) -> None:
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """Whole numbers from 0 to L - 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> DiscretizedLogistic:
        """Return the distribution with a larger batch shape."""
        new = self._get_checked_instance(DiscretizedLogistic, _instance)
        new.loc, new.log_scale, new.levels = (
            self.loc.expand(batch_shape),
            self.log_scale.expand(batch_shape),
            self.levels,
        )
        super(DiscretizedLogistic, new).__init__(new.loc.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return _LogProb.apply(value, *torch.broadcast_tensors(self.loc, self.log_scale, value)[:2], self.levels)

    @property
    def mean(self) -> Tensor:
        """sum_{k >= 1} P(u >= k)."""
        edges = torch.arange(1, self.levels, dtype=self.loc.dtype, device=self.loc.device) * 2 - self.levels
        loc, inverse = self.loc.unsqueeze(-1), (-self.log_scale).exp().unsqueeze(-1)
        parts = (edges / (self.levels - 1)).split(_AT_ONCE)
        return torch.stack([((loc - part) * inverse).sigmoid().sum(-1) for part in parts]).sum(0)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw levels, as floats of the location's type."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            noise = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).logit()
            x = self.loc + self.log_scale.exp() * noise
            return ((x + 1) * ((self.levels - 1) / 2)).round().clamp(0, self.levels - 1)


def _standardized(value: Tensor, loc: Tensor, log_scale: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Return 1 / s, (u - m) / s, half a level in units of s, u's edges a and b, and b - a, infinite being 1e30.

    The ends are masks in the shape of u, which are added, since `masked_fill` and `where` are slow on a CPU.
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
