"""A step whose loss and gradients are recorded once and replayed: Pyro's handlers do not run again."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from pyrovae.compile import NotRecordableError, has_compiler, layout_of
from pyrovae.training.step import CapturableStep, RecordedLoss

logger = logging.getLogger("pyrovae")

REPEATS = 200  # eager steps on inputs of another shape than the first, after which they are recorded too
MOST_SHAPES = 4  # that are recorded

Key = tuple[object, ...]


class RecordedStep(CapturableStep):
    """A step that replays the graph of its loss and gradients; clipping and update are torch's own.

    The graph reads data, parameters, buffers and the weight of the KL at each replay. It is recorded anew where
    parameters are replaced, modules change their mode or options of the objective change. Inputs of another shape, such
    as a last minibatch that is short, are run eagerly until they have come often.

    What cannot be recorded runs eagerly; what cannot be compiled is replayed as it is.

    Args:
        args: those of `Step`.
        compiled: whether Inductor compiles the graph.
        options: those of `Step`.

    """

    def __init__(self, *args: Any, compiled: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.compiled = compiled
        self.weight = torch.ones(())
        self._recordings: dict[Key, RecordedLoss] = {}
        self._seen: dict[Key, int] = {}

    def run(self, *inputs: Tensor) -> Tensor:
        """Move the parameters."""
        recorded = None if self.failed else self._recording(inputs)
        if recorded is None:
            return super().run(*inputs)
        self.set_weight(self.weight)
        self.drop()
        shown = self.take_from(recorded, inputs)
        self.optimizer.step()
        return shown

    def _recording(self, inputs: tuple[Tensor, ...]) -> RecordedLoss | None:
        """Return the graph for inputs like these, or None where they are run eagerly."""
        if self.changed():
            self._recordings = {}
        key = (self.loss.share, *layout_of(inputs))
        if key in self._recordings:
            return self._recordings[key]
        self._seen[key] = self._seen.get(key, 0) + 1
        first = next(iter(self._seen)) == key
        if not first and (self._seen[key] < REPEATS or len(self._recordings) >= MOST_SHAPES):
            return None
        try:
            self._recordings[key] = self._record(inputs)
        except NotRecordableError as error:
            self.give_up(str(error))
            return None
        return self._recordings[key]

    def _record(self, inputs: tuple[Tensor, ...]) -> RecordedLoss:
        """Record loss and gradients for inputs like these, and compile them."""
        first = self.leaves.trained[0]
        self.weight = self.weight.to(first.device, first.dtype)
        self.set_weight(self.weight)
        recorded = self.record(inputs, self.weight)
        if self.compiled and first.device.type == "cpu":
            try:
                if not has_compiler():
                    raise NotRecordableError("no C++ compiler is found")
                recorded.recording.compile(inputs)
            except NotRecordableError as error:
                self.compiled = False
                logger.warning("the recorded step is not compiled: %s", error)
        return recorded
