"""Clamp of log-variances, and the constructor of the posteriors that have one."""

from __future__ import annotations

from torch import Tensor

from pyrovae.posteriors.base import Posterior

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -10.0, 10.0  # above the minimum, a float32 log q is right to 2e-4 nats/dimension


class ClampedPosterior(Posterior):
    """Base of the posteriors that clamp the log-variance of a normal.

    Args:
        latent_dim: D, the number of latent dimensions.
        min_log_variance: lower bound of the log-variance.
        max_log_variance: upper bound of the log-variance.

    Raises:
        ValueError: if latent_dim < 1 or min_log_variance >= max_log_variance.

    """

    def __init__(
        self,
        latent_dim: int,
        *,
        min_log_variance: float = MIN_LOG_VARIANCE,
        max_log_variance: float = MAX_LOG_VARIANCE,
    ) -> None:
        super().__init__(latent_dim)
        if not min_log_variance < max_log_variance:
            raise ValueError(
                f"`min_log_variance` must be below `max_log_variance`, got {min_log_variance} and {max_log_variance}"
            )
        self.bounds = (min_log_variance, max_log_variance)

    def scale(self, log_variance: Tensor) -> Tensor:
        """Return the standard deviation of a clamped log-variance of any shape."""
        return (0.5 * self.clamp(log_variance)).exp()

    def clamp(self, log_variance: Tensor) -> Tensor:
        """Clamp values but pass the gradient, so that a unit beyond the bounds can return."""
        value = log_variance.detach()
        return log_variance + (value.clamp(*self.bounds) - value)
