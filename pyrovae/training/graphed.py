"""A step that is one CUDA graph: a replay starts all of its kernels at once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrovae.compile import NotRecordableError
from pyrovae.compile.trace import first_line
from pyrovae.runtime.context import forked_random, is_expanded
from pyrovae.runtime.distributed import Shard, group
from pyrovae.training.held_optimizer import HeldOptimizer
from pyrovae.training.step import CapturableStep, RecordedLoss

logger = logging.getLogger("pyrovae")

WARM_UPS = 3  # runs on a side stream before the capture, as torch's notes on CUDA graphs ask for


class GraphedStep(CapturableStep):
    """A step whose loss, gradients, clipping and update are captured once, in a CUDA graph, and replayed.

    What is captured is a replay of the recorded step, not the programs: these may make tensors of numbers on the device
    as they go, which no capture allows, and which the recording holds there.

    The graph reads data, parameters, buffers, the optimizer's state, the weight of the KL and the learning rate where
    they lie. It is captured anew, after an eager step, where one of them is replaced or comes to lie elsewhere, modules
    change their mode or options of the objective change. Random numbers are those of the device's default stream, as an
    eager step draws them. Inputs of another shape than the first, such as a last minibatch that is short, are run
    eagerly. An optimizer runs after the graph where `HeldOptimizer` says so.

    Args:
        args: those of `Step`.
        compiled: whether Inductor makes few kernels of loss and gradients; where it cannot, one line says so.
        options: those of `Step`.

    """

    def __init__(self, *args: Any, compiled: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.compiled = compiled
        self._recorded: RecordedLoss | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._share: Shard | None = None
        self._shown = torch.zeros(3)
        self._gradients: list[Tensor | None] = []
        self._weight = torch.ones(())
        self._held = HeldOptimizer(self.optimizer)

    def run(self, *inputs: Tensor) -> Tensor:
        """Move the parameters."""
        graph = None if self.failed else self._captured(inputs)
        if graph is None:
            return super().run(*inputs)
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value.detach(), non_blocking=True)
        self.set_weight(self._weight)
        self._held.update()
        graph.replay()
        for parameter, gradient in zip(self.leaves.trained, self._gradients, strict=True):
            parameter.grad = gradient  # where the graph wrote it: since then an eager step may have put another there
        if not self._held.inside:
            self.optimizer.step()
        return self._shown.clone()

    def release(self) -> None:
        """Let go of the graph and the memory that belongs to it."""
        self._graph = self._recorded = None
        self._inputs, self._gradients = (), []
        super().release()
        gc.collect()  # what was recorded is in cycles, and with it the data set on the device

    def changed(self) -> bool:
        """Tell, once, whether anything was replaced or changed that a capture holds fixed."""
        optimizer, rest = self._held.changed(), super().changed()
        return optimizer or rest

    def _captured(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph | None:
        """Return the graph for inputs like these, or None where they are run eagerly."""
        if self.leaves.displaced():
            self.leaves.refresh(self.optimizer)
        first = not self._held.seen
        if self.changed():
            self._graph = None
            if not (first and self.optimizer.state):
                return None  # the optimizer makes the state that is missing in an eager step
        if self._graph is None:
            self._capture_if_possible(inputs)
        same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(self._inputs, inputs, strict=True))
        return self._graph if same and self.loss.share == self._share else None

    def _capture_if_possible(self, inputs: tuple[Tensor, ...]) -> None:
        """Capture the step, with torch's own kernels where those of Inductor cannot be had or captured."""
        first = self.leaves.trained[0]
        while self._graph is None and not self.failed:
            self._inputs, self._share = tuple(each.detach().clone() for each in inputs), self.loss.share
            self._weight = torch.ones((), device=first.device, dtype=first.dtype)
            self._held.hold(first.device)
            self.set_weight(self._weight)
            self._held.update()
            if (reason := self._why_not_recorded()) is not None:
                self.give_up(reason)
            elif (reason := self._why_not_compiled() or self._why_not_captured(first.device)) is None:
                return
            elif self.compiled:
                self.compiled = False
                logger.warning("the kernels of the captured step are not compiled: %s", reason)
            else:
                self.give_up(reason)

    def _why_not_recorded(self) -> str | None:
        """Record the step; return why that fails, in this process or another, where it does."""
        reason = None
        try:
            self._recorded = self.record(self._inputs, self._weight)
        except NotRecordableError as error:
            reason = str(error)
        return _agreed(reason)

    def _why_not_compiled(self) -> str | None:
        """Compile what was recorded, if that is wanted; return why that fails, where it does."""
        assert self._recorded is not None
        reason = None
        try:
            if self.compiled:
                self._recorded.recording.compile(self._inputs)
        except NotRecordableError as error:
            reason = str(error)
        return _agreed(reason)

    def _why_not_captured(self, device: torch.device) -> str | None:
        """Capture the step; return why that fails, where it does, without the error, which would keep the graph."""
        reason = None
        try:
            self._capture(device)
        except Exception as error:  # kernels of Inductor's, and CUDA, may raise anything
            reason = first_line(error)
        reason = _agreed(reason)
        if reason is not None:
            self._graph = None
        return reason

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
        kept = [(tensor, tensor.detach().clone()) for tensor in self.leaves.all if not is_expanded(tensor)]
        states = [(state, name, state[name].clone()) for state, name in self._held.tensors()]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
                for state, name, value in states:
                    state[name].copy_(value)

    def _body(self) -> Tensor:
        """Run what is captured."""
        assert self._recorded is not None
        shown = self.take_from(self._recorded, self._inputs)
        if self._held.inside:
            self.optimizer.step()
        return shown

    def give_up(self, reason: str) -> None:
        """Run eagerly from now on, with learning rates that are numbers again, and say why in one line."""
        self._held.release()
        super().give_up(reason)


def _agreed(reason: str | None) -> str | None:
    """Return why something failed, here or in another process: all go the same way, or wait for each other for ever."""
    if group().all(reason is None):
        return None
    return reason or "it fails in another process"


def _mend_generator(device: torch.device) -> None:
    """Let the device's default stream be drawn from again after a capture has failed, in versions of torch in which it
    goes on to wait for the end of that capture: that of another one will do.
    """
    place = torch.zeros(1, device=device)
    try:
        place.uniform_()
    except RuntimeError:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(device)):
            place.fill_(0.0)
