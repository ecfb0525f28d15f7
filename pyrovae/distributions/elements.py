"""Independent elements of one datum."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.compile import is_recording


@runtime_checkable
class SumsElements(Protocol):
    """A distribution of elements that sums their log-probabilities in fewer operations than one by one.

    Particles are scored by it where no gradient is asked for. It must agree with ``log_prob`` to rounding.
    """

    def log_prob_sum(self, value: Tensor, num_dims: int) -> Tensor:
        """Return the log-probability summed over the last axes, one or more, in nats and float64."""
        ...


class Event(dist.Independent):
    """`pyro.distributions.Independent`, of which a plate of the same size makes no copy."""

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> Event:
        """Return the distribution with a larger batch shape, itself if it has that already."""
        if _instance is None and torch.Size(batch_shape) == self.batch_shape:
            return self
        return super().expand(batch_shape, _instance=self._get_checked_instance(Event, _instance))


class Elements(Event):
    """`pyro.distributions.Independent`, whose refusal of data outside the support says what to do about them.

    Where the distribution of the elements has ``log_prob_of_events(value, num_dims)``, that sums them, with gradients.

    Args:
        base: distribution of the elements, ``(*batch, *x_shape)``.
        num_dims: number of axes of one datum.
        told: what is scored, the beginning of the sentence that refuses.
        hint: what to do, its end.

    """

    def __init__(
        self,
        base: dist.TorchDistribution,
        num_dims: int,
        *,
        told: str,
        hint: str,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(base, num_dims, validate_args=validate_args)
        self.told, self.hint = told, hint

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> Elements:
        """Return the distribution with a larger batch shape, itself if it has that already."""
        if _instance is None and torch.Size(batch_shape) == self.batch_shape:
            return self
        new = self._get_checked_instance(Elements, _instance)
        new.told, new.hint = self.told, self.hint
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each datum, in nats."""
        self.check(value)
        of_events, num_dims = getattr(self.base_dist, "log_prob_of_events", None), self.reinterpreted_batch_ndims
        if of_events is None or not num_dims or is_recording():  # a compiler sums on its own
            return super().log_prob(value)
        return of_events(value, num_dims)

    def check(self, value: Tensor) -> None:
        """Refuse values outside the support, if Pyro's checks are on.

        Raises:
            ValueError: with what is scored, what was received and what to do.

        """
        if not self.base_dist._validate_args:
            return
        inside = self.base_dist.support.check(value) & value.isfinite()  # torch's real line has infinite ends
        if not inside.all():
            raise ValueError(
                f"{self.told}, but {int((~inside).sum())} of {inside.numel()} values are not "
                f"(smallest {value.min():.3g}, largest {value.max():.3g}); {self.hint}"
            )


def unexpanded(x: Tensor) -> Tensor:
    """Return a tensor with the axes along which it was expanded cut to one element."""
    for dim, stride in enumerate(x.stride()):
        if stride == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x
