"""Minibatches as the inputs of steps: a few tensors each, from which the programs' arguments are made on the device.

What is made inside a step is recorded with it: rows are gathered and binarized there.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Generator

import torch
from torch import Tensor

from pyrovae.data.loader import Loader
from pyrovae.programs import ModelGuide, Program


class Feed(ABC):
    """Where the minibatches of an epoch come from.

    Attributes:
        batch_size: B, data in a minibatch, but for a last one that may be short.

    """

    batch_size: int

    @abstractmethod
    def batches(self) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield the inputs of each step of an epoch, in the order that torch's default stream gives."""

    @abstractmethod
    def bind(self, *inputs: Tensor) -> tuple[Program, Program, int]:
        """Return model and guide without arguments, for the inputs of a step, and their number of data."""

    def count(self, *inputs: Tensor) -> int:
        """Return the number of data in the inputs of a step."""
        return len(inputs[0])

    def part(self, inputs: tuple[Tensor, ...], start: int, stop: int) -> tuple[Tensor, ...]:
        """Return the inputs of a step on some of the rows."""
        return tuple(each[start:stop] for each in inputs)

    @abstractmethod
    def few(self, count: int) -> tuple[Tensor, ...]:
        """Return the inputs of a step on so many rows, whichever they are."""


class Given(Feed):
    """Minibatches that the caller brings: the inputs of a step are the arguments of the programs."""

    def __init__(self, programs: ModelGuide) -> None:
        self.programs = programs

    def few(self, count: int) -> tuple[Tensor, ...]:
        """Refuse: it has no data of its own."""
        raise ValueError("processes share the minibatches of pyrovae.fit; a step of one's own is that of one process")

    def batches(self) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield nothing: the caller has the minibatches."""
        yield from ()

    def bind(self, *inputs: Tensor) -> tuple[Program, Program, int]:
        """Return the programs called with the inputs."""
        return (
            functools.partial(self.programs.model, *inputs),
            functools.partial(self.programs.guide, *inputs),
            len(inputs[0]),
        )


class Resident(Feed):
    """Data that lie on the device as they were stored; the inputs of a step are row numbers ``(B,)``."""

    def __init__(self, programs: ModelGuide, rows: Loader, batch_size: int, device: torch.device) -> None:
        self.programs, self.rows, self.device = programs, rows, device
        self.batch_size = min(batch_size, len(rows))

    def few(self, count: int) -> tuple[Tensor, ...]:
        """Return the first rows, as often as it takes."""
        return (torch.arange(count, device=self.device) % len(self.rows),)

    def batches(self) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield row numbers."""
        yield from ((numbers,) for numbers in self.rows.shuffled(self.batch_size, self.device))

    def bind(self, *inputs: Tensor) -> tuple[Program, Program, int]:
        """Gather and transform the rows."""
        args = self.rows.draw(inputs[0])
        return (
            functools.partial(self.programs.model, *args),
            functools.partial(self.programs.guide, *args),
            len(inputs[0]),
        )


class OwnRows(Feed):
    """All data, of which the pair draws rows by itself; the inputs are the rows it is made to draw, and the data."""

    def __init__(self, programs: ModelGuide, rows: Loader, device: torch.device) -> None:
        self.programs, self.rows, self.device, self.batch_size = programs, rows, device, programs.num_rows

    def batches(self) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield row numbers, all batches of the same size, with the data, whose noise is that of the epoch."""
        args = self.rows.everything()
        order = torch.randperm(len(self.rows), device=self.device)
        for start in range(0, len(order), self.batch_size):
            places = torch.arange(start, start + self.batch_size, device=self.device) % len(order)
            yield order[places], *args

    def bind(self, *inputs: Tensor) -> tuple[Program, Program, int]:
        """Make the pair draw the given rows."""
        return *self.programs.bind(inputs[1:], inputs[0]), self.batch_size

    def count(self, *inputs: Tensor) -> int:
        """Return the number of rows that the pair draws."""
        return self.batch_size

    def few(self, count: int) -> tuple[Tensor, ...]:
        """Refuse: the number of rows is the pair's."""
        raise ValueError(
            f"processes share the rows of a minibatch, but the plate {self.programs.plate!r} draws {self.batch_size} "
            f"by itself; write it as pyro.plate({self.programs.plate!r}, len(x)), or train in one process"
        )
