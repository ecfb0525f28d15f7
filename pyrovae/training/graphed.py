"""A step that is one CUDA graph: a replay starts all of its kernels at once."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from pyrovae.processes import Share
from pyrovae.recording import NotRecordableError, Recording
from pyrovae.recording.graph import first_line
from pyrovae.sandbox import forked_random, validation
from pyrovae.training.step import CapturableStep

logger = logging.getLogger("pyrovae")

WARM_UPS = 3  # runs on a side stream before the capture, as torch's notes on CUDA graphs ask for


class GraphedStep(CapturableStep):
    """A step whose loss, gradients, clipping and update are captured once, in a CUDA graph, and replayed.

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
        self._weight = torch.ones(())
        self._rates: list[Tensor] = []
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
        """Capture the step, with its kernels as they are where they cannot be captured compiled."""
        try:
            self._capture(inputs)
        except Exception as error:  # programs of the user's, Inductor and CUDA may raise anything
            self._graph = None
            reason = str(error) if isinstance(error, NotRecordableError) else first_line(error)
            if not self.compiled:
                self.give_up(reason)
                return
            self.compiled = False
            logger.warning("the kernels of the captured step are not compiled: %s", reason)
            self._capture_if_possible(inputs)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Capture the step, with all values afterwards as before."""
        device = self.leaves.trained[0].device
        self._graph = None
        self._inputs, self._share = tuple(each.clone() for each in inputs), self.loss.share
        self._weight = torch.ones((), device=device, dtype=self.leaves.trained[0].dtype)
        self._updates = self._make_capturable(device)
        self._set_numbers()
        self._recording = self.record(self._inputs, self._weight) if self.compiled else None
        if self._recording is not None:
            self._recording.compile(self._inputs)
        kept = [(tensor, tensor.detach().clone()) for tensor in self.leaves.all]
        states = [
            (state, name, value.clone())
            for state in self.optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, Tensor)
        ]
        try:
            with forked_random(0, device), validation(enabled=False), self.weight_held(self._weight):
                side = torch.cuda.Stream(device)
                side.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(side):
                    for _ in range(WARM_UPS):
                        self._body()
                torch.cuda.current_stream(device).wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    self._shown = self._body()
        finally:
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
                for state, name, value in states:  # which a first step may have bound to another tensor
                    state[name].copy_(value)
        self._graph = graph

    def _body(self) -> Tensor:
        """Run what is captured."""
        if self._recording is None:
            loss, shown = self.loss(*self._inputs)
            shown = self.take(shown, torch.autograd.grad(loss, self.leaves.trained, allow_unused=True))
        else:
            shown = self.take_from(self._recording, self._inputs)
        if self._updates:
            self.optimizer.step()
        return shown

    def _make_capturable(self, device: torch.device) -> bool:
        """Put learning rates and step counts of the optimizer on the device; tell whether it can be captured."""
        if not all("capturable" in group for group in self.optimizer.param_groups):
            return False
        for group in self.optimizer.param_groups:
            group["capturable"] = True
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(device)
        self._rates = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]
        return True

    def _set_numbers(self) -> None:
        """Bring the numbers that the caller may have changed to where the graph reads them."""
        self.set_weight(self._weight)
        if self._updates:
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                _hold(group, rate)


def _hold(group: dict[str, Any], rate: Tensor) -> None:
    """Put the learning rate of a group into a tensor that stays where it is."""
    if group["lr"] is not rate:
        rate.fill_(group["lr"])
        group["lr"] = rate
