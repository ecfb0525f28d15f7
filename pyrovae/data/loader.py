"""Data as the arguments of programs, minibatch by minibatch, on the device of training or in host memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from pyrovae.data.splits import Split, count_not_finite
from pyrovae.data.transforms import Identity, float_dtype
from pyrovae.runtime import memory
from pyrovae.runtime.annotations import convert

logger = logging.getLogger("pyrovae")

FIRST = 2**16  # elements whose values are counted
MOST_LEVELS = 256  # largest number of distinct values of discrete data
REPETITIONS, FREQUENT = 5, 0.8  # occurrences of a frequent value, and the share of discrete values that are frequent
TENSORS = "tensors"  # name of data without a split
# share of free memory that data may take: weights, gradients, moments of Adam and activations need the remainder, whose
# size is unknown before the first step
RESIDENT_SHARE = 0.5

Source = Annotated[
    Split | Tensor | tuple[Tensor, ...],
    "pyrovae.data.load_split makes one split of an array, a torch data set or a loader, and pyrovae.data.load divides "
    "it into train, validation and test",
]


def num_distinct(x: Tensor) -> int | None:
    """Return the number of distinct values among the first elements of x, None if they do not look discrete."""
    _, counts = x.flatten()[:FIRST].unique(return_counts=True)
    discrete = len(counts) <= MOST_LEVELS and (counts >= REPETITIONS).sum() >= FREQUENT * len(counts)
    return len(counts) if discrete and len(counts) else None


class Loader:
    """Data of any kind as the arguments of a Pyro program.

    Attributes:
        source: the data as given.
        split: the split, None for tensors.
        stored: the stored values, then the covariates of a split, or the further tensors.
        name: name of the split; "tensors" without one.

    Args:
        source: a split, whose covariates are a second argument if it has any; the data ``(N, ...)``; or a tuple of the
            data and other tensors along the plate.

    Raises:
        ValueError: if there are no data, values that are not finite, or tensors of different lengths.
        TypeError: if the source has another type.

    """

    def __init__(self, source: Source) -> None:
        """Convert arrays to tensors and validate them; a split has validated its own."""
        self.source: Source = convert(source, Source, name="data", owner="a loader")
        self.split: Split | None = None
        if isinstance(self.source, Split):
            self.split, self.name = self.source, self.source.name
            self.stored = (self.split.stored, *self.split.given)
            return
        self.name, self.stored = TENSORS, self.source if isinstance(self.source, tuple) else (self.source,)
        shapes = [tuple(tensor.shape) for tensor in self.stored]
        if not all(shapes) or len({shape[:1] for shape in shapes}) != 1:
            raise ValueError(f"data and further tensors share their first axis, but received shapes {shapes}")
        if len(self) == 0:
            raise ValueError("the data set is empty; give at least one datum")
        if bad := sum(map(count_not_finite, self.stored)):
            raise ValueError(
                f"the data hold {bad} values that are NaN or infinite; fill missing ones by any number, give their "
                "mask as a second tensor, and mask the site: with pyro.poutine.mask(mask=mask): ..."
            )

    def __len__(self) -> int:
        return len(self.stored[0])

    @property
    def num_bytes(self) -> int:
        """Size of the stored tensors."""
        return sum(tensor.nbytes for tensor in self.stored)

    @property
    def num_fixed_bytes(self) -> int:
        """Size of the tensor that `fixed` creates and keeps beside the stored one."""
        stored, dtype = self.stored[0], float_dtype(self.stored[0])
        unchanged = self.split is None or (isinstance(self.split.transform, Identity) and stored.dtype == dtype)
        return 0 if unchanged else stored.numel() * dtype.itemsize

    @property
    def drawn_once(self) -> bool:
        """Whether all epochs have the noise of `fixed`."""
        return self.split is not None and self.split.transform.once

    @property
    def device(self) -> torch.device:
        """Device of the data."""
        return self.stored[0].device

    @property
    def num_values(self) -> int | None:
        """Number of distinct values of the data; None for a tuple, noisy or continuous data."""
        if isinstance(self.source, tuple) or (self.split is not None and self.split.transform.random):
            return None
        rows = max(1, FIRST // max(1, self.stored[0][0].numel()))
        return num_distinct(self.stored[0][:rows])

    def first(self, n: int) -> Loader:
        """Return a loader of the first n data points, or of all if there are fewer."""
        return self._map(lambda data: data.first(n) if isinstance(data, Split) else data[:n])

    def is_on(self, device: torch.device | str) -> bool:
        """Return whether all stored tensors are on a device."""
        device = torch.empty(0, device=device).device  # "cuda" has no index, the device of a tensor has one
        return all(tensor.device == device for tensor in self.stored)

    def to(self, device: torch.device | str) -> Loader:
        """Return a loader of the same data on another device; this one if it is there."""
        return self if self.is_on(device) else self._map(lambda data: data.to(device))

    def _map(self, function: Callable[[Any], Any]) -> Loader:
        """Return a loader with a function applied to the split or to each tensor."""
        return Loader(tuple(map(function, self.source)) if isinstance(self.source, tuple) else function(self.source))

    def stored_rows(self) -> tuple[Tensor, ...]:
        """Return the tensors from which steps take rows: x as stored, or with its fixed noise, and the covariates."""
        return self.fixed() if self.drawn_once else self.stored

    def arguments(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """Return rows of `stored_rows`, on any device, as arguments, with fresh noise if the transform is random."""
        if self.split is not None and not self.drawn_once:
            return self.split.transform.apply(rows[0], levels=self.split.levels), *rows[1:]
        return rows

    def draw(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the rows with the numbers ``(B,)`` as arguments, with fresh noise from torch's default stream."""
        return self.arguments(*(tensor[rows] for tensor in self.stored_rows()))

    def fixed(self) -> tuple[Tensor, ...]:
        """Return all rows as arguments, with noise drawn once."""
        return self.stored if self.split is None else (self.split.fixed(), *self.split.given)


def place(loaders: Sequence[Loader], device: torch.device) -> tuple[list[Loader], bool]:
    """Return data on a device, or in host memory if they would take too much of the device's, and whether they stay.

    Args:
        loaders: training data, then validation data if there are any.
        device: device of training.

    Raises:
        ValueError: if tensors made once for all epochs do not fit in host memory, or data that lie on another
            accelerator do not fit on this one.

    """
    hint = "train on a part of it"
    fixed = float(sum(x.num_fixed_bytes for number, x in enumerate(loaders) if number or x.drawn_once))
    size, free = fixed + sum(loader.num_bytes for loader in loaders), memory.available(device)
    if all(loader.is_on("cpu") for loader in loaders) and size > RESIDENT_SHARE * free:
        memory.require(fixed, what="the data, transformed once for all epochs,", hint=hint)
        logger.warning(
            "the data stay in host memory, from which minibatches are copied: they take %s, and %s are free on %s",
            memory.in_words(size),
            memory.in_words(free),
            device,
        )
        return list(loaders), True
    size = fixed + sum(loader.num_bytes for loader in loaders if not loader.is_on(device))
    memory.require(size, what="the data set", hint=hint, device=device)
    return [loader.to(device) for loader in loaders], False
