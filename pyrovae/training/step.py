"""One gradient step: eager, or traced once and replayed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from pyrovae.compile import NotRecordableError, Recording, has_compiler, layout_of, record
from pyrovae.objectives import Objective
from pyrovae.programs import ModelGuide, Program, run_validated
from pyrovae.runtime.context import modules_known
from pyrovae.runtime.distributed import group
from pyrovae.training.program_tensors import ProgramTensors

logger = logging.getLogger("pyrovae")

MakeOptimizer = Annotated[
    Callable[[list[Tensor]], torch.optim.Optimizer],
    "give a function of the parameters, such as lambda parameters: torch.optim.Adam(parameters, lr=1e-3)",
]

REPEATS = 200  # eager steps on inputs of another shape than the first before these are traced too
MOST_SHAPES = 4  # largest number of traced shapes
# steps from which an engine pays: a trace takes a second, Inductor half a minute, a CUDA graph a few seconds
TRACED_FROM, COMPILED_FROM, GRAPHED_FROM = 2_000, 20_000, 500


def fused_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return torch's Adam, fused on CPU and CUDA."""
    devices = {parameter.device.type for parameter in parameters}
    return torch.optim.Adam(parameters, fused=devices <= {"cpu", "cuda"} or None, capturable="cuda" in devices)


