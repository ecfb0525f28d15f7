"""The approximate posterior q(z | x), and how to write one."""

from __future__ import annotations

from pyrovae.distributions.conditional import ConditionalPart


class Posterior(ConditionalPart):
    """The distribution of the latent variable z given the encoder's output for one datum.

    To write your own, copy `DiagonalNormal`: say how many numbers the encoder emits per latent dimension and turn them
    into a distribution of event shape ``(latent_dim,)`` that can be sampled with gradients (``has_rsample``); an
    option may decide ``n_params``: set it in the constructor. `pyrovae.testing.check` tests it.

    Args:
        latent_dim: D, the number of latent dimensions.

    Raises:
        ValueError: if there is not at least one.

    """

    _role = "posterior"

    def __init__(self, latent_dim: int) -> None:
        if latent_dim < 1:
            raise ValueError(f"a latent variable has at least 1 dimension, but received latent_dim={latent_dim}")
        super().__init__((latent_dim,))

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions."""
        return self.event_shape[0]
