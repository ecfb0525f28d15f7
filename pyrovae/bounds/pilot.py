"""Pilot run of annealing, which finds the step sizes before they are frozen."""

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
from pyrovae.runtime.arguments import require_integer
from pyrovae.runtime.context import forked_random, stream_seed

ACCEPTANCE = 0.9  # target of the step sizes; more than a long chain needs, since here each transition has to move
SCALE_DRAWS = 100  # draws of the start used to estimate the position scale
MIN_SCALE = 1e-6  # smallest position scale
PILOT_CHAINS = 4  # chains of each datum
FIRST_TRANSITIONS = 8  # transitions at the first temperature, until a step size is found
FIRST_STEP = 1.0  # first step size, in units of the position scale
RATE = 1.0  # change of the log step size for each unit of excess acceptance


def frozen_kernel(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> Kernel:
    """Return transitions for rows ``(B,)``, found by a pilot run in the stream (seed, "annealing pilot", number)."""
    with forked_random(stream_seed(settings.seed, "annealing pilot", number), rows.device):
        space = UnconstrainedLatents(programs, args, rows)
        if number == 0:
            space.tell_of_cut_gradient()
        chunk_size = rows_per_chunk(programs, rows.device, gradients=True)
        return pilot(Path(space, from_prior=settings.from_prior, chunk_size=chunk_size), settings)


def pilot(path: Path, settings: AnnealingSettings) -> Kernel:
    """Find step sizes with separate chains and draws, and freeze them.

    Positions are scaled by the standard deviation of the start: half the distance between two quantiles of its draws.
    The step size of each datum follows the mean acceptance of its chains from one temperature to the next.
    """
    draws = path.draw(SCALE_DRAWS).sort(0).values
    low, high = (draws[round(level * (SCALE_DRAWS - 1))] for level in (0.1587, 0.8413))
    scale = (0.5 * (high - low)).nan_to_num(1.0, 1.0).clamp(min=MIN_SCALE)
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


def choose_batch_size(
    programs: ModelGuide, settings: AnnealingSettings, batch_size: int | None, device: torch.device
) -> int:
    """Return the number of data that run together, by default those whose chains are scored in one chunk."""
    if batch_size is not None:
        require_integer(batch_size, name="batch_size")
    return batch_size or max(1, rows_per_chunk(programs, device, gradients=True) // settings.num_chains)
