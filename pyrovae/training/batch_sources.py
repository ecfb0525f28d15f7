"""Minibatches as the inputs of steps: a few tensors, from which the arguments of the programs are made on the device.

Operations on the inputs inside a step are traced with it: rows are gathered and binarized there.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyrovae.data.loader import Loader
from pyrovae.programs import ModelGuide, Program
from pyrovae.runtime import memory

logger = logging.getLogger("pyrovae")

# share of free memory that data may take: weights, gradients, moments of Adam and activations need the remainder, whose
# size is unknown before the first step
RESIDENT_SHARE = 0.5


class Placement:
    """Data on the device of training, or left in host memory if they would take too much of the device's.

    Attributes:
        loaders: training data, then validation data if there are any.
        on_host: whether they are left in host memory, so that minibatches are copied one by one.

    Args:
        loaders: as above.
        device: device of training.

    Raises:
        ValueError: if tensors made once for all epochs do not fit in host memory, or data that lie on another
            accelerator do not fit on this one.

    """

    def __init__(self, loaders: Sequence[Loader], device: torch.device) -> None:
        self.loaders, self.device = list(loaders), device
        self._fixed_bytes = sum(
            loader.num_fixed_bytes for number, loader in enumerate(loaders) if number or loader.drawn_once
        )
        self._size = self._fixed_bytes + sum(loader.num_bytes for loader in loaders)
        self._free = memory.available(device)
        movable = all(loader.is_on("cpu") for loader in loaders)
        self.on_host = movable and self._size > RESIDENT_SHARE * self._free
        if self.on_host:
            memory.require(
                float(self._fixed_bytes),
                what="the data, transformed once for all epochs,",
                hint="train on a part of it",
            )
        else:
            self._move(hint="train on a part of it")

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return three rows of the training data, or all if there are fewer, as arguments on the device."""
        train = self.loaders[0]
        return train.arguments(*(tensor[:3].to(self.device) for tensor in train.stored_rows()))

    def all_data(self) -> tuple[Tensor, ...]:
        """Move all data to the device, for programs that draw rows themselves; return the training data as arguments.

        Raises:
            ValueError: if they do not fit.

        """
        if self.on_host:
            self._move(hint='write the plate as pyro.plate("data", len(x)), which is given minibatches')
        return self.loaders[0].everything()

    def log(self) -> None:
        """Log whether the data stay in host memory."""
        if self.on_host:
            logger.warning(
                "the data stay in host memory, from which minibatches are copied: they take %s, and %s are free on %s",
                memory.in_words(self._size),
                memory.in_words(self._free),
                self.device,
            )

    def _move(self, *, hint: str) -> None:
        size = self._fixed_bytes + sum(loader.num_bytes for loader in self.loaders if not loader.is_on(self.device))
        memory.require(float(size), what="the data set", hint=hint, device=self.device)
        self.loaders, self.on_host = [loader.to(self.device) for loader in self.loaders], False


def bind_arguments(programs: ModelGuide, *args: Tensor) -> tuple[Program, Program]:
    """Return model and guide without arguments, called with these."""
    return functools.partial(programs.model, *args), functools.partial(programs.guide, *args)


class Batches:
    """Shuffled minibatches of the training data.

    The inputs of a step are row numbers ``(B,)`` of data on the device, or rows ``(B, ...)`` as stored in host memory.
    Order and noise are the same for both. Programs that draw rows themselves are given row numbers, then all data; all
    their minibatches have the size of the plate, so that the last one is filled with rows of the first.

    Args:
        programs: structure of model and guide.
        placement: the data.
        batch_size: B; the last minibatch of an epoch may be smaller.

    """

    def __init__(self, programs: ModelGuide, placement: Placement, batch_size: int) -> None:
        self.programs, self.loader = programs, placement.loaders[0]
        self.device, self.on_host = placement.device, placement.on_host
        self.batch_size = programs.num_rows if programs.draws_rows else min(batch_size, len(self.loader))

    def epoch(self) -> Iterator[tuple[Tensor, ...]]:
        """Draw noise and order of the data from torch's default stream, and return the inputs of all steps."""
        args = self.loader.everything() if self.programs.draws_rows else ()
        order = torch.randperm(len(self.loader), device=self.device)
        if self.on_host:
            tensors, batches = self.loader.stored_rows(), order.cpu().split(self.batch_size)
            return (tuple(tensor[rows].to(self.device) for tensor in tensors) for rows in batches)
        if self.programs.draws_rows:
            order = torch.cat([order, order])[: math.ceil(len(order) / self.batch_size) * self.batch_size]
        return ((rows, *args) for rows in order.split(self.batch_size))

    def bind(self, *inputs: Tensor) -> tuple[Program, Program]:
        """Return model and guide without arguments for the inputs of a step."""
        if self.programs.draws_rows:
            return self.programs.bind(inputs[1:], inputs[0])
        args = self.loader.arguments(*inputs) if self.on_host else self.loader.draw(inputs[0])
        return bind_arguments(self.programs, *args)
