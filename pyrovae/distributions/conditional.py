"""What likelihoods and posteriors have in common: parameters on the last axis, and a distribution made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.runtime.serialization import Described


class ConditionalPart(Described, nn.Module, ABC):
    """A module that turns the output of a network into a distribution over events of a fixed shape.

    Attributes:
        n_params: parameters per element of the event; an option may decide it.
        event_shape: shape of one event, without batch axes.

    """

    n_params: int

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    @property
    def param_shape(self) -> tuple[int, ...]:
        """``(*event_shape, n_params)``: what the network must emit for each datum."""
        return (*self.event_shape, self.n_params)

    @abstractmethod
    def forward(self, params: Tensor) -> TorchDistribution:
        """Turn ``(*batch, *event_shape, n_params)`` into a distribution with that batch and event shape."""

    def checked(self, params: Tensor) -> Tensor:
        """Return ``params`` as they are, if their shape is ``(*batch, *param_shape)``.

        Raises:
            ValueError: if the trailing axes are not ``param_shape``.

        """
        if tuple(params.shape[-len(self.param_shape) :]) != self.param_shape:
            raise ValueError(
                f"{type(self).__name__} needs parameters of shape (*batch, {_axes(self.param_shape)}), but received "
                f"{tuple(params.shape)}; build the network with out_shape={self._role}.param_shape"
            )
        return params

    def split(self, params: Tensor) -> tuple[Tensor, ...]:
        """Return the ``n_params`` tensors ``(*batch, *event_shape)`` that lie on the last axis of ``params``.

        Raises:
            ValueError: if the trailing axes are not ``param_shape``.

        """
        checked = self.checked(params)
        return (checked.squeeze(-1),) if self.n_params == 1 else checked.unbind(-1)  # unbind copies in its backward

    _role: ClassVar[str] = "part"


def _axes(shape: tuple[int, ...]) -> str:
    return ", ".join(str(size) for size in shape)
