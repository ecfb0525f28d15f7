"""Bounds whose differences are the gaps, for one batch of data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.evidence import particle_terms
from pyrovae.bounds.multi_sample import VARIANCE, iwae, monte_carlo_variances
from pyrovae.diagnostics.refine import (
    DiagonalGaussian,
    best_of,
    further_starts,
    is_diagonal_gaussian,
    refine,
    start,
)
from pyrovae.diagnostics.refit import Refit
from pyrovae.importance import UnconstrainedLatents, iter_batches, iter_particles
from pyrovae.programs import ModelGuide
from pyrovae.programs.layout import to_float64
from pyrovae.runtime.annotations import NonNegativeInt, PositiveInt, convert_fields
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

NUMBERS = ("num_particles", "num_steps", "num_starts", "refit_epochs", "batch_size")  # options that are reported


@dataclass(frozen=True)
class GapOptions:
    """How the gaps are estimated.

    Attributes:
        bound_label: name of the given bound.
        bound_variances: ``(N,)`` or ``(C, N)``, one or several estimates of the Monte Carlo variances of the given
            bound; the estimate with the largest sum counts; None if they are unknown.
        num_particles: K, fresh draws of each datum from which each bound is estimated.
        num_steps: gradient steps of the refinement.
        num_starts: starts of the refinement for each datum; the best result counts.
        refit_epochs: passes over the data in which the guide's own parameters are fitted to them; 0 skips the refit.
        batch_size: data refined together.
        modules: modules of the programs that cannot be found from the programs.
        show_progress: show a progress bar.

    Raises:
        ValueError: if a number is out of range.

    """

    bound_label: str = "the given bound"
    bound_variances: Tensor | None = None
    num_particles: PositiveInt = 1000
    num_steps: PositiveInt = 300
    num_starts: PositiveInt = 3
    refit_epochs: NonNegativeInt = 50
    batch_size: PositiveInt = 200
    modules: Iterable[nn.Module] = ()
    show_progress: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        convert_fields(self)


def all_bounds(
    programs: ModelGuide, args: tuple[Any, ...], refitted: Refit, options: GapOptions, *, seed: int, tight: bool
) -> tuple[dict[str, Tensor], int, bool | None]:
    """Estimate ELBO of the guide, ELBO of a refined Gaussian, and a tighter bound, batch by batch.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        refitted: new parameters of the guide.
        options: numbers of draws, steps and starts.
        seed: seed; each bound of each batch has its own random stream.
        tight: whether to estimate the tighter bound too.

    Returns:
        Bounds ``(N,)``, their Monte Carlo variances ``(C, N)``, the history of the refinement ``(num_steps, N)`` and
        whether it ended apart from the result of the guide's start ``(N,)``; the number of weights in the tighter
        bound; and whether the guide is a diagonal Gaussian, None if this cannot be found out.

    """
    x, parts, done = args[0], [], 0
    with progress("refining", len(x), show_progress=options.show_progress, unit="data") as advance:
        for number, (rows, count) in enumerate(iter_batches(programs, len(x), batch_size=options.batch_size)):
            batch = GapBounds(programs, args, rows.to(x.device), seed, number)
            part = batch.values(refitted, options, tight=tight)
            parts.append({name: value[..., :count].cpu().double() for name, value in part.items()})
            done += count
            advance(done)
    with forked_random(stream_seed(seed, "gaps shape"), x.device):
        diagonal = is_diagonal_gaussian(batch.space)
    return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}, batch.num_weights, diagonal


class GapBounds:
    """Bounds of one batch of data, each from its own random stream.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        seed: seed.
        number: number of the batch.

    """

    def __init__(self, programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, seed: int, number: int) -> None:
        self.programs, self.args, self.rows, self.seed, self.number = programs, args, rows, seed, number
        self.num_weights = 0  # particles of the tighter bound
        with self.random("space"):
            self.space = UnconstrainedLatents(programs, args, rows)
        if number == 0:
            self.space.tell_of_cut_gradient()

    def random(self, word: str) -> AbstractContextManager[None]:
        """Return the context in which draws come from a stream of this batch."""
        return forked_random(stream_seed(self.seed, f"gaps {word}", self.number), self.rows.device)

    def values(self, refitted: Refit, options: GapOptions, *, tight: bool) -> dict[str, Tensor]:
        """Return the values of `all_bounds` for this batch."""
        elbo, *drawn = self.guide(options.num_particles)
        with self.random("refine"):
            starts = further_starts(self.space, start(self.space), options.num_starts)
            q, history, apart = best_of(*refine(self.space, starts, num_steps=options.num_steps))
        with self.random("refined"):
            refined_u = q.draw(options.num_particles, drawn[0].dtype)
        log_joint, log_q = self.space.log_joint(refined_u), q.log_prob(to_float64(refined_u))
        weights = {"refined": (log_joint - log_q, 1)}
        if tight:
            mixed = self.mixed(q, (refined_u, log_joint, log_q), *drawn)
            self.num_weights = len(mixed)
            weights["bound"] = mixed, len(mixed)
        result = {"history": history, "apart": apart, "ELBO": elbo.mean(0)}
        result[VARIANCE + "ELBO"] = monte_carlo_variances(elbo, 1)
        for name, (log_weights, k) in weights.items():
            result |= {name: iwae(log_weights, (k,))[0], VARIANCE + name: monte_carlo_variances(log_weights, k)}
        if refitted.values:
            with refitted.in_place():
                again, *_ = self.guide(options.num_particles)  # the same draws, so that most noise cancels
            result |= {"refitted": again.mean(0), VARIANCE + "refitted": monte_carlo_variances(again, 1)}
            result[VARIANCE + "over-fitting"] = monte_carlo_variances(again - elbo, 1)
        return result

    def guide(self, num_particles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw from the guide: the ELBO of each particle ``(K, B)``, u ``(K, B, D)``, log p(x, u) and log q(u | x)."""
        with self.random("guide"):
            particles = list(iter_particles(self.programs, self.args, self.rows, num_particles))
        u = torch.cat([self.space.flatten(block.z) for block in particles])
        log_det = self.space.log_det(u)
        return (
            torch.cat([particle_terms(self.programs, block).elbo for block in particles]),
            u,
            torch.cat([block.log_prior + block.log_likelihood for block in particles]) + log_det,
            torch.cat([block.log_guide for block in particles]) + log_det,
        )

    def mixed(
        self, q: DiagonalGaussian, drawn: tuple[Tensor, ...], u: Tensor, log_joint: Tensor, log_guide: Tensor
    ) -> Tensor:
        """Return log-weights ``(2 K, B)`` of draws of q and of the guide, alternating, under their mixture.

        *Optimally combining sampling techniques for Monte Carlo rendering (Veach, Guibas 1995)*,
        https://doi.org/10.1145/218380.218498

        Args:
            q: the refined Gaussian.
            drawn: draws u of q, log p(x, u) and log q(u).
            u: draws of the guide.
            log_joint: log p(x, u) of the guide's draws.
            log_guide: log q(u | x) of the guide's draws.

        Returns:
            The weights; if the guide has no density of a given u, the weights of q alone, ``(K, B)``.

        """
        try:
            guide_of_drawn = self.space.log_guide(drawn[0])
        except ValueError:
            return drawn[1] - drawn[2]
        first = drawn[1] - torch.logaddexp(drawn[2], guide_of_drawn)
        second = log_joint - torch.logaddexp(q.log_prob(to_float64(u)), log_guide)
        return torch.stack([first, second], 1).flatten(0, 1) + math.log(2)  # so each block holds draws of both
