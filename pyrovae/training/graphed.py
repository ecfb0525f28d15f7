"""A step that is one CUDA graph: a replay starts all of its kernels at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrovae.processes import Share
from pyrovae.recording import NotRecordableError, Recording
from pyrovae.recording.graph import first_line
from pyrovae.sandbox import forked_random
from pyrovae.training.step import CapturableStep

logger = logging.getLogger("pyrovae")

WARM_UPS = 3  # runs on a side stream before the capture, as torch's notes on CUDA graphs ask for


class GraphedStep(CapturableStep):
    """A step whose loss, gradients, clipping and update are captured once, in a CUDA graph, and replayed.

    What is captured is a replay of the recorded step, not the programs: these may bring numbers to the device as they
    go, which no capture allows, and which the recording holds there.

    The graph reads data, parameters, buffers, the weight of the KL and the learning rate where they lie. It is captured
    anew where one of them comes to lie elsewhere, modules change their mode or options of the objective change. Random
    numbers are those of the device's default stream, as an eager step draws them. Inputs of another shape than the
    first, such as a last minibatch that is short, are run eagerly. An optimizer that cannot be captured runs after the
    graph.

    Args:
        args: those of `Step`.
        compiled: whether Inductor makes few kernels of loss and gradients; where it cannot, one line says so.
        options: those of `Step`.

    """

    def __init__(self, *args: Any, compiled: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.compiled = compiled
        self._recording: Recording | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._share: Share | None = None
        self._shown = torch.zeros(3)
        self._gradients: list[Tensor | None] = []
        self._weight = torch.ones(())
        self._rates: list[_Rate] = []
        self._updates, self._begun = True, False

    def run(self, *inputs: Tensor) -> Tensor:
        """Move the parameters."""
        graph = None if self.failed else self._captured(inputs)
        if graph is None:
            self._begun = True
            return super().run(*inputs)
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value, non_blocking=True)
        self._set_numbers()
        graph.replay()
        for parameter, gradient in zip(self.leaves.trained, self._gradients, strict=True):
            parameter.grad = gradient  # where the graph wrote it: since then an eager step may have put another there
        if not self._updates:
            self.optimizer.step()
        return self._shown.clone()

    def _captured(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph | None:
        """Return the graph for inputs like these, or None where they are run eagerly."""
        if not self._begun and not self.optimizer.state:
            return None  # the optimizer makes its state in an eager step first
        if self.leaves.displaced():
            self.leaves.refresh(self.optimizer)
        if self.changed() or self._graph is None:
            self._capture_if_possible(inputs)
        same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(self._inputs, inputs, strict=True))
        return self._graph if same and self.loss.share == self._share else None

    def _capture_if_possible(self, inputs: tuple[Tensor, ...]) -> None:
        """Capture the step, with torch's own kernels where those of Inductor cannot be had or captured."""
        self._graph = None
        self._inputs, self._share = tuple(each.clone() for each in inputs), self.loss.share
        first = self.leaves.trained[0]
        self._weight = torch.ones((), device=first.device, dtype=first.dtype)
        self._updates = self._make_capturable(first.device)
        self._set_numbers()
        try:
            self._recording = self.record(self._inputs, self._weight)
        except NotRecordableError as error:
            self.give_up(str(error))
            return
        try:
            if self.compiled:
                self._recording.compile(self._inputs)
            self._capture(first.device)
        except Exception as error:  # Inductor, Triton and CUDA may raise anything
            reason = str(error) if isinstance(error, NotRecordableError) else first_line(error)
            if not self.compiled:
                self.give_up(reason)
                return
            self.compiled = False
            logger.warning("the kernels of the captured step are not compiled: %s", reason)
            self._capture_if_possible(inputs)

    def _capture(self, device: torch.device) -> None:
        """Capture a replay of the recording and the update, with all values afterwards as before."""
        here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        with self._put_back(), torch.cuda.device(device), forked_random(0, device):
            side.wait_stream(here)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.stream(side):  # which torch does not leave by itself where a capture fails
                    for _ in range(WARM_UPS):
                        self._body()
                    # other threads may call CUDA meanwhile: those of a loader, or of NCCL
                    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                        self._shown = self._body()
            except BaseException:
                _mend_generator(device)
                raise
            finally:
                here.wait_stream(side)
        self._gradients = [parameter.grad for parameter in self.leaves.trained]
        self._graph = graph

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        """Put back, after the block, the values of all tensors and of the optimizer's state."""
        kept = [(tensor, tensor.detach().clone()) for tensor in self.leaves.all]
        states = [
            (state, name, value.clone())
            for state in self.optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, Tensor)
        ]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
                for state, name, value in states:  # which a first step may have bound to another tensor
                    state[name].copy_(value)

    def _body(self) -> Tensor:
        """Run what is captured."""
        assert self._recording is not None
        shown = self.take_from(self._recording, self._inputs)
        if self._updates:
            self.optimizer.step()
        return shown

    def give_up(self, reason: str) -> None:
        """Run eagerly from now on, with learning rates that are numbers again, and say why in one line."""
        self._release_rates()
        super().give_up(reason)

    def _make_capturable(self, device: torch.device) -> bool:
        """Put learning rates and step counts of the optimizer on the device; tell whether it can be captured."""
        groups = self.optimizer.param_groups
        self._release_rates()
        if not all("capturable" in group for group in groups):
            return False
        for group in groups:
            group["capturable"] = True
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(device)
        self._rates = [_Rate(group, device) for group in groups]
        return True

    def _set_numbers(self) -> None:
        """Bring the numbers that the caller may have changed to where the graph reads them."""
        self.set_weight(self._weight)
        for group, held in zip(self.optimizer.param_groups, self._rates, strict=False):
            held.update(group)

    def _release_rates(self) -> None:
        for group, held in zip(self.optimizer.param_groups, self._rates, strict=False):
            held.release(group)


class _Rate:
    """The learning rate of a group of parameters, in a tensor that stays where it is.

    Fused optimizers read it in float32, whatever the parameters are in.
    """

    def __init__(self, group: dict[str, Any], device: torch.device) -> None:
        dtype = torch.float32 if group.get("fused") else group["params"][0].dtype
        self._number: Any = group["lr"]
        self._tensor = torch.zeros((), dtype=dtype, device=device)

    def update(self, group: dict[str, Any]) -> None:
        """Take up the number that the caller has put in the group, if there is one."""
        if group["lr"] is not self._tensor:
            self._number = group["lr"]
            self._tensor.fill_(self._number)
            group["lr"] = self._tensor

    def release(self, group: dict[str, Any]) -> None:
        """Put the number back."""
        if group["lr"] is self._tensor:
            group["lr"] = self._number


def _mend_generator(device: torch.device) -> None:
    """Let the device's default stream be drawn from again after a capture has failed, in versions of torch in which it
    goes on to wait for the end of that capture.
    """
    try:
        torch.empty(1, device=device).uniform_()
    except RuntimeError:
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
