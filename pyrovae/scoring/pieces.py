"""The runs of a program that cover K particles of some rows of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.pair import PARTICLE_PLATE, Pair, Program, take_rows


@dataclass(frozen=True)
class Piece:
    """One run of a program: on K particles of some rows, or on rows that already repeat the data (``lead`` 0)."""

    rows: Tensor
    start: int
    count: int
    lead: int

    def plated(self, pair: Pair, program: Program) -> Program:
        """Return a program with this piece's axis of particles."""
        return pyro.plate(PARTICLE_PLATE, self.count, dim=-1 - pair.nesting)(program) if self.lead else program

    def take(self, value: Tensor) -> Tensor:
        """Return this piece's part of ``(K, B, ...)`` or ``(K * B, ...)``, filled up to the length of the run."""
        part = value[self.start : self.start + self.count]
        missing = 0 if self.lead else len(self.rows) - self.count
        return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part

    def cut(self, result: Tensor) -> Tensor:
        """Return what counts of a result of this piece's run."""
        return result[: self.count]


def pieces(pair: Pair, rows: Tensor, num_particles: int, *, size: int) -> Iterator[Piece]:
    """Yield the runs that cover all particles of some rows, each on about ``size`` rows at most."""
    if pair.broadcasts:
        per_run = max(1, size // len(rows))
        for start in range(0, num_particles, per_run):
            yield Piece(rows, start, min(per_run, num_particles - start), lead=1)
        return
    repeated = rows.repeat(num_particles)
    limit = pair.num_rows if pair.draws_rows else min(size, pair.max_rows)
    for start in range(0, len(repeated), limit):
        part = repeated[start : start + limit]
        filled = torch.cat([part, part[:1].expand(limit - len(part))]) if pair.draws_rows else part
        yield Piece(filled, start, len(part), lead=0)


def walk(pair: Pair, num_data: int, *, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows ``(B,)`` that cover all data once, and how many of them count: a pair that draws its own rows takes a
    fixed number, so that its last batch is filled up.
    """
    size = pair.num_rows if pair.draws_rows else min(batch_size, pair.max_rows)
    for start in range(0, num_data, size):
        count = min(size, num_data - start)
        rows = torch.arange(start, start + (size if pair.draws_rows else count))
        yield rows % num_data, count


def on_device(pair: Pair, args: tuple[Any, ...], rows: Tensor, device: torch.device) -> tuple[tuple[Any, ...], Tensor]:
    """Return arguments on a device, and which of their rows are the given ones ``(B,)``.

    Of data that lie elsewhere no other rows are brought there, unless the pair takes all of them.
    """
    if pair.draws_rows:
        return tuple(argument.to(device) for argument in args), rows.to(device)
    return tuple(part.to(device) for part in take_rows(args, rows)), torch.arange(len(rows), device=device)
