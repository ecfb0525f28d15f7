"""Data as the arguments of programs, minibatch by minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.data.splits import Split, count_not_finite, fingerprint
from pyrovae.data.transform import float_dtype
from pyrovae.data.transforms import Identity

FIRST = 2**16  # elements whose values are counted
MOST_LEVELS = 256  # distinct values of data that may be discrete
REPETITIONS, FREQUENT = 5, 0.8  # how often values of discrete data repeat at least, and the share that do

Source = Split | Tensor | tuple[Tensor, ...]


def num_distinct(x: Tensor) -> int | None:
    """Return the number of distinct values among the first elements of x, None if they do not look discrete."""
    _, counts = x.flatten()[:FIRST].unique(return_counts=True)
    few = len(counts) <= MOST_LEVELS and (counts >= REPETITIONS).sum() >= FREQUENT * len(counts)
    return len(counts) if few and len(counts) else None


@dataclass(frozen=True, eq=False)
class Loader:
    """Data of any kind as the arguments of a Pyro program, row by row.

    Args:
        source: a split, whose covariates come as a further argument if it has any; the data ``(N, ...)`` themselves; or
            a tuple of these and what travels with them.

    Raises:
        ValueError: if there are no data, some are not finite, or tensors differ in length.
        TypeError: if it is something else.

    """

    source: Source

    def __post_init__(self) -> None:
        if isinstance(self.source, Split):
            return
        if not isinstance(self.source, (Tensor, tuple)) or not all(isinstance(t, Tensor) for t in self._tensors):
            parts = self.source if isinstance(self.source, tuple) else (self.source,)
            kind = next(type(part).__name__ for part in parts if not isinstance(part, Tensor))
            raise TypeError(
                f"data are a tensor, a tuple of tensors or a split of a data set, but received {kind}; "
                "pyrovae.data.load_split makes one split of all that an array, a torch data set or a loader holds, and "
                "pyrovae.data.load divides it into train, validation and test"
            )
        if not len(self._tensors) or any(t.ndim == 0 or len(t) != len(self._tensors[0]) for t in self._tensors):
            lengths = [tuple(t.shape) for t in self._tensors]
            raise ValueError(f"data and what travels with them share their first axis, but received shapes {lengths}")
        if len(self) == 0:
            raise ValueError("the data set is empty; give at least one datum")
        for tensor in self._tensors:
            if bad := count_not_finite(tensor):
                raise ValueError(f"the data hold {bad} values that are NaN or infinite; remove or replace them first")

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.source if isinstance(self.source, tuple) else (self.source,)  # type: ignore[return-value]

    @property
    def _stored(self) -> tuple[Tensor, ...]:
        return (self.source.stored, *self.source.given) if isinstance(self.source, Split) else self._tensors

    def __len__(self) -> int:
        return len(self.source) if isinstance(self.source, Split) else len(self._tensors[0])

    @property
    def num_bytes(self) -> int:
        """Size as stored."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._stored)

    @property
    def num_fixed_bytes(self) -> int:
        """Size of what `fixed` makes of the stored values and keeps beside them."""
        if not isinstance(self.source, Split):
            return 0
        stored, dtype = self.source.stored, float_dtype(self.source.stored)
        as_it_is = isinstance(self.source.transform, Identity) and stored.dtype == dtype
        return 0 if as_it_is else stored.numel() * dtype.itemsize

    @property
    def drawn_once(self) -> bool:
        """Whether the noise of all epochs is that of `fixed`."""
        return isinstance(self.source, Split) and self.source.transform.once

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self._stored[0].device

    @property
    def num_values(self) -> int | None:
        """Number of distinct values of the first data; None if they are many, seldom repeat, or hold noise."""
        if isinstance(self.source, Split) and self.source.transform.random:
            return None
        rows = max(1, FIRST // max(1, self._stored[0][0].numel()))
        return num_distinct(self._stored[0][:rows])

    def lies_on(self, device: torch.device | str) -> bool:
        """Tell whether the data, and what travels with them, are there."""
        where = torch.empty(0, device=device).device  # no tensor says "cuda", but "cuda:0"
        return all(tensor.device == where for tensor in self._stored)

    def to(self, device: torch.device | str) -> Loader:
        """Return the same data on another device; themselves if that is where they are."""
        if self.lies_on(device):
            return self
        if isinstance(self.source, tuple):
            return Loader(tuple(tensor.to(device) for tensor in self.source))
        return Loader(self.source.to(device))

    def draw(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return some rows ``(B,)`` as arguments, with fresh noise from torch's default stream where there is any."""
        return self.arguments(*(tensor[rows] for tensor in self.held()))

    def held(self) -> tuple[Tensor, ...]:
        """Return the tensors of which steps take rows: x as it is stored, or drawn once and for all; what is given."""
        if isinstance(self.source, Split):
            return (self.source.fixed() if self.drawn_once else self.source.stored, *self.source.given)
        return self._tensors

    def arguments(self, *taken: Tensor) -> tuple[Tensor, ...]:
        """Return rows taken of what is held, on any device, as arguments, with fresh noise where there is any."""
        if isinstance(self.source, Split) and not self.drawn_once:
            return self.source.transform.apply(taken[0], levels=self.source.levels), *taken[1:]
        return taken

    def everything(self) -> tuple[Tensor, ...]:
        """Return all rows as arguments, with fresh noise where there is any."""
        return self.draw(torch.arange(len(self), device=self.device))

    def fixed(self) -> tuple[Tensor, ...]:
        """Return all rows as arguments, their noise drawn once and for all."""
        return (self.source.fixed(), *self.source.given) if isinstance(self.source, Split) else self._tensors

    def hash(self) -> str:
        """Return the fingerprint of `fixed`."""
        return fingerprint(*self.fixed())

    def shuffled(self, batch_size: int, device: torch.device | str) -> Iterator[Tensor]:
        """Yield the row numbers ``(B,)`` of one epoch in the order that torch's default stream gives."""
        order = torch.randperm(len(self), device=device)
        yield from order.split(batch_size)
