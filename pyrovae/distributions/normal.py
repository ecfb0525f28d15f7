"""The log-density of many normal elements, summed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.compile import is_recording
from pyrovae.distributions.elements import unexpanded

BLOCK_ELEMENTS = 2**17  # elements summed at once on a CPU, in a block of memory that stays in its cache


def normal_log_prob_sum(loc: Tensor, scale: Tensor, value: Tensor, num_dims: int) -> Tensor:
    """Return the log-density of normal elements summed over the last axes, without gradients and right to rounding.

    ``sum_i log N(z_i; m_i, s_i^2) = -1/2 sum_i ((z_i - m_i) / s_i)^2 - sum_i log s_i - D/2 log(2 pi)``

    All in float64 where the device has it, so that the error is that of the arguments, and in few operations: what
    expanded axes repeat, such as the scale over particles, is found once.

    Args:
        loc: m.
        scale: s, of a shape that broadcasts against that of m.
        value: z, of a shape that broadcasts against that of m.
        num_dims: n, how many axes to sum over, at least 1; they hold D elements.

    Returns:
        The shape of all three together without its last n axes, nats.

    """
    with torch.no_grad():
        value, loc, scale = torch.broadcast_tensors(value, loc, scale)
        if value.ndim == num_dims:
            return normal_log_prob_sum(loc.unsqueeze(0), scale.unsqueeze(0), value.unsqueeze(0), num_dims)[0]
        dtype = torch.float32 if value.device.type == "mps" else torch.float64
        event, summed = value.shape[-num_dims:], tuple(range(-num_dims, 0))
        if is_recording():
            rate, constant = _of_scale(unexpanded(scale).to(dtype), event, dtype)
            return ((value.to(dtype) - loc) * rate).square().sum(summed).mul(-0.5) + constant
        out = torch.empty(value.shape[:-num_dims], dtype=dtype, device=value.device)
        per_row = max(1, math.prod(value.shape[1:]))
        size = max(1, BLOCK_ELEMENTS // per_row if value.device.type == "cpu" else len(value))
        buffer = torch.empty(value[:size].shape, dtype=dtype, device=value.device)
        loc, scale = unexpanded(loc), unexpanded(scale)
        shared_loc = loc.to(dtype) if len(loc) == 1 else None
        shared = _of_scale(scale.to(dtype), event, dtype) if len(scale) == 1 else None
        for start in range(0, len(value), size):
            part = slice(start, start + size)
            rate, constant = shared or _of_scale(scale[part], event, dtype)
            distance = buffer[: len(value[part])].copy_(value[part])
            distance.sub_(loc[part] if shared_loc is None else shared_loc).mul_(rate).square_()
            torch.sum(distance, summed, out=out[part]).mul_(-0.5).add_(constant)
        return out


def _of_scale(scale: Tensor, event: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return 1 / s, and the terms that depend on s alone, summed over the axes of the event."""
    logs = scale.log()
    logs = logs.expand(*logs.shape[: -len(event)], *event).sum(tuple(range(-len(event), 0)), dtype=dtype)
    return scale.to(dtype).reciprocal(), -logs - 0.5 * math.log(2 * math.pi) * math.prod(event)
