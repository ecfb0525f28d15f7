"""Chunks: the runs of a program that cover K particles of some rows of the data, and their sizes per device type.

A CPU is fast while a chunk fits into its caches. CUDA needs large chunks: launching an operation takes as long as
computing some millions of elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.programs import PARTICLE_PLATE, ModelGuide, Program, take_rows

FEWEST_ROWS = 64  # rows of the smallest chunk


@dataclass(frozen=True)
class ChunkSizes:
    """How much is computed at once.

    Attributes:
        scored: elements of the largest tensor of the model, x or the output of a module, where it scores particles; no
            number but for rounding depends on it.
        compiled: the same where that is compiled, which holds more of them in memory.
        moved: the same with gradients, where chains are moved; batches of AIS, and so its draws, depend on it.
        rows: that a program is run on, at most.
        drawn: elements of z that the guide draws. Draws depend on it, and on the next two.
        drawn_rows: for which it draws them, at most: a flow holds its hidden layers for each. Where a pair takes no
            axis of particles, so that its encoder runs for each, it is the number of rows above.
        particles: of one batch, whose log-weights are kept.

    """

    scored: int
    compiled: int
    moved: int
    rows: int
    drawn: int
    drawn_rows: int
    particles: int


ON_CPU = ChunkSizes(
    scored=2**22, compiled=2**21, moved=2**20, rows=2**12, drawn=2**22, drawn_rows=2**17, particles=2**18
)
ON_CUDA = ChunkSizes(
    scored=2**26, compiled=2**26, moved=2**24, rows=2**17, drawn=2**24, drawn_rows=2**21, particles=2**21
)


def chunk_sizes(device: torch.device) -> ChunkSizes:
    """Return how much is computed at once on a device."""
    return ON_CUDA if device.type == "cuda" else ON_CPU


def rows_per_chunk(
    programs: ModelGuide, device: torch.device, *, gradients: bool = False, compiled: bool = False
) -> int:
    """Return how many rows the model is run on at once.

    Args:
        programs: from `scoring_context`.
        device: of the data.
        gradients: whether they are asked for.
        compiled: whether the run is compiled.

    """
    sizes = chunk_sizes(device)
    elements = sizes.moved if gradients else sizes.compiled if compiled else sizes.scored
    return min(sizes.rows, max(FEWEST_ROWS, elements // max(1, programs.num_units)))


@dataclass(frozen=True)
class Chunk:
    """One run of a program: on K particles of some rows, or on rows that repeat the data.

    A run covers ``length`` particles, or rows, of which the first ``count`` are asked for; the others repeat the first.
    """

    rows: Tensor
    start: int
    count: int
    length: int
    has_particles: bool = False

    def with_plate(self, programs: ModelGuide, program: Program) -> Program:
        """Return a program with this chunk's axis of particles."""
        return (
            pyro.plate(PARTICLE_PLATE, self.length, dim=-1 - programs.nesting)(program)
            if self.has_particles
            else program
        )

    def slice(self, value: Tensor) -> Tensor:
        """Return this chunk's part of ``(K, B, ...)`` or ``(K * B, ...)``, filled up to the length of the run."""
        return _filled(value[self.start : self.start + self.count], self.length)

    def trim(self, result: Tensor) -> Tensor:
        """Return what counts of a result of this chunk's run."""
        return result[: self.count]


def iter_chunks(
    programs: ModelGuide, rows: Tensor, num_particles: int, *, size: int, alike: bool = False
) -> Iterator[Chunk]:
    """Yield the runs that cover all particles of some rows.

    Args:
        programs: from `scoring_context`.
        rows: ``(B,)``, rows of the data.
        num_particles: K.
        size: rows of one run, a datum with K particles counting K; about as many at most.
        alike: whether all runs have the same length, the last filled up.

    """
    if programs.broadcasts:
        limit = max(1, size // len(rows))
        for start in range(0, num_particles, limit):
            count = min(limit, num_particles - start)
            yield Chunk(rows, start, count, limit if alike else count, has_particles=True)
        return
    repeated = rows.repeat(num_particles)
    limit = programs.num_rows if programs.draws_rows else min(size, programs.max_rows)
    for start in range(0, len(repeated), limit):
        part = repeated[start : start + limit]
        length = limit if alike or programs.draws_rows else len(part)
        yield Chunk(_filled(part, length), start, len(part), length)


class ChunkBuffer:
    """What the runs find of K particles of B rows, several results of each.

    Without gradients they are written into one tensor as they come. If the small results of each run were kept, each
    would break up the memory that the large tensors of a run have left, and the next run would have to ask for new.

    Args:
        num_particles: K.
        num_rows: B.

    """

    def __init__(self, num_particles: int, num_rows: int) -> None:
        self.shape = (num_particles, num_rows)
        self._parts: list[list[Tensor]] = []
        self._whole: list[Tensor] = []

    def add(self, chunk: Chunk, results: Sequence[Tensor]) -> None:
        """Take the results of one run, each ``(K', B)`` or ``(K' * B,)``."""
        results = [chunk.trim(each) for each in results]
        if any(each.requires_grad for each in results):
            self._parts.append(results)
            return
        if not self._whole:
            length = self.shape[0] if chunk.has_particles else math.prod(self.shape)
            self._whole = [each.new_empty((length, *each.shape[1:])) for each in results]
        for whole, each in zip(self._whole, results, strict=True):
            part = whole[chunk.start : chunk.start + chunk.count]
            part.copy_(each.reshape(part.shape))  # nothing is repeated in silence

    def joined(self) -> list[Tensor]:
        """Return each result of all runs, ``(K, B)``."""
        whole = [torch.cat(parts) for parts in zip(*self._parts, strict=True)] or self._whole
        return [each.reshape(self.shape) for each in whole]


def even_chunk_size(programs: ModelGuide, rows: Tensor, num_particles: int, *, size: int) -> int:
    """Return a size of runs, at most the given one, at which the last is nearly as long as the others."""
    whole, unit = (num_particles, len(rows)) if programs.broadcasts else (num_particles * len(rows), 1)
    limit = max(1, size // unit)
    return math.ceil(whole / math.ceil(whole / limit)) * unit


def _filled(part: Tensor, length: int) -> Tensor:
    """Return a tensor of that length, the first row repeated at its end where some are missing."""
    missing = length - len(part)
    return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part


def iter_batches(programs: ModelGuide, num_data: int, *, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows ``(B,)`` that cover all data once, and how many of them count: a pair that draws its own rows takes a
    fixed number, so that its last batch is filled up.
    """
    size = programs.num_rows if programs.draws_rows else min(batch_size, programs.max_rows)
    for start in range(0, num_data, size):
        count = min(size, num_data - start)
        rows = torch.arange(start, start + (size if programs.draws_rows else count))
        yield rows % num_data, count


def on_device(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, device: torch.device
) -> tuple[tuple[Any, ...], Tensor]:
    """Return arguments on a device, and which of their rows are the given ones ``(B,)``.

    Of data that lie elsewhere no other rows are brought there, unless the pair takes all of them.
    """
    if programs.draws_rows:
        return tuple(argument.to(device) for argument in args), rows.to(device)
    return tuple(part.to(device) for part in take_rows(args, rows)), torch.arange(len(rows), device=device)
