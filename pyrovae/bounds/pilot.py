"""The run that finds the step sizes of annealing, before they are frozen."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.bounds.hmc import Kernel, Path, transition
from pyrovae.importance import UnconstrainedLatents, rows_per_chunk
from pyrovae.programs import ModelGuide
from pyrovae.programs.layout import to_float64
from pyrovae.results import AnnealingSettings
from pyrovae.runtime import memory
from pyrovae.runtime.arguments import require_integer
from pyrovae.runtime.context import forked_random, stream_seed

ACCEPTANCE = 0.9  # that step sizes are tuned to; more than a long chain wants: here each transition has to move
SCALE_DRAWS = 100  # of the start, from which positions get their scale
FLOOR = 1e-6  # of that scale
PILOT_CHAINS = 4
FIRST_TRANSITIONS = 8  # at the first temperature, until a step size is found
FIRST_STEP = 1.0  # in units of the scale
RATE = 1.0  # at which the logarithm of a step size follows the acceptance
TENSORS = 16  # of the shape of the chains' positions that a transition holds at once


def frozen_kernel(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> Kernel:
    """Return transitions for some rows ``(B,)``, found by a pilot in the stream (seed, "annealing pilot", number)."""
    with forked_random(stream_seed(settings.seed, "annealing pilot", number), rows.device):
        space = UnconstrainedLatents(programs, args, rows)
        if number == 0:
            space.tell_of_cut_gradient()
        memory.require(
            8.0 * TENSORS * settings.num_chains * len(rows) * space.dim,
            what=f"moving {settings.num_chains} chains of {len(rows)} data",
            hint="choose fewer, or a smaller batch_size",
            device=rows.device,
        )
        chunk_size = rows_per_chunk(programs, rows.device, gradients=True)
        return pilot(Path(space, from_prior=settings.from_prior, chunk_size=chunk_size), settings)


def pilot(path: Path, settings: AnnealingSettings) -> Kernel:
    """Find step sizes with chains and draws of its own, and freeze them.

    Positions are scaled by the standard deviation of the start, half the distance between two quantiles of its draws.
    The step size of each datum follows the mean acceptance of its chains from one temperature to the next.
    """
    draws = path.draw(SCALE_DRAWS).sort(0).values
    low, high = (draws[round(level * (SCALE_DRAWS - 1))] for level in (0.1587, 0.8413))
    scale = (0.5 * (high - low)).nan_to_num(1.0, 1.0).clamp(min=FLOOR)
    log_step = torch.full_like(to_float64(scale[:, :1]), math.log(FIRST_STEP))
    steps = [log_step.new_empty((0, *log_step.shape))]
    state = path.at(path.draw(PILOT_CHAINS))
    for t in range(1, settings.num_temperatures):
        for _ in range(FIRST_TRANSITIONS if t == 1 else 1):
            stride = log_step.exp().to(scale) * scale
            alive = state.tilt.isfinite()  # a chain that starts where a density is not finite may never move
            state, accepted = transition(path, state, t / settings.num_temperatures, stride, settings.num_leapfrog)
            excess = ((accepted - ACCEPTANCE) * alive).sum(0) / alive.sum(0).clamp(min=1)
            log_step = log_step + RATE * excess.unsqueeze(-1)
        steps.append(log_step.unsqueeze(0))
    return Kernel(path, scale, torch.cat(steps).exp().to(scale), settings.num_leapfrog)


def batch_of(programs: ModelGuide, settings: AnnealingSettings, batch_size: int | None, device: torch.device) -> int:
    """Return how many data run together on a device: as many as their chains are scored at once."""
    if batch_size is not None:
        require_integer(batch_size, name="batch_size")
    return batch_size or max(1, rows_per_chunk(programs, device, gradients=True) // settings.num_chains)
