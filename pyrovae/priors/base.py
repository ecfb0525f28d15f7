"""Base class of the priors p(z)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pyro.distributions import TorchDistribution
from torch import nn

from pyrovae.runtime.annotations import PositiveInt
from pyrovae.runtime.serialization import Described


class Prior(Described, nn.Module, ABC):
    """Base class of the priors: the distribution of the latent variable z of a data point.

    To write your own, derive a class and define ``forward``:

        >>> import torch, pyro.distributions as dist
        >>> class Laplace(Prior):
        ...     '''Independent Laplace elements with learned scales.'''
        ...
        ...     def __init__(self, latent_dim):
        ...         super().__init__(latent_dim)
        ...         self.register_buffer("loc", torch.zeros(latent_dim))
        ...         self.log_scale = torch.nn.Parameter(torch.zeros(latent_dim))
        ...
        ...     def forward(self):
        ...         return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)

    Constants are buffers and learned values parameters, so that both follow the module to its device and into its run
    folder. The distribution has event shape ``(latent_dim,)`` and an empty batch shape. ``testing.check(Laplace(2))``
    tests it. To add it to the package, write one file in ``pyrovae/priors/`` and add one import and one name to its
    ``__init__.py``.

    Attributes:
        conditional: whether ``forward`` takes the covariates ``(B, ...)`` of a conditional model; the distribution then
            has batch shape ``(B,)``.

    Args:
        latent_dim: D, the number of latent dimensions.

    Raises:
        ValueError: if latent_dim < 1.

    """

    conditional: ClassVar[bool] = False

    def __init__(self, latent_dim: PositiveInt) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def forward(self) -> TorchDistribution:
        """Return p(z), of event shape ``(latent_dim,)``."""
