"""Chunks: the runs of a program that cover K particles of some rows of the data, and their sizes per device type.

A CPU is fast while a chunk fits into its caches. CUDA needs large chunks: launching an operation takes as long as
computing some millions of elements.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.compile import NotRecordableError, Recording, has_compiler, layout_of, record
from pyrovae.programs import PARTICLE_PLATE, ModelGuide, Program, take_rows

logger = logging.getLogger("pyrovae")

FEWEST_ROWS = 64  # rows of the smallest chunk
COMPILED_FROM = 2**32  # scored elements of x from which compilation pays
FEWEST_ELEMENTS = 2**9  # elements that a small datum counts as, for the time of running the programs
REFUSAL = "the scoring of particles is not compiled: %s"


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


@dataclass(frozen=True)
class Chunk:
    """One run of a program: on K particles of some rows, or on rows that repeat the data.

    The run covers ``count`` particles, or rows, from the number ``start``.
    """

    rows: Tensor
    start: int
    count: int
    has_particles: bool = False

    def with_plate(self, programs: ModelGuide, program: Program) -> Program:
        """Return a program with the axis of particles of this chunk."""
        if not self.has_particles:
            return program
        plated: Program = pyro.plate(PARTICLE_PLATE, self.count, dim=-1 - programs.nesting)(program)
        return plated

    def slice(self, value: Tensor) -> Tensor:
        """Return the part of ``(K, B, ...)`` of this chunk: ``(K', B, ...)``, or its rows ``(1, R, ...)``."""
        stop = self.start + self.count
        if self.has_particles:
            return value[self.start : stop]
        return value.flatten(0, 1)[self.start : stop].unsqueeze(0)

    def trim(self, result: Tensor) -> Tensor:
        """Return a result of this chunk's run, ``(K', B, ...)`` or its rows ``(R', ...)`` without their first axis."""
        return result if self.has_particles else result[0]


def iter_chunks(programs: ModelGuide, rows: Tensor, num_particles: int, *, size: int) -> Iterator[Chunk]:
    """Yield the chunks that cover K particles of some rows of the data.

    Args:
        programs: from `scoring_context`. Those that broadcast run with an axis of particles, others on repeated rows.
        rows: ``(B,)``, rows of the data.
        num_particles: K.
        size: most rows of a run, a datum with K particles counting K.

    """
    if programs.broadcasts:
        limit = max(1, size // len(rows))
        for start in range(0, num_particles, limit):
            yield Chunk(rows, start, min(limit, num_particles - start), has_particles=True)
        return
    repeated = rows.repeat(num_particles)
    limit = min(size, programs.max_rows)
    for start in range(0, len(repeated), limit):
        part = repeated[start : start + limit]
        yield Chunk(part, start, len(part))


def map_chunks(
    function: Callable[[Chunk], Sequence[Tensor]], programs: ModelGuide, rows: Tensor, num_particles: int, *, size: int
) -> list[Tensor]:
    """Run a function on each chunk, and join its results.

    Without gradients each result is written into one tensor at once. Small results that are kept would fragment the
    memory that the large tensors of a run have left, so that the next run has to allocate.

    Args:
        function: returns tensors ``(K', B, ...)``, or ``(1, R, ...)`` for a chunk without an axis of particles.
        programs: from `scoring_context`.
        rows: ``(B,)``, rows of the data.
        num_particles: K.
        size: most rows of a run, a datum with K particles counting K.

    Returns:
        For each result of the function ``(K, B, ...)``.

    """
    length = num_particles if programs.broadcasts else num_particles * len(rows)
    parts: list[list[Tensor]] = []
    buffers: list[Tensor] = []
    for chunk in iter_chunks(programs, rows, num_particles, size=size):
        results = [chunk.trim(result) for result in function(chunk)]
        if chunk.count == length or any(result.requires_grad for result in results):
            parts.append(results)
            continue
        buffers = buffers or [result.new_empty((length, *result.shape[1:])) for result in results]
        for buffer, result in zip(buffers, results, strict=True):
            part = buffer[chunk.start : chunk.start + chunk.count]
            part.copy_(result.reshape(part.shape))  # copy_ alone would broadcast
    whole = parts[0] if len(parts) == 1 else [torch.cat(several) for several in zip(*parts, strict=True)] or buffers
    num_dims = 2 if programs.broadcasts else 1
    return [result.reshape(num_particles, len(rows), *result.shape[num_dims:]) for result in whole]


def iter_batches(programs: ModelGuide, num_data: int, *, batch_size: int) -> Iterator[Tensor]:
    """Yield rows ``(B,)`` that cover all N data once, in order, at most ``batch_size`` at a time."""
    yield from torch.arange(num_data).split(min(batch_size, programs.max_rows))


def on_device(args: tuple[Any, ...], rows: Tensor, device: torch.device) -> tuple[tuple[Any, ...], Tensor]:
    """Copy rows of the arguments to a device.

    Args:
        args: arguments of the programs, each ``(N, ...)``, the data first.
        rows: ``(B,)``, rows of the data.
        device: where they are needed.

    Returns:
        The arguments, and the positions ``(B,)`` of the rows in them, both on the device.

    """
    return tuple(part.to(device) for part in take_rows(args, rows)), torch.arange(len(rows), device=device)


class CompiledRuns:
    """Runs of one function of tensors: the first is traced and compiled, later ones of the same shapes replay it.

    A function that cannot be traced or compiled runs eagerly, and a warning gives the reason.

    Args:
        leaves: tensors that the function reads or writes without receiving them as inputs.

    """

    def __init__(self, leaves: Sequence[Tensor] = ()) -> None:
        self.leaves = leaves
        self._recording: Recording | None = None
        self._layout: tuple[object, ...] = ()

    def __call__(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what the function returns, without gradients.

        Args:
            function: depends on nothing but its inputs and the leaves.
            inputs: tensors.

        """
        layout = layout_of(inputs)
        if not self._layout:
            self._layout = layout
            try:
                recording = record(function, inputs, leaves=self.leaves)
                recording.compile(inputs)
                self._recording = recording
            except NotRecordableError as error:
                logger.warning(REFUSAL, error)
        return function(*inputs) if self._recording is None or layout != self._layout else self._recording(*inputs)


def compiled_runs(programs: ModelGuide, engine: str, *, num_rows: int, device: torch.device) -> CompiledRuns | None:
    """Return compiled runs of the model, or None where runs are eager.

    Args:
        programs: from `scoring_context`.
        engine: "captured" to compile, "eager" not to, or "auto" to compile where it pays.
        num_rows: scored rows of all processes, a datum with K particles counting K.
        device: of the data. Compilation needs a CPU and a C++ compiler.

    """
    much = num_rows * max(FEWEST_ELEMENTS, programs.num_elements) >= COMPILED_FROM
    wanted = engine == "captured" or (engine == "auto" and much)
    if not wanted or device.type != "cpu":
        return None
    if not has_compiler():
        if engine == "captured":
            logger.warning(REFUSAL, "no C++ compiler is found")
        return None
    tensors = (tensor for module in programs.modules for tensor in (*module.parameters(), *module.buffers()))
    return CompiledRuns(list({id(tensor): tensor for tensor in tensors}.values()))
