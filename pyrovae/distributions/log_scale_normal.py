"""A normal distribution given by its log-scale."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class LogScaleNormal(dist.Normal):
    """`pyro.distributions.Normal` that need not take the logarithm of what was an exponential.

    ``log p(x) = -1/2 (x - m)^2 exp(-2 l) - l - 1/2 log 2 pi``

    Args:
        loc: mean m.
        log_scale: l, the logarithm of the standard deviation.

    """

    def __init__(self, loc: Tensor, log_scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_scale = log_scale
        super().__init__(loc, log_scale.exp(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> LogScaleNormal:
        """Return the distribution with a larger batch shape."""
        new = self._get_checked_instance(LogScaleNormal, _instance)
        new.log_scale = self.log_scale
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each element, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        y = (value - self.loc) / self.scale
        return -0.5 * (y * y) - (self.log_scale + 0.5 * math.log(2 * math.pi))
