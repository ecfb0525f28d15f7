"""Compiled scoring of many particles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrovae.compile import NotRecordableError, Recording, has_compiler, layout_of, record
from pyrovae.programs import ModelGuide

logger = logging.getLogger("pyrovae")

COMPILED_FROM = 2**32  # scored elements of x from which compilation pays
FEWEST_ELEMENTS = 2**9  # elements that a small datum counts as, for the time of running the programs
REFUSAL = "the scoring of particles is not compiled: %s"

Function = Callable[..., Sequence[Tensor]]


class CompiledRuns:
    """Runs of one function of tensors: the first is traced and compiled, later ones of the same shapes replay it.

    A function that cannot be traced or compiled runs eagerly, and a warning gives the reason.

    Args:
        leaves: tensors that the function reads or writes without receiving them as inputs.

    """

    def __init__(self, leaves: Sequence[Tensor] = ()) -> None:
        self.leaves = leaves
        self._recording: Recording | None = None
        self._layout: tuple[object, ...] = ()

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what the function returns, without gradients.

        Args:
            function: depends on nothing but its inputs and the leaves.
            inputs: tensors.

        """
        layout = layout_of(inputs)
        if not self._layout:
            self._layout, self._recording = layout, _compiled(function, inputs, self.leaves)
        return function(*inputs) if self._recording is None or layout != self._layout else self._recording(*inputs)


def _compiled(function: Function, inputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> Recording | None:
    try:
        recording = record(function, inputs, leaves=leaves)
        recording.compile(inputs)
    except NotRecordableError as error:
        logger.warning(REFUSAL, error)
        return None
    return recording


def compiled_runs(programs: ModelGuide, engine: str, *, num_rows: int, device: torch.device) -> CompiledRuns | None:
    """Return compiled runs of the model, or None where runs are eager.

    Args:
        programs: from `scoring_context`.
        engine: "captured" to compile, "eager" not to, or "auto" to compile where it pays.
        num_rows: scored rows of all processes, a datum with K particles counting K.
        device: of the data. Compilation needs a CPU and a C++ compiler.

    """
    much = num_rows * max(FEWEST_ELEMENTS, programs.num_elements) >= COMPILED_FROM
    wanted = engine == "captured" or (engine == "auto" and much)
    if not wanted or device.type != "cpu":
        return None
    if not has_compiler():
        if engine == "captured":
            logger.warning(REFUSAL, "no C++ compiler is found")
        return None
    tensors = (tensor for module in programs.modules for tensor in (*module.parameters(), *module.buffers()))
    return CompiledRuns(list({id(tensor): tensor for tensor in tensors}.values()))
