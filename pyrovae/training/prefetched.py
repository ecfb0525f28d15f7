"""Minibatches of data that do not lie on the device: rows as stored, gathered ahead of the steps."""

from __future__ import annotations

import functools
from collections.abc import Generator

import torch
from torch import Tensor

from pyrovae.data.loader import Loader
from pyrovae.data.prefetch import Prefetcher
from pyrovae.programs import ModelGuide, Program
from pyrovae.training.feed import Feed


class Prefetched(Feed):
    """Data that stay in the machine's memory, or in a file; the inputs of a step are rows of them as they are stored.

    Bytes travel as bytes: they are binarized or dequantized inside the step. Order and noise are drawn as `Resident`
    draws them, so that training gives the same numbers.
    """

    def __init__(self, programs: ModelGuide, rows: Loader, batch_size: int, device: torch.device) -> None:
        self.programs, self.rows, self.device = programs, rows, device
        self.batch_size = min(batch_size, len(rows))
        self._prefetcher = Prefetcher(rows.held(), self.batch_size, device)

    def few(self, count: int) -> tuple[Tensor, ...]:
        """Return the first rows, as often as it takes."""
        return tuple(t[torch.arange(count) % len(self.rows)].to(self.device) for t in self.rows.held())

    def batches(self) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield rows as they are stored, ``(B, ...)``, and what travels with them."""
        numbers = list(self.rows.shuffled(self.batch_size, self.device))
        order = torch.cat(numbers).cpu()  # at once: each move makes the host wait
        yield from self._prefetcher(order.split([len(each) for each in numbers]))

    def bind(self, *inputs: Tensor) -> tuple[Program, Program, int]:
        """Transform the rows."""
        args = self.rows.arguments(*inputs)
        return (
            functools.partial(self.programs.model, *args),
            functools.partial(self.programs.guide, *args),
            len(inputs[0]),
        )
