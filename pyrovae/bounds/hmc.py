"""Hamiltonian chains from the guide to the posterior, for AIS and BDMC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.importance import UnconstrainedLatents, rows_per_chunk
from pyrovae.programs import ModelGuide
from pyrovae.programs.layout import to_float64
from pyrovae.results import AnnealingSettings
from pyrovae.runtime.context import forked_random, stream_seed

ACCEPTANCE = 0.9  # target of the step sizes; more than a long chain needs, since here each transition has to move
SCALE_DRAWS = 100  # draws of the start used to estimate the position scale
MIN_SCALE = 1e-6  # smallest position scale
PILOT_CHAINS = 4  # chains of each datum
FIRST_TRANSITIONS = 8  # transitions at the first temperature, until a step size is found
FIRST_STEP = 1.0  # first step size, in units of the position scale
RATE = 1.0  # change of the log step size for each unit of excess acceptance
JITTER = 0.5  # relative change of a step size, since equal steps may return a chain to its start


class State(NamedTuple):
    """Positions of chains and gradients there ``(K, B, D)``, log-densities of start and end ``(K, B)``, nats."""

    u: Tensor
    log_start: Tensor
    log_end: Tensor
    start_slope: Tensor
    end_slope: Tensor

    @property
    def tilt(self) -> Tensor:
        """Log f at beta = 1 minus log f at beta = 0, ``(K, B)``."""
        return self.log_end - self.log_start

    def log_density(self, beta: float) -> Tensor:
        """Return log f_beta ``(K, B)``."""
        return (1 - beta) * self.log_start + beta * self.log_end

    def slope(self, beta: float) -> Tensor:
        """Return the gradient of log f_beta by u, ``(K, B, D)``."""
        return torch.lerp(self.start_slope, self.end_slope, beta)

    def moved(self, accepted: Tensor, to: State) -> State:
        """Return this state with the chains of another state where ``(K, B)`` is true."""
        fields = zip(self, to, strict=True)
        return State(
            *(torch.where(accepted if old.ndim == 2 else accepted.unsqueeze(-1), new, old) for old, new in fields)
        )


class Path:
    """Densities between the guide and p(x, u): ``log f_beta(u) = (1 - beta) log q(u | x) + beta log p(x, u)``.

    Args:
        space: latent variables of the rows.
        chunk_size: rows scored at once, one row for each chain of each datum.

    """

    def __init__(self, space: UnconstrainedLatents, *, chunk_size: int) -> None:
        self.space = space
        self.chains_at_once = max(1, chunk_size // len(space.rows))

    def draw(self, num_chains: int) -> Tensor:
        """Draw u ``(K, B, D)`` from the guide."""
        return self.space.draw(num_chains)[0]

    def at(self, u: Tensor) -> State:
        """Return the state of chains at u ``(K, B, D)``, without an autograd graph."""
        parts = [self._at(part) for part in u.split(self.chains_at_once)]
        return State(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _at(self, u: Tensor) -> State:
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            mapped = self.space.to_latents(u)
            log_prior, log_likelihood = self.space.log_joint_terms(u, mapped)
            log_start, log_end = self.space.log_guide(u, mapped), log_prior + log_likelihood
            start_slope, end_slope = _slope(log_start, u), _slope(log_end, u)
        return State(u.detach(), log_start.detach(), log_end.detach(), start_slope, end_slope)


def _slope(log_density: Tensor, u: Tensor) -> Tensor:
    """Return the gradient of log-densities ``(K, B)`` by u, zero where they do not depend on it."""
    if not log_density.requires_grad:
        return torch.zeros_like(u)
    (slope,) = torch.autograd.grad(log_density.sum(), u, retain_graph=True, allow_unused=True)
    return torch.zeros_like(u) if slope is None else slope


@dataclass(frozen=True)
class Kernel:
    """Transitions at beta = 1/T, ..., (T - 1)/T that leave f_beta invariant, with frozen step sizes.

    Attributes:
        path: densities from the start to the end.
        scale: position scale, ``(B, D)``.
        steps: step size at each beta in units of the scale, ``(T - 1, B, 1)``.
        num_leapfrog: leapfrog steps of a transition.

    """

    path: Path
    scale: Tensor
    steps: Tensor
    num_leapfrog: int

    def forward(self, num_chains: int) -> tuple[Tensor, Tensor]:
        """Run K chains from draws of the start.

        ``log w = sum_{t=1}^T (log f_{t/T}(u_{t-1}) - log f_{(t-1)/T}(u_{t-1}))``, so that ``E w = p(x)``

        Returns:
            log w ``(K, B)`` in nats, and acceptance ``(B,)``, NaN where T = 1.

        """
        return self._run(self.path.draw(num_chains), range(1, len(self.steps) + 1))

    def backward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Run the same transitions in the opposite order from draws u ``(K, B, D)`` of the posterior.

        Each is reversible, so that this is the time reversal of `forward`: ``E 1 / w = 1 / p(x)``.

        Returns:
            log w ``(K, B)`` in nats, and acceptance ``(B,)``, NaN where T = 1.

        """
        return self._run(u, range(len(self.steps), 0, -1))

    def _run(self, u: Tensor, order: Sequence[int]) -> tuple[Tensor, Tensor]:
        total = len(self.steps) + 1
        state = self.path.at(u)
        log_weights = state.tilt / total
        acceptance = [log_weights.new_full((log_weights.shape[1],), math.nan)] if total == 1 else []
        for t in order:
            stride = self.steps[t - 1] * self.scale
            state, accepted = transition(self.path, state, t / total, stride, self.num_leapfrog)
            log_weights = log_weights + state.tilt / total
            acceptance.append(accepted.mean(0))
        return log_weights, torch.stack(acceptance).mean(0)


