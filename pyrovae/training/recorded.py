"""A step whose loss and gradients are recorded once and replayed: Pyro's handlers do not run again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrovae.objectives import Objective
from pyrovae.recording import NotRecordableError, Recording, has_compiler, record
from pyrovae.training.leaves import Leaves
from pyrovae.training.loss import StepLoss
from pyrovae.training.step import EagerStep

REPEATS = 200  # eager steps on inputs of another shape than the first, after which they are recorded too
MOST_SHAPES = 4  # that are recorded

Key = tuple[object, ...]


class RecordedStep(EagerStep):
    """A step that replays the graph of its loss and gradients; clipping and update are torch's own.

    The graph reads data, parameters, buffers and the weight of the KL at each replay. It is recorded anew where
    parameters are replaced, modules change their mode or options of the objective change. Inputs of another shape, such
    as a last minibatch that is short, are run eagerly until they have come often.

    Args:
        loss: of a minibatch.
        leaves: tensors of the pair.
        optimizer: of those that are trained.
        clip_norm: largest norm of the gradient of the loss per datum, or None.
        compiled: whether Inductor compiles the graph.
        on_failure: told the reason, once, if the loss cannot be recorded; from then on steps are eager. If it cannot be
            compiled, the graph is replayed as it is.

    """

    def __init__(
        self,
        loss: StepLoss,
        leaves: Leaves,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        compiled: bool,
        on_failure: Callable[[str], None],
    ) -> None:
        super().__init__(loss, leaves, optimizer, clip_norm=clip_norm)
        self.compiled, self.on_failure, self.failed = compiled, on_failure, False
        self.weight = torch.ones(())
        self._known: Leaves | None = None
        self._recordings: dict[Key, Recording] = {}
        self._seen: dict[Key, int] = {}
        self._state: tuple[object, ...] = ()
        self._gradients: list[bool] = []

    def run(self, *inputs: Tensor) -> Tensor:
        """Move the parameters."""
        recording = None if self.failed else self._recording(inputs)
        if recording is None:
            return super().run(*inputs)
        if isinstance(self.loss.objective, Objective):
            self.weight.fill_(self.loss.objective.kl_weight())
        self.drop()
        shown, *gradients = recording(*inputs)
        found = iter(gradients)
        shown = self.take(shown, [next(found) if has else None for has in self._gradients])
        self.optimizer.step()
        return shown

    def _recording(self, inputs: tuple[Tensor, ...]) -> Recording | None:
        """Return the graph for inputs like these, or None where they are run eagerly."""
        state = (self.leaves.version, getattr(self.loss.objective, "fixed", None))
        if state != self._state:
            self._state, self._recordings = state, {}
        key = (self.loss.share, *((each.shape, each.stride(), each.dtype) for each in inputs))
        if key in self._recordings:
            return self._recordings[key]
        self._seen[key] = self._seen.get(key, 0) + 1
        first = next(iter(self._seen)) == key
        if not first and (self._seen[key] < REPEATS or len(self._recordings) >= MOST_SHAPES):
            return None
        try:
            self._recordings[key] = self._record(inputs)
        except NotRecordableError as error:
            self.failed = True
            self.on_failure(f"the step is run eagerly: {error}")
            return None
        return self._recordings[key]

    def _record(self, inputs: tuple[Tensor, ...]) -> Recording:
        """Record loss and gradients for inputs like these."""
        objective, trained = self.loss.objective, self.leaves.trained

        def loss_and_gradients(*inputs: Tensor) -> list[Tensor]:
            loss, shown = self.loss(*inputs)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            self._gradients = [gradient is not None for gradient in gradients]
            return [shown, *(gradient for gradient in gradients if gradient is not None)]

        device = trained[0].device
        self.weight = self.weight.to(device, trained[0].dtype)
        held = isinstance(objective, Objective)
        if held:
            objective.held_weight = self.weight.fill_(objective.kl_weight())
        try:
            recording = record(loss_and_gradients, inputs, leaves=[*self.leaves.all, self.weight])
        finally:
            if held:
                objective.held_weight = None
        if self.compiled and device.type == "cpu":
            try:
                if not has_compiler():
                    raise NotRecordableError("no C++ compiler is found")
                recording.compile(inputs)
            except NotRecordableError as error:
                self.compiled = False
                self.on_failure(f"the recorded step is not compiled: {error}")
        return recording
