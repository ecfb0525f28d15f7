"""One gradient step, eager; and what all engines have in common."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.compile import Recording, record
from pyrovae.objectives import Objective
from pyrovae.runtime.distributed import group
from pyrovae.training.adam import Adam
from pyrovae.training.leaves import Leaves
from pyrovae.training.loss import StepLoss

logger = logging.getLogger("pyrovae")

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def fused_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return Adam that updates all parameters in one pass."""
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return Adam(parameters) if fused else torch.optim.Adam(parameters)


def make_optimizer_of(make: MakeOptimizer, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer that a function makes of the parameters.

    Raises:
        TypeError: if it makes none of torch's, or one that asks for the loss again and again, such as LBFGS.

    """
    if not callable(make) or not isinstance(optimizer := make(parameters), torch.optim.Optimizer):
        raise TypeError(
            "optimizer makes one of torch's optimizers of the parameters, such as lambda parameters: "
            f"torch.optim.Adam(parameters, lr=1e-3), but received {make!r}; Pyro's own are for pyro.infer.SVI"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"{type(optimizer).__name__} asks for the loss several times in a step, but a loss with noise is another "
            "each time; choose one such as torch.optim.Adam"
        )
    return optimizer


class Step(ABC):
    """Loss, gradients, clipping and update of one minibatch, without waiting for the device.

    Args:
        loss: of a minibatch.
        leaves: tensors of the pair.
        optimizer: of those that are trained.
        clip_norm: largest norm of the gradient of the loss per datum, or None.

    """

    def __init__(
        self,
        loss: StepLoss,
        leaves: Leaves,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
    ) -> None:
        self.loss, self.leaves, self.optimizer, self.clip_norm = loss, leaves, optimizer, clip_norm

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Move the parameters once.

        Args:
            inputs: of the loss.

        Returns:
            Loss, reconstruction and KL per datum, ``(3,)``, nats, as `StepLoss` gives them.

        """
        if self.leaves.moved():
            self.leaves.refresh(self.optimizer)
        with torch.enable_grad():
            shown = self.run(*inputs)
        if isinstance(self.loss.objective, Objective):
            self.loss.objective.step += 1
        return shown

    @abstractmethod
    def run(self, *inputs: Tensor) -> Tensor:
        """Move the parameters; arguments and result are those of the call."""

    def release(self) -> None:
        """Let go of the memory that steps keep for the next one."""
        self.drop()

    def drop(self) -> None:
        """Give up the last gradients before new ones are made, in the memory that becomes free."""
        for parameter in self.leaves.trained:
            parameter.grad = None

    def take(self, shown: Tensor, gradients: Iterable[Tensor | None]) -> Tensor:
        """Hand the gradients of the loss per datum to the parameters, summed over processes and clipped.

        Args:
            shown: loss, reconstruction and KL per datum, ``(3,)``.
            gradients: of the tensors that are trained; None for one that the loss does not depend on.

        Returns:
            What is shown, summed over processes too.

        """
        gradients = list(gradients)
        if self.loss.share is not None:
            shown, *summed = group().sum([shown, *(each for each in gradients if each is not None)])
            found = iter(summed)
            gradients = [None if each is None else next(found) for each in gradients]
        taken: set[int] = set()
        for parameter, gradient in zip(self.leaves.trained, gradients, strict=True):
            if gradient is not None:
                if gradient.stride() != parameter.stride() or gradient.data_ptr() in taken:
                    gradient = torch.empty_like(parameter).copy_(gradient)  # kernels walk both by one layout
                taken.add(gradient.data_ptr())
            parameter.grad = gradient
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.leaves.trained, self.clip_norm)
        return shown


class EagerStep(Step):
    """A step that runs the programs anew each time."""

    def run(self, *inputs: Tensor) -> Tensor:
        """Move the parameters."""
        self.drop()
        loss, shown = self.loss(*inputs)
        self.leaves.report_untrained(loss)
        shown = self.take(shown, torch.autograd.grad(loss, self.leaves.trained, allow_unused=True))
        self.optimizer.step()
        return shown


class RecordedLoss(NamedTuple):
    """Loss and gradients of minibatches of one shape, recorded.

    Attributes:
        recording: returns what is shown, then the gradients.
        has_gradient: which of the tensors that are trained have one.

    """

    recording: Recording
    has_gradient: tuple[bool, ...]


class CapturableStep(EagerStep):
    """What steps that capture their work have in common: when to do so anew, and that they run eagerly if it fails.

    Args:
        args: those of `Step`.
        options: those of `Step`.

    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.failed = False
        self._state: tuple[object, ...] = ()
        self._weighed: tuple[Tensor | None, float | Tensor] = (None, 1.0)
        self._count, self._counts = torch.zeros((), dtype=torch.int64), False

    def changed(self) -> bool:
        """Tell, once, whether tensors were replaced, modes switched, or options changed that a capture holds fixed."""
        before, self._state = self._state, (self.leaves.version, getattr(self.loss.objective, "fixed", None))
        return before != self._state

    def record(self, inputs: Sequence[Tensor], weight: Tensor) -> RecordedLoss:
        """Record loss and gradients for inputs like these.

        Args:
            inputs: of the loss.
            weight: a tensor that stands for the weight of the KL.

        Raises:
            NotRecordableError: with the reason, if that is impossible.

        """
        trained = self.leaves.trained
        has_gradient: list[bool] = []

        def loss_and_gradients(*inputs: Tensor) -> list[Tensor]:
            loss, shown = self.loss(*inputs)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            has_gradient[:] = [gradient is not None for gradient in gradients]
            return [shown, *(gradient for gradient in gradients if gradient is not None)]

        self._count = self._count.to(weight.device)
        with self._numbers_held(weight):
            recording = record(loss_and_gradients, inputs, leaves=[*self.leaves.all, weight, self._count])
        self._counts = self._counts or recording.reads(self._count)
        return RecordedLoss(recording, tuple(has_gradient))

    def take_from(self, recorded: RecordedLoss, inputs: Sequence[Tensor]) -> Tensor:
        """Hand the gradients of a replay to the parameters, and return what is shown."""
        shown, *gradients = recorded.recording(*inputs)
        found = iter(gradients)
        return self.take(shown, [next(found) if has else None for has in recorded.has_gradient])

    def give_up(self, reason: str) -> None:
        """Run eagerly from now on, and say why in one line."""
        self.failed = True
        logger.warning("the step is run eagerly: %s", reason)

    @contextmanager
    def _numbers_held(self, weight: Tensor) -> Iterator[None]:
        """Let tensors stand for the weight of the KL and the number of steps inside the block."""
        if not isinstance(self.loss.objective, Objective):
            yield
            return
        objective: Any = self.loss.objective
        number, objective.step, objective.kl_weight = objective.step, self._count, lambda: weight
        try:
            yield
        finally:
            objective.step = number
            del objective.kl_weight

    def set_weight(self, weight: Tensor) -> None:
        """Write the present weight of the KL, and the number of steps, into the tensors that stand for them, where they
        are others than last time.
        """
        if isinstance(self.loss.objective, Objective):
            value, (place, last) = self.loss.objective.kl_weight(), self._weighed
            if place is not weight or last != value:
                weight.fill_(value)
                self._weighed = weight, value
            if self._counts:
                self._count.fill_(self.loss.objective.step)
