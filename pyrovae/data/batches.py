"""Minibatches of data that already lie on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.data.splits import Split, fingerprint

Source = Split | Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Rows:
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
            raise TypeError(
                f"data are a tensor, a tuple of tensors or a split of a data set, but received "
                f"{type(self.source).__name__}; pyrovae.data.load turns arrays, files and loaders into splits"
            )
        if not len(self._tensors) or any(t.ndim == 0 or len(t) != len(self._tensors[0]) for t in self._tensors):
            lengths = [tuple(t.shape) for t in self._tensors]
            raise ValueError(f"data and what travels with them share their first axis, but received shapes {lengths}")
        if len(self) == 0:
            raise ValueError("the data set is empty; give at least one datum")
        for tensor in self._tensors:
            bad = int((~tensor.isfinite()).sum())
            if bad:
                raise ValueError(f"the data hold {bad} values that are NaN or infinite; remove or replace them first")

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.source if isinstance(self.source, tuple) else (self.source,)  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self.source) if isinstance(self.source, Split) else len(self._tensors[0])

    @property
    def num_bytes(self) -> int:
        """Size as stored."""
        tensors = (self.source.stored, *self.source.given) if isinstance(self.source, Split) else self._tensors
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.source.stored.device if isinstance(self.source, Split) else self._tensors[0].device

    def to(self, device: torch.device | str) -> Rows:
        """Return the same data on another device."""
        if isinstance(self.source, tuple):
            return Rows(tuple(tensor.to(device) for tensor in self.source))
        return Rows(self.source.to(device))

    def draw(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return some rows ``(B,)`` as arguments, with fresh noise from torch's default stream where there is any."""
        if isinstance(self.source, Split):
            return (self.source.draw(rows), *(tensor[rows] for tensor in self.source.given))
        return tuple(tensor[rows] for tensor in self._tensors)

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
