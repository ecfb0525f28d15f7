"""A floor under a log-scale, through which gradients pass."""

from __future__ import annotations

import torch
from torch import Tensor


def floored(log_scale: Tensor, floor: Tensor) -> Tensor:
    """Return a log-scale above the floor: ``floor + exp(asinh(t / 2))`` of ``t = log_scale - floor``.

    That is t + 1/t for large t and -1/t far below 0: it falls off, and its gradient with it, as a power and not as an
    exponential, so that a unit that has sunk to the floor still comes up again. A hard clamp's gradient is 0.
    """
    return floor + ((log_scale - floor) / 2).asinh().exp()


def unfloored(log_scale: Tensor, floor: Tensor) -> Tensor:
    """Return the argument at which `floored` has the value ``log_scale``, which lies above the floor."""
    height = log_scale - floor
    return floor + height - torch.reciprocal(height)
