"""Chunks: the runs of a program that cover K particles of some rows of the data, and their sizes per device type.

A CPU is fast while a chunk fits into its caches. CUDA needs large chunks: launching an operation takes as long as
computing some millions of elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.programs import PARTICLE_PLATE, ModelGuide, Program, take_rows

FEWEST_ROWS = 64  # rows of the smallest chunk


@dataclass(frozen=True)
class ChunkSizes:
    """Chunk sizes of a device type.

    Attributes:
        scored: elements of the largest tensor of the model, x or the output of a module, where it scores particles; no
            number depends on it, except for rounding.
        compiled: the same for compiled runs, which hold more such tensors in memory.
        moved: the same with gradients, where chains move; batches of AIS, and so its draws, depend on it.
        rows: most rows of one run of a program.
        drawn: elements of z in one run of the guide. Draws depend on it, and on the next two.
        drawn_rows: most rows of such a run: a flow holds its hidden layers for each. Without an axis of particles the
            encoder runs for each row, and ``rows`` is the limit.
        particles: particles of one batch, whose log-weights are kept.

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
    """Return the chunk sizes of a device."""
    return ON_CUDA if device.type == "cuda" else ON_CPU


def rows_per_chunk(
    programs: ModelGuide, device: torch.device, *, gradients: bool = False, compiled: bool = False
) -> int:
    """Return the number of rows of one run of the model.

    Args:
        programs: from `scoring_context`.
        device: of the data.
        gradients: whether gradients are computed.
        compiled: whether the run is compiled.

    """
    sizes = chunk_sizes(device)
    elements = sizes.moved if gradients else sizes.compiled if compiled else sizes.scored
    return min(sizes.rows, max(FEWEST_ROWS, elements // max(1, programs.num_units)))


def even_chunk_size(programs: ModelGuide, rows: Tensor, num_particles: int, *, size: int) -> int:
    """Return a chunk size, at most the given one, at which the last chunk is nearly as long as the others."""
    total, unit = (num_particles, len(rows)) if programs.broadcasts else (num_particles * len(rows), 1)
    limit = max(1, size // unit)
    return math.ceil(total / math.ceil(total / limit)) * unit


@dataclass(frozen=True)
class Chunk:
    """One run of a program: on K particles of some rows, or on rows that repeat the data.

    A run covers ``length`` particles, or rows. The first ``count`` of them are results, the others repeat the first.
    """

    rows: Tensor
    start: int
    count: int
    length: int
    has_particles: bool = False

    def with_plate(self, programs: ModelGuide, program: Program) -> Program:
        """Return a program with the axis of particles of this chunk."""
        if not self.has_particles:
            return program
        plated: Program = pyro.plate(PARTICLE_PLATE, self.length, dim=-1 - programs.nesting)(program)
        return plated

    def slice(self, value: Tensor) -> Tensor:
        """Return the part of ``(K, B, ...)`` or ``(K * B, ...)`` of this chunk, filled up to the length of the run."""
        return _filled(value[self.start : self.start + self.count], self.length)

    def trim(self, result: Tensor) -> Tensor:
        """Return a result of this chunk's run without the repeated particles or rows."""
        return result[: self.count]


def iter_chunks(
    programs: ModelGuide, rows: Tensor, num_particles: int, *, size: int, alike: bool = False
) -> Iterator[Chunk]:
    """Yield the chunks that cover all particles of some rows.

    Args:
        programs: from `scoring_context`.
        rows: ``(B,)``, rows of the data.
        num_particles: K.
        size: most rows of one run, a datum with K particles counting K.
        alike: whether all runs have the same length, the last one filled up.

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


def map_chunks(
    function: Callable[[Chunk], Sequence[Tensor]],
    programs: ModelGuide,
    rows: Tensor,
    num_particles: int,
    *,
    size: int,
    alike: bool = False,
) -> list[Tensor]:
    """Run a function on each chunk, and return its results joined, each ``(K, B, ...)``.

    Args:
        function: returns tensors ``(K', B, ...)``, or ``(K' * B, ...)`` for a chunk without particles.
        programs: from `scoring_context`.
        rows: ``(B,)``, rows of the data.
        num_particles: K.
        size: most rows of one run, a datum with K particles counting K.
        alike: whether all runs have the same length.

    """
    buffer = ChunkBuffer(num_particles, len(rows))
    for chunk in iter_chunks(programs, rows, num_particles, size=size, alike=alike):
        buffer.add(chunk, function(chunk))
    return buffer.joined()


class ChunkBuffer:
    """Results of the runs that cover K particles of B rows.

    Without gradients each result is written into one tensor at once. Small results that are kept would fragment the
    memory that the large tensors of a run have left, so that the next run has to allocate.

    Args:
        num_particles: K.
        num_rows: B.

    """

    def __init__(self, num_particles: int, num_rows: int) -> None:
        self.shape = (num_particles, num_rows)
        self._has_particles = False
        self._parts: list[list[Tensor]] = []
        self._buffers: list[Tensor] = []

    def add(self, chunk: Chunk, results: Sequence[Tensor]) -> None:
        """Add the results of one run, each ``(K', B, ...)`` or ``(K' * B, ...)``."""
        results = [chunk.trim(result) for result in results]
        self._has_particles = chunk.has_particles
        length = self.shape[0] if chunk.has_particles else math.prod(self.shape)
        if chunk.count == length or any(result.requires_grad for result in results):
            self._parts.append(results)
            return
        if not self._buffers:
            self._buffers = [result.new_empty((length, *result.shape[1:])) for result in results]
        for buffer, result in zip(self._buffers, results, strict=True):
            part = buffer[chunk.start : chunk.start + chunk.count]
            part.copy_(result.reshape(part.shape))  # copy_ alone would broadcast

    def joined(self) -> list[Tensor]:
        """Return each result of all runs, ``(K, B, ...)``."""
        whole = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*self._parts, strict=True)]
        whole = whole or self._buffers
        num_dims = 2 if self._has_particles else 1
        return [result.reshape(*self.shape, *result.shape[num_dims:]) for result in whole]


def _filled(part: Tensor, length: int) -> Tensor:
    """Return a tensor of that length, with the first row repeated at its end where some are missing."""
    missing = length - len(part)
    return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part


def iter_batches(programs: ModelGuide, num_data: int, *, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows ``(B,)`` that cover all data once, and how many of them count.

    Programs that draw their own rows take a fixed number, so that their last batch is filled up.
    """
    size = programs.num_rows if programs.draws_rows else min(batch_size, programs.max_rows)
    for start in range(0, num_data, size):
        count = min(size, num_data - start)
        rows = torch.arange(start, start + (size if programs.draws_rows else count))
        yield rows % num_data, count


def on_device(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, device: torch.device
) -> tuple[tuple[Any, ...], Tensor]:
    """Return arguments on a device, and the positions of the given rows ``(B,)`` among theirs.

    Only these rows are copied there, unless the programs take all data.
    """
    if programs.draws_rows:
        return tuple(argument.to(device) for argument in args), rows.to(device)
    return tuple(part.to(device) for part in take_rows(args, rows)), torch.arange(len(rows), device=device)
