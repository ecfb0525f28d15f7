"""Base classes of the posteriors q(z | x)."""

from __future__ import annotations

from torch import Tensor

from pyrovae.distributions.conditional import ConditionalPart
from pyrovae.runtime.annotations import PositiveInt

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -10.0, 10.0  # above the minimum, a float32 log q is right to 2e-4 nats/dimension


class Posterior(ConditionalPart):
    """Base class of the posteriors: the distribution of z given the encoder's output for a data point.

    To write your own, derive a class, set ``n_params`` and define ``forward``:

        >>> import pyro.distributions as dist
        >>> class Laplace(Posterior):
        ...     '''Independent Laplace elements, location and log-scale from the encoder.'''
        ...
        ...     n_params = 2  # numbers that the encoder emits per latent dimension
        ...
        ...     def forward(self, params):  # (*batch, latent_dim, n_params)
        ...         location, log_scale = self.split(params)  # n_params tensors (*batch, latent_dim)
        ...         return dist.Laplace(location, log_scale.exp()).to_event(1)

    The distribution has event shape ``(latent_dim,)`` and draws with gradients (``has_rsample``). An option may decide
    ``n_params``: set it in the constructor. ``testing.check(Laplace(2))`` tests the class. To add it to the package,
    write one file in ``pyrovae/posteriors/`` and add one import and one name to its ``__init__.py``.

    Attributes:
        n_params: numbers that the encoder emits per latent dimension.

    Args:
        latent_dim: D, the number of latent dimensions.

    Raises:
        ValueError: if latent_dim < 1.

    """

    _role = "posterior"

    def __init__(self, latent_dim: PositiveInt) -> None:
        super().__init__((latent_dim,))

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions."""
        return self.event_shape[0]


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
        latent_dim: PositiveInt,
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
