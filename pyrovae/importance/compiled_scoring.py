"""The scoring of many particles, compiled once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrovae.compile import NotRecordableError, Recording, has_compiler, layout_of, record
from pyrovae.programs import ModelGuide

logger = logging.getLogger("pyrovae")

COMPILED_FROM = 2**32  # elements of x that are scored, which saves ten seconds; compilation takes some
FEWEST_ELEMENTS = 2**9  # of a datum, since running the programs takes its time however few there are
REFUSAL = "the scoring of particles is not compiled: %s"

Function = Callable[..., Sequence[Tensor]]


class CompiledRuns:
    """Runs of one function of tensors: the first is recorded and compiled, and those on inputs of the same shapes are
    replays of it.

    What cannot be recorded or compiled is run as it is, and one line says why.

    Args:
        leaves: tensors that the function may read or write without being given them.

    """

    def __init__(self, leaves: Sequence[Tensor] = ()) -> None:
        self.leaves = leaves
        self._recording: Recording | None = None
        self._kind: tuple[object, ...] = ()

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return what the function returns, without gradients.

        Args:
            function: does the same in each run but for what depends on its inputs.
            inputs: of it.

        """
        kind = layout_of(inputs)
        if not self._kind:
            self._kind, self._recording = kind, _compiled(function, inputs, self.leaves)
        return function(*inputs) if self._recording is None or kind != self._kind else self._recording(*inputs)


def _compiled(function: Function, inputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> Recording | None:
    try:
        recording = record(function, inputs, leaves=leaves)
        recording.compile(inputs)
    except NotRecordableError as error:
        logger.warning(REFUSAL, error)
        return None
    return recording


def compiled_runs(programs: ModelGuide, engine: str, *, num_rows: int, device: torch.device) -> CompiledRuns | None:
    """Return what records runs of the model, or None where each is run as it is.

    Args:
        programs: from `scoring_context`.
        engine: "captured" to compile, "eager" not to, or "auto" for what pays with so many rows.
        num_rows: that are scored, in all processes together, a datum with K particles counting K.
        device: of the data. Only on a CPU is anything compiled, and only where there is a C++ compiler.

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
