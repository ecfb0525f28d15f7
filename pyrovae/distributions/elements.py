"""Base classes of distributions, and independent elements of one datum."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.autograd import Function


class BroadcastDistribution(dist.TorchDistribution):
    """A distribution whose parameters broadcast against the batch shape and are never repeated.

    To derive from it, set the attributes, call the constructor, and implement `_log_prob`.
    """

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None) -> Self:
        """Return the distribution with a larger batch shape and the same parameters."""
        new = self._get_checked_instance(type(self), _instance)
        vars(new).update(vars(self))
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability or log-density of each event, nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self._log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @abstractmethod
    def _log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of valid values, in a shape that broadcasts against the batch shape."""


class SavesInputs(Function):
    """A function whose backward needs all its inputs; it runs under `torch.func.vmap`."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Save the inputs."""
        ctx.save_for_backward(*inputs)


class Event(dist.Independent):
    """`pyro.distributions.Independent` that a plate of the same size does not copy."""

    def expand(self, batch_shape: torch.Size | list[int], _instance: Any = None) -> Event:
        """Return the distribution with a larger batch shape, or itself if it has that shape already."""
        if _instance is None and torch.Size(batch_shape) == self.batch_shape:
            return self
        new = self._get_checked_instance(type(self), _instance)
        vars(new).update(vars(self))
        return super().expand(batch_shape, _instance=new)


class Elements(Event):
    """`pyro.distributions.Independent` whose error for data outside the support names the remedy.

    Args:
        base: distribution of the elements, ``(*batch, *x_shape)``.
        num_dims: number of axes of one datum.
        description: of valid data, the beginning of the error: "Bernoulli scores data that are 0 or 1".
        hint: remedy, the end of the error.
        validate_args: whether values are validated.

    """

    def __init__(
        self,
        base: dist.TorchDistribution,
        num_dims: int,
        *,
        description: str,
        hint: str,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(base, num_dims, validate_args=validate_args)
        self.description, self.hint = description, hint

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each datum, nats."""
        self.check(value)
        return super().log_prob(value)

    def check(self, value: Tensor) -> None:
        """Raise a ValueError for values outside the support, if Pyro's validation is on."""
        if not self.base_dist._validate_args:
            return
        valid = self.base_dist.support.check(value) & value.isfinite()  # infinity passes torch's check of real numbers
        if not valid.all():
            raise ValueError(
                f"{self.description}, but {int((~valid).sum())} of {valid.numel()} values are not "
                f"(smallest {value.min():.3g}, largest {value.max():.3g}); {self.hint}"
            )


def unexpanded(x: Tensor) -> Tensor:
    """Return a view of a tensor in which expanded axes have one element."""
    for dim, stride in enumerate(x.stride()):
        if stride == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which log-probabilities are summed: float64, or float32 on MPS, which has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64