class Step:
    """Loss, gradients, clipping and update of one minibatch, without waiting for the device.

    A traced step replays a trace of its loss and gradients; clipping and update are torch's. A replay reads data,
    parameters, buffers, the weight of the KL and the number of steps. The loss is traced again if modules change their
    mode, parameters are frozen, buffers are replaced or options of the objective change. Inputs of another shape, such
    as a short last minibatch, run eagerly until they have come often. A loss that cannot be traced runs eagerly; a
    trace that cannot be compiled is replayed uncompiled.

    Attributes:
        objective: the objective; change the beta of an ELBO at any time.
        optimizer: optimizer of all parameters; change the learning rate of its groups at any time.

    Args:
        programs: structure of model and guide.
        arguments: returns the arguments of the programs for the inputs of a step: tensors, the first of which has one
            row for each datum. It runs inside the step, and is traced with it.
        objective: an objective with a differentiable loss.
        make_optimizer: makes the optimizer of the trained tensors.
        clip_norm: largest norm of the gradient of the loss per datum, or None.
        engine: "captured" for a trace compiled by Inductor, on CUDA launched as a CUDA graph; "eager"; or "auto" for
            the engine that pays for the number of steps.
        num_steps: number of steps ahead, for "auto".

    Raises:
        ValueError: if there is nothing to train.
        TypeError: if the objective has no differentiable loss or is compiled by Pyro, or the optimizer is not one of
            torch's.

    """

    def __init__(
        self,
        programs: ModelGuide,
        arguments: Callable[..., tuple[Tensor, ...]],
        objective: PyroELBO,
        make_optimizer: MakeOptimizer,
        *,
        clip_norm: float | None,
        engine: str,
        num_steps: int = 0,
    ) -> None:
        if not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                f"training needs an objective with a differentiable loss, which {type(objective).__name__} does not "
                "have; use pyrovae.objectives (IWAE for Pyro's RenyiELBO), or train with pyro.infer.SVI"
            )
        if isinstance(objective, (JitTrace_ELBO, JitTraceMeanField_ELBO, JitTraceGraph_ELBO, JitTraceEnum_ELBO)):
            raise TypeError(  # they find a compiled loss by id(model), which a step makes anew for each minibatch
                f"{type(objective).__name__} may replay the loss of another minibatch; use Pyro's objective without "
                "Jit, or pyrovae.objectives.ELBO, whose steps are compiled"
            )
        self.programs, self.arguments, self.objective = programs, arguments, objective
        self.clip_norm = clip_norm
        self.tensors = ProgramTensors(programs.modules, programs.params)
        self.optimizer = make_optimizer(self.tensors.trained)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise TypeError(
                "optimizer makes one of torch's optimizers of the parameters, such as lambda parameters: "
                f"torch.optim.Adam(parameters, lr=1e-3), but received {make_optimizer!r}; Pyro's own are for "
                "pyro.infer.SVI"
            )
        first, auto = self.tensors.trained[0], engine == "auto"
        on_cuda = first.device.type == "cuda"
        pays = not auto or num_steps >= (GRAPHED_FROM if on_cuda else TRACED_FROM)
        self.traced = engine != "eager" and pays and first.device.type in ("cpu", "cuda")
        self.compiled = not auto or (num_steps >= COMPILED_FROM and (on_cuda or has_compiler()))
        if not isinstance(objective, Objective):
            self._warn_of_pyros()
        self._kl_weight = torch.ones((), dtype=first.dtype, device=first.device)
        self._num_steps = torch.zeros((), dtype=torch.int64, device=first.device)
        self._state: Hashable = None
        self._traces: dict[Hashable, Recording] = {}
        self._seen: Counter[Hashable] = Counter()

    def _warn_of_pyros(self) -> None:
        """Log how an objective of Pyro's own is run, and that observed sites of the guide are part of it."""
        name = type(self.objective).__name__
        if self.programs.observed_in_guide:
            logger.warning(
                "the loss of %s contains the observed sites of the guide (%s), so that the ELBO in its history is "
                "not a bound; pyrovae.evaluate leaves them out",
                name,
                ", ".join(self.programs.observed_in_guide),
            )
        if self.traced:
            self.traced = False
            logger.warning("the step is run eagerly: %s is no objective of pyrovae", name)

    def update(self, *inputs: Tensor, weight: float | None = None, eager: bool = False) -> Tensor:
        """Update the parameters once.

        Args:
            inputs: tensors that `arguments` takes.
            weight: share of the minibatch that this process has, if several processes train together.
            eager: whether model and guide run even if the step is traced.

        Returns:
            Loss, reconstruction and KL per datum, ``(3,)``, nats, averaged over the processes.

        """
        objective, state = self.objective, self.tensors.check()
        self.clear_gradients()
        with torch.enable_grad():
            replay = self._find_trace((state, objective.fixed), inputs) if self.traced and not eager else None
            if replay is None:
                loss, metrics = self.loss(*inputs)
                self.tensors.report_untrained(loss)
                gradients = self._gradients(loss)
            else:
                self._kl_weight.fill_(objective.kl_weight())
                self._num_steps.fill_(objective.step)
                metrics, *gradients = replay(*inputs)
                metrics = metrics.clone()  # a CUDA graph overwrites its results in the next replay
        metrics = self._apply_gradients(metrics, gradients, weight)
        if isinstance(objective, Objective):
            objective.step += 1
        return metrics

    def loss(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its terms; with validation on, Pyro's checks raise one-line errors.

        Returns:
            The loss per datum, 0-dim, nats, differentiable; and loss, reconstruction and KL per datum, ``(3,)``, nats,
            detached. The last two are free of Pyro's scales, and zero for an objective without terms.

        """
        with modules_known() if isinstance(self.objective, Objective) else nullcontext():  # Pyro's read its store
            if is_validation_enabled():
                return run_validated(lambda: self._loss(*inputs), inputs[0].device, nan_counts=False)
            return self._loss(*inputs)

    def bind(self, *inputs: Tensor) -> tuple[Program, Program]:
        """Return model and guide without arguments for the inputs of a step."""
        return self.programs.bind(self.arguments(*inputs))

    def _loss(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        model, guide = self.bind(*inputs)
        count = len(inputs[0])
        size = self.programs.full_size or count
        if isinstance(self.objective, Objective):
            terms = self.objective.terms_of(self.programs, model, guide)
            loss, reconstruction, kl = terms.loss / size, terms.reconstruction / count, terms.kl / count
        else:
            loss = self.objective.differentiable_loss(model, guide) / size
            reconstruction = kl = torch.zeros_like(loss)
        return loss, torch.stack([loss, reconstruction, kl]).detach()

    def _gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Return the gradients of the loss per datum, None for tensors that it does not depend on."""
        thawed = [tensor for tensor in self.tensors.trained if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(loss, thawed, allow_unused=True))
        return [next(gradients) if tensor.requires_grad else None for tensor in self.tensors.trained]

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

    def _find_trace(self, state: Hashable, inputs: tuple[Tensor, ...]) -> Recording | None:
        """Return the trace for inputs of this shape, or None if they run eagerly."""
        if state != self._state:
            self._state, self._traces, self._seen = state, {}, Counter()
        layout = layout_of(inputs)
        if layout not in self._traces:
            self._seen[layout] += 1
            if len(self._seen) > 1 and (self._seen[layout] < REPEATS or len(self._traces) >= MOST_SHAPES):
                return None
            try:
                self._traces[layout] = self.trace(inputs)
            except NotRecordableError as error:
                self.traced = False
                logger.warning("the step is run eagerly: %s", error)
                return None
        return self._traces[layout]

    def trace(self, inputs: tuple[Tensor, ...]) -> Recording:
        """Trace loss and gradients for inputs of a shape, and compile them.

        Raises:
            NotRecordableError: with the reason, if the loss cannot be traced.

        """

        def loss_and_gradients(*inputs: Tensor) -> list[Tensor | None]:
            loss, metrics = self.loss(*inputs)
            return [metrics, *self._gradients(loss)]

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
        return recording

    @contextmanager
    def _numbers_as_tensors(self) -> Iterator[None]:
        """Replace the weight of the KL and the number of steps of the objective by tensors inside the block.

        Raises:
            NotRecordableError: if the objective changed another attribute, which replays would not.

        """
        objective: Any = self.objective
        number, objective.step, objective.kl_weight = objective.step, self._num_steps, lambda: self._kl_weight
        before = dict(vars(objective))
        try:
            yield
            changed = [name for name, value in vars(objective).items() if value is not before.get(name, self)]
            if changed:
                raise NotRecordableError(f"the objective changes its {', '.join(changed)} as it computes the loss")
        finally:
            vars(objective).update(before)
            objective.step = number
            del objective.kl_weight

    def release(self) -> None:
        """Free the gradients, and the traces, which hold the data."""
        self.clear_gradients()
        self._traces = {}

    def clear_gradients(self) -> None:
        """Free the gradients of the last step, so that the next ones can take their memory."""
        for parameter in self.tensors.trained:
            parameter.grad = None
