"""Base class of the posteriors q(z | x)."""

from __future__ import annotations

from pyrovae.distributions.conditional import ConditionalPart


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

    def __init__(self, latent_dim: int) -> None:
        if latent_dim < 1:
            raise ValueError(f"`latent_dim` must be an integer >= 1, got {latent_dim}")
        super().__init__((latent_dim,))

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions."""
        return self.event_shape[0]
