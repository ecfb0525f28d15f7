"""Base class of likelihoods and posteriors: a distribution by parameters on the last axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.runtime.serialization import Described


class ConditionalPart(Described, nn.Module, ABC):
    """A module that turns the output of a network into a distribution over events of a fixed shape.

    Attributes:
        n_params: parameters per element of the event; it may depend on options.
        event_shape: shape of one event, without batch axes.

    """

    n_params: int
    _role: ClassVar[str] = "part"

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    @property
    def param_shape(self) -> tuple[int, ...]:
        """``(*event_shape, n_params)``, the shape of the network's output for one datum."""
        if not hasattr(type(self), "n_params") and "n_params" not in vars(self):
            raise TypeError(f"{type(self).__name__} must set n_params, the number of parameters per element")
        return (*self.event_shape, self.n_params)

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, *event_shape, n_params)`` into a distribution with that batch and event shape."""

    def check_shape(self, params: Tensor) -> Tensor:
        """Return parameters of shape ``(*batch, *param_shape)`` unchanged.

        Raises:
            ValueError: if the trailing axes are not ``param_shape``.

        """
        if tuple(params.shape[-len(self.param_shape) :]) != self.param_shape:
            axes = ", ".join(map(str, self.param_shape))
            raise ValueError(
                f"{type(self).__name__} needs parameters of shape (*batch, {axes}), but received "
                f"{tuple(params.shape)}; build the network with out_shape={self._role}.param_shape"
            )
        return params

    def split(self, params: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Split the last axis of the parameters into ``n_params`` tensors ``(*batch, *event_shape)``.

        A network may also return a tuple of these tensors, such as mean and log-variance.

        Raises:
            ValueError: if the trailing axes are not ``param_shape``.

        """
        params = self.check_shape(torch.stack(params, -1) if isinstance(params, tuple) else params)
        return (params.squeeze(-1),) if self.n_params == 1 else params.unbind(-1)  # unbind copies in its backward
