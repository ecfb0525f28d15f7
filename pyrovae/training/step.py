"""One gradient step: eager, or traced once and replayed."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrovae.compile import NotRecordableError, Recording, has_compiler, layout_of, record
from pyrovae.objectives import Objective
from pyrovae.runtime.distributed import group
from pyrovae.training.loss import StepLoss
from pyrovae.training.program_tensors import ProgramTensors

logger = logging.getLogger("pyrovae")

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
Trace = tuple[Recording, list[bool]]  # of metrics and gradients; whether each trained tensor has a gradient

REPEATS = 200  # eager steps on inputs of another shape than the first before these are traced too
MOST_SHAPES = 4  # largest number of traced shapes
# steps from which an engine pays: a trace takes a second, Inductor half a minute, a CUDA graph a few seconds
TRACED_FROM, COMPILED_FROM, GRAPHED_FROM = 2_000, 20_000, 500


def fused_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return torch's Adam, fused on CPU and CUDA."""
    devices = {parameter.device.type for parameter in parameters}
    return torch.optim.Adam(parameters, fused=devices <= {"cpu", "cuda"} or None, capturable="cuda" in devices)


def build_optimizer(make: MakeOptimizer, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer that a function makes of the parameters.

    Raises:
        TypeError: if it makes none of torch's, or one that evaluates the loss several times, such as LBFGS.

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


class Step:
    """Loss, gradients, clipping and update of one minibatch, without waiting for the device.

    A traced step replays a trace of its loss and gradients; clipping and update are torch's. A replay reads data,
    parameters, buffers, the weight of the KL and the number of steps. The loss is traced again if modules change their
    mode, parameters are frozen, buffers are replaced or options of the objective change. Inputs of another shape, such
    as a short last minibatch, run eagerly until they have come often. A loss that cannot be traced runs eagerly; a
    trace that cannot be compiled is replayed uncompiled.

    Args:
        loss: loss of a minibatch.
        tensors: parameters and buffers of the programs.
        optimizer: optimizer of the trained ones.
        clip_norm: largest norm of the gradient of the loss per datum, or None.
        traced: whether the loss is traced.
        compiled: whether Inductor compiles the trace.

    """

    def __init__(
        self,
        loss: StepLoss,
        tensors: ProgramTensors,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        traced: bool = False,
        compiled: bool = False,
    ) -> None:
        self.loss, self.tensors, self.optimizer, self.clip_norm = loss, tensors, optimizer, clip_norm
        self.traced, self.compiled = traced, compiled
        first = tensors.trained[0]
        self._kl_weight = torch.ones((), dtype=first.dtype, device=first.device)
        self._num_steps = torch.zeros((), dtype=torch.int64, device=first.device)
        self._state: Hashable = None
        self._traces: dict[Hashable, Trace] = {}
        self._seen: dict[Hashable, int] = {}

    def __call__(self, *inputs: Tensor, weight: float | None = None, eager: bool = False) -> Tensor:
        """Update the parameters once.

        Args:
            inputs: inputs of the loss.
            weight: share of the minibatch that this process has, if several processes train together.
            eager: whether model and guide run even if the step is traced.

        Returns:
            Loss, reconstruction and KL per datum, ``(3,)``, nats, averaged over the processes.

        """
        objective, state = self.loss.objective, self.tensors.check()
        self._clear_gradients()
        with torch.enable_grad():
            trace = self._find_trace((state, objective.fixed), inputs) if self.traced and not eager else None
            if trace is None:
                loss, metrics = self.loss(*inputs)
                self.tensors.report_untrained(loss)
                gradients = self._gradients(loss)
            else:
                metrics, gradients = self._replay(trace, inputs)
        metrics = self._apply_gradients(metrics, gradients, weight)
        if isinstance(objective, Objective):
            objective.step += 1
        return metrics

    def _gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Return the gradients of the loss per datum, None for tensors that it does not depend on."""
        thawed = [tensor for tensor in self.tensors.trained if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(loss, thawed, allow_unused=True))
        return [next(gradients) if tensor.requires_grad else None for tensor in self.tensors.trained]

    def _clear_gradients(self) -> None:
        """Free the last gradients, so that the next ones can take their memory."""
        for parameter in self.tensors.trained:
            parameter.grad = None

    def _apply_gradients(self, metrics: Tensor, gradients: list[Tensor | None], weight: float | None) -> Tensor:
        """Average gradients and metrics over processes, clip the gradients and update the parameters."""
        if weight is not None:
            present = [gradient for gradient in gradients if gradient is not None]
            metrics, *summed = group().sum([tensor * weight for tensor in (metrics, *present)])
            averages = iter(summed)
            gradients = [None if gradient is None else next(averages) for gradient in gradients]
        used: set[int] = set()
        for parameter, gradient in zip(self.tensors.trained, gradients, strict=True):
            if gradient is not None:
                if gradient.stride() != parameter.stride() or gradient.data_ptr() in used:
                    gradient = torch.empty_like(parameter).copy_(gradient)  # fused kernels assume equal strides
                used.add(gradient.data_ptr())
            parameter.grad = gradient
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.tensors.trained, self.clip_norm)
        self.optimizer.step()
        return metrics

    def _replay(self, trace: Trace, inputs: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the metrics and the gradients of the loss per datum."""
        recording, has_gradient = trace
        self._kl_weight.fill_(self.loss.objective.kl_weight())
        self._num_steps.fill_(self.loss.objective.step)
        metrics, *gradients = recording(*inputs)
        present = iter(gradients)
        # a CUDA graph overwrites its results in the next replay
        return metrics.clone(), [next(present) if has else None for has in has_gradient]

    def _find_trace(self, state: Hashable, inputs: tuple[Tensor, ...]) -> Trace | None:
        """Return the trace for inputs of this shape, or None if they run eagerly."""
        if state != self._state:
            self._state, self._traces, self._seen = state, {}, {}
        layout = layout_of(inputs)
        if layout not in self._traces:
            self._seen[layout] = self._seen.get(layout, 0) + 1
            first = next(iter(self._seen)) == layout
            if not first and (self._seen[layout] < REPEATS or len(self._traces) >= MOST_SHAPES):
                return None
            try:
                self._traces[layout] = self.trace(inputs)
            except NotRecordableError as error:
                self.traced = False
                logger.warning("the step is run eagerly: %s", error)
                return None
        return self._traces[layout]

    def trace(self, inputs: tuple[Tensor, ...]) -> Trace:
        """Trace loss and gradients for inputs of a shape, and compile them.

        Raises:
            NotRecordableError: with the reason, if the loss cannot be traced.

        """
        has_gradient: list[bool] = []

        def loss_and_gradients(*inputs: Tensor) -> list[Tensor]:
            loss, metrics = self.loss(*inputs)
            gradients = self._gradients(loss)
            has_gradient[:] = [gradient is not None for gradient in gradients]
            return [metrics, *(gradient for gradient in gradients if gradient is not None)]

        with self._numbers_as_tensors():
            leaves = [*self.tensors.all, self._kl_weight, self._num_steps]
            recording = record(loss_and_gradients, inputs, leaves=leaves)
        try:
            if self.compiled:
                if inputs[0].device.type == "cpu" and not has_compiler():
                    raise NotRecordableError("no C++ compiler is found")
                recording.compile(inputs)
        except NotRecordableError as error:
            self.compiled = False
            logger.warning("the recorded step is not compiled: %s", error)
        try:
            recording.capture_kernels(inputs)
        except NotRecordableError as error:
            logger.warning("the kernels of the step are not captured in a CUDA graph: %s", error)
        return recording, has_gradient

    @contextmanager
    def _numbers_as_tensors(self) -> Iterator[None]:
        """Replace the weight of the KL and the number of steps of the objective by tensors inside the block."""
        objective: Any = self.loss.objective
        number, objective.step, objective.kl_weight = objective.step, self._num_steps, lambda: self._kl_weight
        try:
            yield
        finally:
            objective.step = number
            del objective.kl_weight

    def release(self) -> None:
        """Free the gradients, and the traces, which hold the data."""
        self._clear_gradients()
        self._traces = {}


def make_step(
    loss: StepLoss,
    tensors: ProgramTensors,
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float | None = None,
    engine: str = "captured",
    num_steps: int = 0,
) -> Step:
    """Return the step of an engine.

    Args:
        loss: loss of a minibatch.
        tensors: parameters and buffers of the programs.
        optimizer: optimizer of the trained ones.
        clip_norm: largest norm of the gradient of the loss per datum, or None.
        engine: "captured" for a trace compiled by Inductor, on CUDA launched as a CUDA graph; "eager"; or "auto" for
            the engine that pays for the number of steps.
        num_steps: number of steps ahead, for "auto".

    """
    device, auto = tensors.trained[0].device.type, engine == "auto"
    traced_from = GRAPHED_FROM if device == "cuda" else TRACED_FROM
    traced = engine != "eager" and device in ("cpu", "cuda") and (not auto or num_steps >= traced_from)
    if traced and not isinstance(loss.objective, Objective):
        traced = False
        logger.warning("the step is run eagerly: %s is no objective of pyrovae", type(loss.objective).__name__)
    compiled = not auto or (num_steps >= COMPILED_FROM and (device == "cuda" or has_compiler()))
    return Step(loss, tensors, optimizer, clip_norm=clip_norm, traced=traced, compiled=compiled)
