"""How much is computed at once on each kind of device.

A processor is fast with what stays in its caches. CUDA is fast with much: each operation that is asked for costs as
long as some millions of elements take there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyrovae.programs import ModelGuide

FEWEST_ROWS = 64


@dataclass(frozen=True)
class Sizes:
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


ON_CPU = Sizes(scored=2**22, compiled=2**21, moved=2**20, rows=2**12, drawn=2**22, drawn_rows=2**17, particles=2**18)
ON_CUDA = Sizes(scored=2**26, compiled=2**26, moved=2**24, rows=2**17, drawn=2**24, drawn_rows=2**21, particles=2**21)


def sizes_on(device: torch.device) -> Sizes:
    """Return how much is computed at once on a device."""
    return ON_CUDA if device.type == "cuda" else ON_CPU


def rows_at_once(programs: ModelGuide, device: torch.device, *, gradients: bool = False, compiled: bool = False) -> int:
    """Return how many rows the model is run on at once.

    Args:
        programs: from `scoring_context`.
        device: of the data.
        gradients: whether they are asked for.
        compiled: whether the run is compiled.

    """
    sizes = sizes_on(device)
    elements = sizes.moved if gradients else sizes.compiled if compiled else sizes.scored
    return min(sizes.rows, max(FEWEST_ROWS, elements // max(1, programs.num_units)))
