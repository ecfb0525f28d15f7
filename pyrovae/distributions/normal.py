"""Normal distribution by its log-scale, and the log-density of many normal elements."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.compile import is_recording
from pyrovae.distributions.elements import sum_dtype, unexpanded

BLOCK_ELEMENTS = 2**17  # elements summed at once on a CPU, so that float64 temporaries stay in its cache


class LogScaleNormal(dist.Normal):
    """`pyro.distributions.Normal` whose log-density does not take the logarithm of an exponential.

    ``log p(x) = -1/2 (x - m)^2 exp(-2 l) - l - 1/2 log 2 pi``

    Args:
        loc: mean m.
        log_scale: l, the logarithm of the standard deviation.
        validate_args: whether arguments and values are validated.

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
        """Return the log-density of each element, nats."""
        if self._validate_args:
            self._validate_sample(value)
        y = (value - self.loc) / self.scale
        return -0.5 * (y * y) - (self.log_scale + 0.5 * math.log(2 * math.pi))


@torch.no_grad()
def normal_log_prob_sum(loc: Tensor, scale: Tensor, value: Tensor, num_dims: int) -> Tensor:
    """Return the log-density of normal elements summed over the last axes, without gradients.

    ``sum_i log N(z_i; m_i, s_i^2) = -1/2 sum_i ((z_i - m_i) / s_i)^2 - sum_i log s_i - D/2 log(2 pi)``

    All terms are in float64 where the device has it, so that the error is the rounding of the arguments. Expanded axes,
    such as particles for the scale, are computed once.

    Args:
        loc: m.
        scale: s, of a shape that broadcasts against m.
        value: z, of a shape that broadcasts against m.
        num_dims: n, the number of axes to sum over, at least 1; they hold D elements.

    Returns:
        The joint shape of the three without its last n axes, nats.

    """
    tensors = torch.broadcast_tensors(value, loc, scale)
    shape, dtype = tensors[0].shape, sum_dtype(value)
    if is_recording() or len(shape) == num_dims:
        return _sum(*tensors, buffer=torch.empty(shape, dtype=dtype, device=value.device), num_dims=num_dims)
    size = BLOCK_ELEMENTS if value.device.type == "cpu" else math.prod(shape)
    rows = max(1, size // max(1, math.prod(shape[1:])))
    buffer = torch.empty((min(rows, shape[0]), *shape[1:]), dtype=dtype, device=value.device)
    blocks = zip(*(x.split(rows) for x in tensors), strict=True)
    return torch.cat([_sum(*block, buffer=buffer[: len(block[0])], num_dims=num_dims) for block in blocks])


def _sum(value: Tensor, loc: Tensor, scale: Tensor, *, buffer: Tensor, num_dims: int) -> Tensor:
    """Return the sum over the last axes of three tensors of one shape, with a buffer of this shape."""
    event, dims = value.shape[-num_dims:], tuple(range(-num_dims, 0))
    loc, scale = unexpanded(loc).to(buffer.dtype), unexpanded(scale).to(buffer.dtype)
    logs = scale.log()
    log_det = logs.expand(*logs.shape[:-num_dims], *event).sum(dims)
    squares = buffer.copy_(value).sub_(loc).mul_(scale.reciprocal()).square_().sum(dims)
    return -0.5 * (squares + math.log(2 * math.pi) * math.prod(event)) - log_det
