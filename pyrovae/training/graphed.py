"""A step that is one CUDA graph: a replay starts all of its kernels at once."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyrovae.processes import Share, group
from pyrovae.recording import NotRecordableError
from pyrovae.recording.graph import first_line
from pyrovae.sandbox import forked_random
from pyrovae.training.adam import hooks_of
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
    eagerly. An optimizer runs after the graph if it cannot be captured, has hooks, or has had other options changed
    than the learning rate.

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
        self._copied: list[tuple[Tensor, int]] = []  # what was copied to these, and its version then
        self._share: Share | None = None
        self._shown = torch.zeros(3)
        self._gradients: list[Tensor | None] = []
        self._weight = torch.ones(())
        self._rates: list[_Rate] = []
        self._updates = True  # whether the optimizer's update is in the graph
        self._moments: Any = None
        self._options: list[object] = []
        self._options_change = False

    def run(self, *inputs: Tensor) -> Tensor:
        """Move the parameters."""
        graph = None if self.failed else self._captured(inputs)
        if graph is None:
            return super().run(*inputs)
        self._copy(inputs)
        self._set_numbers()
        graph.replay()
        for parameter, gradient in zip(self.leaves.trained, self._gradients, strict=True):
            parameter.grad = gradient  # where the graph wrote it: since then an eager step may have put another there
        if not self._updates:
            self.optimizer.step()
        return self._shown.clone()

    def release(self) -> None:
        """Let go of the graph and the memory that belongs to it."""
        self._graph = self._recorded = None
        self._inputs, self._copied, self._gradients = (), [], []
        super().release()
        gc.collect()  # what was recorded is in cycles, and with it the data set on the device

    def changed(self) -> bool:
        """Tell, once, whether anything was replaced or changed that a capture holds fixed."""
        moments, self._moments = self._moments, self.optimizer.state
        options, self._options = self._options, _options_of(self.optimizer)
        if options and options != self._options:
            self._options_change = True
        replaced = moments is not self._moments or options != self._options
        return super().changed() or replaced

    def _captured(self, inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph | None:
        """Return the graph for inputs like these, or None where they are run eagerly."""
        if self.leaves.displaced():
            self.leaves.refresh(self.optimizer)
        first = self._moments is None
        if self.changed():
            self._graph = None
            if not (first and self.optimizer.state):
                return None  # the optimizer makes the state that is missing in an eager step
        if self._graph is None:
            self._capture_if_possible(inputs)
        same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(self._inputs, inputs, strict=True))
        return self._graph if same and self.loss.share == self._share else None

    def _copy(self, inputs: tuple[Tensor, ...]) -> None:
        """Bring inputs to where the graph reads them, but for those that are there already."""
        for number, (place, value) in enumerate(zip(self._inputs, inputs, strict=True)):
            last, version = self._copied[number]
            now = -1 if value.is_inference() else value._version
            if value is not last or now != version or now < 0:
                place.copy_(value.detach(), non_blocking=True)
                self._copied[number] = value, now

    def _capture_if_possible(self, inputs: tuple[Tensor, ...]) -> None:
        """Capture the step, with torch's own kernels where those of Inductor cannot be had or captured."""
        first = self.leaves.trained[0]
        while self._graph is None and not self.failed:
            self._inputs, self._share = tuple(each.detach().clone() for each in inputs), self.loss.share
            self._copied = [(each, -1) for each in inputs]
            self._weight = torch.ones((), device=first.device, dtype=first.dtype)
            self._updates = self._make_capturable(first.device)
            self._set_numbers()
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
        assert self._recorded is not None
        shown = self.take_from(self._recorded, self._inputs)
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
        self._rates = []
        able = all("capturable" in each for each in groups) and not any(hooks_of(self.optimizer))
        if not able or self._options_change:
            return False
        for each in groups:
            each["capturable"] = True
        for state in self.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and not value.ndim:  # counts, and running products of coefficients
                    state[name] = value.to(device)
        self._rates = [_Rate(each, device) for each in groups]
        return True

    def _set_numbers(self) -> None:
        """Bring the numbers that the caller may have changed to where the graph reads them."""
        self.set_weight(self._weight)
        for each, held in zip(self.optimizer.param_groups, self._rates, strict=False):
            held.update(each)

    def _release_rates(self) -> None:
        for each, held in zip(self.optimizer.param_groups, self._rates, strict=False):
            held.release(each)


class _Rate:
    """The learning rate of a group of parameters, in a tensor that stays where it is.

    Fused optimizers read it in float32, whatever the parameters are in.
    """

    def __init__(self, owner: dict[str, Any], device: torch.device) -> None:
        dtype = torch.float32 if owner.get("fused") else owner["params"][0].dtype
        given = self._number = owner["lr"]
        lies_there = isinstance(given, Tensor) and (given.device, given.dtype) == (device, dtype)
        self._tensor: Tensor = given if lies_there else torch.zeros((), dtype=dtype, device=device)

    def update(self, owner: dict[str, Any]) -> None:
        """Take up the number that the caller has put in the group, if there is one."""
        if owner["lr"] is not self._tensor:
            self._number = owner["lr"]
            self._tensor.fill_(self._number)
            owner["lr"] = self._tensor

    def release(self, owner: dict[str, Any]) -> None:
        """Put the number back, unless another was written into the tensor, as torch's schedulers do."""
        if owner["lr"] is self._tensor:
            found = self._tensor.item()
            same = found == torch.as_tensor(self._number, dtype=self._tensor.dtype).item()
            owner["lr"] = self._number if same else found


def _options_of(optimizer: torch.optim.Optimizer) -> list[object]:
    """Return what a capture of an optimizer's update holds fixed: all options but the learning rate, and its hooks."""
    fixed = [
        id(each[name]) if isinstance(each[name], Tensor) else each[name]
        for each in optimizer.param_groups
        for name in optimizer.defaults
        if name not in ("lr", "capturable")
    ]
    return [*fixed, *map(len, hooks_of(optimizer))]


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
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            place.fill_(0.0)
