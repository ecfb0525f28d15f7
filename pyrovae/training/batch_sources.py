"""Minibatches as the inputs of steps: a few tensors, from which the arguments of the programs are made on the device.

Operations on the inputs inside a step are traced with it: rows are gathered and binarized there.
"""

from __future__ import annotations

import functools
import logging
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
        self.device, hint = device, "train on a part of it"
        fixed = float(sum(x.num_fixed_bytes for number, x in enumerate(loaders) if number or x.drawn_once))
        size, free = fixed + sum(loader.num_bytes for loader in loaders), memory.available(device)
        self.on_host = all(loader.is_on("cpu") for loader in loaders) and size > RESIDENT_SHARE * free
        if self.on_host:
            memory.require(fixed, what="the data, transformed once for all epochs,", hint=hint)
            logger.warning(
                "the data stay in host memory, from which minibatches are copied: they take %s, and %s are free on %s",
                memory.in_words(size),
                memory.in_words(free),
                device,
            )
        else:
            size = fixed + sum(loader.num_bytes for loader in loaders if not loader.is_on(device))
            memory.require(size, what="the data set", hint=hint, device=device)
        self.loaders = list(loaders) if self.on_host else [loader.to(device) for loader in loaders]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Return three rows of the training data, or all if there are fewer, as arguments on the device."""
        train = self.loaders[0]
        return train.arguments(*(tensor[:3].to(self.device) for tensor in train.stored_rows()))


def bind_arguments(programs: ModelGuide, *args: Tensor) -> tuple[Program, Program]:
    """Return model and guide without arguments, called with these."""
    return functools.partial(programs.model, *args), functools.partial(programs.guide, *args)


class Batches:
    """Shuffled minibatches of the training data.

    The inputs of a step are row numbers ``(B,)`` of data on the device, or rows ``(B, ...)`` as stored in host memory.
    Order and noise are the same for both.

    Args:
        programs: structure of model and guide.
        placement: the data.
        batch_size: B; the last minibatch of an epoch may be smaller.

    """

    def __init__(self, programs: ModelGuide, placement: Placement, batch_size: int) -> None:
        self.programs, self.loader = programs, placement.loaders[0]
        self.device, self.on_host = placement.device, placement.on_host
        self.batch_size = min(batch_size, len(self.loader))

    def epoch(self) -> Iterator[tuple[Tensor, ...]]:
        """Draw noise and order of the data from torch's default stream, and return the inputs of all steps."""
        order = torch.randperm(len(self.loader), device=self.device)
        if self.on_host:
            tensors, batches = self.loader.stored_rows(), order.cpu().split(self.batch_size)
            return (tuple(tensor[rows].to(self.device) for tensor in tensors) for rows in batches)
        return ((rows,) for rows in order.split(self.batch_size))

    def bind(self, *inputs: Tensor) -> tuple[Program, Program]:
        """Return model and guide without arguments for the inputs of a step."""
        args = self.loader.arguments(*inputs) if self.on_host else self.loader.draw(inputs[0])
        return bind_arguments(self.programs, *args)
