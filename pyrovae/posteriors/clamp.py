"""The clamp of log-variances."""

from __future__ import annotations

from torch import Tensor

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -10.0, 10.0  # the lower: a float32 log q is right to 2e-4 nats per dimension


def check_bounds(low: float, high: float) -> tuple[float, float]:
    """Return the bounds of a clamp.

    Raises:
        ValueError: if they are not in order.

    """
    if not low < high:
        raise ValueError(f"the clamp of the log-variance needs min < max, but received [{low}, {high}]")
    return low, high


def clamp(log_variance: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Cut values at the bounds and let the gradient pass, so that what ran out of bounds finds its way back."""
    value = log_variance.detach()
    return log_variance + (value.clamp(*bounds) - value)
