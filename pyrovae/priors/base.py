"""The prior p(z), and how to write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pyro.distributions import TorchDistribution
from torch import nn

from pyrovae.runtime.serialization import Described


class Prior(Described, nn.Module, ABC):
    """The distribution of the latent variable z of one datum.

    To write your own, copy `StandardNormal` (the shortest): keep constants as buffers and what is learned as
    parameters, so that both follow the module to its device and into its run folder, and return a distribution whose
    event shape is ``(latent_dim,)`` and whose batch shape is empty. `pyrovae.testing.check` tests it.

    Attributes:
        conditional: whether ``forward`` takes the covariates ``(B, ...)`` of a conditional model; its batch shape is
            then ``(B,)``.

    Args:
        latent_dim: D, the number of latent dimensions.

    Raises:
        ValueError: if there is not at least one.

    """

    conditional: ClassVar[bool] = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"a latent variable has at least 1 dimension, but received latent_dim={latent_dim}")
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self) -> TorchDistribution:
        """Return p(z), of event shape ``(latent_dim,)``."""
