"""How large a tensor a model makes on its way from z to x, by which particles are scored in pieces."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from pyrovae.programs.model_guide import PARTICLE_PLATE, ModelGuide, Program


def largest_output(pair: ModelGuide, args: tuple[Any, ...], rows: Tensor) -> int:
    """Return the elements per particle of the largest tensor that a module puts out while the model runs.

    Where their number is free, outputs that do not grow with it are not counted, such as those of a network that sees
    nothing but covariates. 0 if the programs fail.
    """

    def outputs(rows: Tensor, num_particles: int | None) -> list[int]:
        programs = pair.bind(args, rows)
        if num_particles is not None:
            plate = pyro.plate(PARTICLE_PLATE, num_particles, dim=-1 - pair.nesting)
            programs = plate(programs[0]), plate(programs[1])
        try:
            return _outputs(*programs)
        except Exception:  # they ran before, but perhaps not on so many, and a program may have any state
            return []

    if pair.broadcasts:
        more, fewer, between = outputs(rows, 3), outputs(rows, 2), len(rows)
    else:
        more, fewer, between = outputs(rows, None), [] if pair.draws_rows else outputs(rows[:-1], None), 1
    if len(more) == len(fewer):
        return max((a - b for a, b in zip(more, fewer, strict=True)), default=0) // between
    return max(more, default=0) // (len(rows) * (3 if pair.broadcasts else 1))


def _outputs(model: Program, guide: Program) -> list[int]:
    """Return the elements of each tensor that a module puts out while the model runs on the guide's draws."""
    drawn = poutine.trace(guide).get_trace()
    sizes: list[int] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        sizes.extend(each.numel() for each in outputs if isinstance(each, Tensor))

    hook = register_module_forward_hook(note)
    try:
        with warnings.catch_warnings():  # a compiled module has a word to say about such hooks
            warnings.filterwarnings("ignore", ".*when there are global hooks")
            poutine.trace(poutine.replay(model, trace=drawn)).get_trace()
    finally:
        hook.remove()
    return sizes