def transition(path: Path, state: State, beta: float, stride: Tensor, num_leapfrog: int) -> tuple[State, Tensor]:
    """Move chains by Hamiltonian dynamics and accept or reject: reversible, with f_beta invariant.

    A proposal whose densities are not finite is rejected.

    *MCMC using Hamiltonian dynamics (Neal 2011)*, https://arxiv.org/abs/1206.1901

    Args:
        path: densities from the start to the end.
        state: state of the chains.
        beta: inverse temperature.
        stride: step sizes in units of u, ``(B, D)``, jittered for each chain independently of its state.
        num_leapfrog: leapfrog steps.

    Returns:
        The new state, and the probabilities ``(K, B)`` with which the proposals were accepted.

    """
    u = state.u
    jitter = torch.rand(*u.shape[:2], 1, dtype=u.dtype, device=u.device)
    stride = stride * (1 - JITTER + 2 * JITTER * jitter)
    momentum = torch.randn_like(u)
    before = state.log_density(beta) - _kinetic(momentum)
    inside = torch.ones_like(before, dtype=torch.bool)
    moving = state
    for step in range(num_leapfrog):
        momentum = momentum + (0.5 if step == 0 else 1.0) * stride * moving.slope(beta)
        u = moving.u + stride * momentum
        inside = inside & u.isfinite().all(-1)
        moving = path.at(torch.where(inside.unsqueeze(-1), u, state.u))
    momentum = momentum + 0.5 * stride * moving.slope(beta)
    log_ratio = moving.log_density(beta) - _kinetic(momentum) - before
    inside = inside & moving.log_start.isfinite() & moving.log_end.isfinite() & ~log_ratio.isnan()
    acceptance = torch.where(inside, log_ratio.clamp(max=0.0).exp(), 0.0)
    return state.moved(torch.rand_like(acceptance) < acceptance, moving), acceptance


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * to_float64(momentum).square().sum(-1)


def frozen_kernel(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> Kernel:
    """Return transitions for the data of one batch, found by a pilot run.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        settings: number of temperatures and leapfrog steps.
        number: number of the batch; the pilot draws from the stream (seed, "annealing pilot", number).

    """
    with forked_random(stream_seed(settings.seed, "annealing pilot", number), rows.device):
        space = UnconstrainedLatents(programs, args, rows)
        if number == 0:
            space.check_densities(with_guide=True)
        chunk_size = rows_per_chunk(programs, rows.device, gradients=True)
        return pilot(Path(space, chunk_size=chunk_size), settings)


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
