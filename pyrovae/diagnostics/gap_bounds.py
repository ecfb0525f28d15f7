"""The bounds between which the gaps lie, for one batch of data."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from pyrovae.bounds.multi_sample import iwae, monte_carlo_variances
from pyrovae.diagnostics.refine import DiagonalGaussian, best_of, further_starts, refine, start
from pyrovae.diagnostics.refit import Refit
from pyrovae.importance import UnconstrainedLatents, iter_particles
from pyrovae.programs import ModelGuide
from pyrovae.programs.layout import to_float64
from pyrovae.runtime.context import forked_random, stream_seed

VARIANCE = "variance of "


class GapBounds:
    """The ELBO of the guide, that of a refined Gaussian, and a tighter bound, of some rows of the data.

    Args:
        programs: from `scoring_context`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.
        stream: a seed and the number of the batch; each bound draws from a stream of its own.

    """

    def __init__(self, programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, stream: tuple[int, int]) -> None:
        self.programs, self.args, self.rows, self.stream = programs, args, rows, stream
        self.num_weights = 0  # in the bound that is estimated where none is given
        with self.random("space"):
            self.space = UnconstrainedLatents(programs, args, rows)

    def random(self, word: str) -> AbstractContextManager[None]:
        """Return the context in which draws come from a stream of this batch."""
        return forked_random(stream_seed(self.stream[0], f"gaps {word}", self.stream[1]), self.rows.device)

    def values(
        self, new: Refit, *, num_particles: int, num_steps: int, num_starts: int, tight: bool
    ) -> dict[str, Tensor]:
        """Return the bounds ``(B,)``, their Monte Carlo variances ``(C, B)``, and how the refinement went: its history
        ``(num_steps, B)`` and whether it ended apart from where the guide leads ``(B,)``.

        Args:
            new: parameters for the guide.
            num_particles: K, draws of each.
            num_steps: of the refinement.
            num_starts: of the refinement, for each datum.
            tight: whether the tighter bound is wanted.

        """
        elbo, *drawn = self.guide(num_particles)
        q, history, apart = self.refined(num_steps, num_starts)
        with self.random("refined"):
            u = q.draw(num_particles, drawn[0].dtype)
        log_joint, log_q = self.space.log_joint(u), q.log_prob(to_float64(u))
        weights = {"refined": log_joint - log_q}
        if tight:
            weights["bound"] = self.mixed(q, (u, log_joint, log_q), *drawn)
            self.num_weights = len(weights["bound"])
        result = {"ELBO": elbo.mean(0), VARIANCE + "ELBO": monte_carlo_variances(elbo, 1)}
        result |= {"history": history, "apart": apart}
        for name, k in zip(weights, (1, self.num_weights), strict=False):
            result |= {name: iwae(weights[name], (k,))[0], VARIANCE + name: monte_carlo_variances(weights[name], k)}
        if new.values:
            with new.in_place():
                again, *_ = self.guide(num_particles)  # the same stream, so that most of the noise cancels
            result |= {"refitted": again.mean(0), VARIANCE + "refitted": monte_carlo_variances(again, 1)}
            result[VARIANCE + "over-fitting"] = monte_carlo_variances(again - elbo, 1)
        return result

    def refined(self, num_steps: int, num_starts: int) -> tuple[DiagonalGaussian, Tensor, Tensor]:
        """Return the best Gaussian of each datum of several starts, its history, and where it lies apart."""
        with self.random("refine"):
            starts = further_starts(self.space, start(self.space), num_starts)
            return best_of(*refine(self.space, starts, num_steps=num_steps))

    def guide(self, num_particles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw from the guide: what the ELBO is the mean of, u ``(K, B, D)``, log p(x, u) and log q(u | x)."""
        with self.random("guide"):
            found = list(iter_particles(self.programs, self.args, self.rows, num_particles))
        u = torch.cat([self.space.flatten(block.z) for block in found])
        log_det = self.space.log_det(u)
        return (
            torch.cat([block.log_likelihood - sum(block.kl.values()) for block in found]),
            u,
            torch.cat([block.log_prior + block.log_likelihood for block in found]) + log_det,
            torch.cat([block.log_guide for block in found]) + log_det,
        )

    def mixed(
        self, q: DiagonalGaussian, ours: tuple[Tensor, ...], u: Tensor, log_joint: Tensor, log_guide: Tensor
    ) -> Tensor:
        """Return log-weights ``(2 K, B)`` of draws of q and of the guide under their mixture, in turns from either.

        *Optimally combining sampling techniques for Monte Carlo rendering (Veach, Guibas 1995)*,
        https://doi.org/10.1145/218380.218498

        Args:
            q: the refined Gaussian.
            ours: its draws u, log p(x, u) and log q(u).
            u: draws of the guide.
            log_joint: log p(x, u) of these.
            log_guide: their log q(u | x).

        Returns:
            Those of q alone, ``(K, B)``, where the guide has no density of a given u.

        """
        try:
            guide_of_ours = self.space.log_guide(ours[0])
        except ValueError:
            return ours[1] - ours[2]
        first = ours[1] - torch.logaddexp(ours[2], guide_of_ours)
        second = log_joint - torch.logaddexp(q.log_prob(to_float64(u)), log_guide)
        return torch.stack([first, second], 1).flatten(0, 1) + math.log(2)  # blocks of it are alike
