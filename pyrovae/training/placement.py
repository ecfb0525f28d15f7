"""Where data lie while a pair is trained on them: on the device, or, if they are large, where they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae.data.loader import Loader
from pyrovae.runtime import memory

logger = logging.getLogger("pyrovae")

# of the free memory, which data may take: weights, gradients, Adam's moments, activations and the pool of a CUDA graph
# need the rest, and nobody knows how much of it before the first step
RESIDENT_SHARE = 0.5


class Placement:
    """Data brought to a device, or left where they are if they would take too much of its memory.

    Attributes:
        rows: the data, training data first.
        prefetched: whether they are left where they are, so that minibatches are brought to the device one by one.

    Args:
        rows: training data, and validation data if there are any.
        device: of training.

    Raises:
        ValueError: if what is made of the data once for all epochs does not fit into the machine's memory, or data that
            lie on another device do not fit on this one.

    """

    def __init__(self, rows: Sequence[Loader], device: torch.device) -> None:
        self.rows, self.device = list(rows), device
        fixed = self._fixed()
        self._size, self._free = fixed + sum(part.num_bytes for part in self.rows), memory.available(device)
        self.prefetched = all(part.lies_on("cpu") for part in self.rows) and self._size > RESIDENT_SHARE * self._free
        if self.prefetched:
            memory.require(
                float(fixed), what="what is made of the data once for all epochs", hint="train on a part of it"
            )
        else:
            self._bring(hint="train on a part of it")

    def few(self) -> tuple[Tensor, ...]:
        """Return three rows of the training data, or all if there are fewer, as arguments on the device."""
        train = self.rows[0]
        return train.arguments(*(tensor[:3].to(self.device) for tensor in train.held()))

    def everything(self) -> tuple[Tensor, ...]:
        """Bring all data to the device, for a pair that draws rows by itself; return those of training as arguments.

        Raises:
            ValueError: if they do not fit.

        """
        if self.prefetched:
            self._bring(hint='write the plate as pyro.plate("data", len(x)), which is given minibatches')
        return self.rows[0].everything()

    def tell(self) -> None:
        """Say in one line on the logger that the data are prefetched, if they are."""
        if self.prefetched:
            logger.warning(
                "the data are prefetched minibatch by minibatch: they take %s, and %s are free on %s",
                memory.in_words(self._size),
                memory.in_words(self._free),
                self.device,
            )

    def _bring(self, *, hint: str) -> None:
        size = self._fixed() + sum(part.num_bytes for part in self.rows if not part.lies_on(self.device))
        memory.require(float(size), what="the data set", hint=hint, device=self.device)
        self.rows, self.prefetched = [part.to(self.device) for part in self.rows], False

    def _fixed(self) -> int:
        """Return the bytes of what is made of the data once for all epochs: of those of validation, and of those of
        training if their noise is drawn but once.
        """
        return sum(part.num_fixed_bytes for number, part in enumerate(self.rows) if number or part.drawn_once)
