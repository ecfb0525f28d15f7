"""Particles of a whole data set, batch by batch, reduced to statistics of each datum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.bounds.evidence import particle_terms
from pyrovae.bounds.multi_sample import iwae, monte_carlo_variances
from pyrovae.diagnostics import weight_diagnostics
from pyrovae.evaluation.observations import Observations, ObservedSites
from pyrovae.evaluation.resume import Journal
from pyrovae.importance import CompiledRuns, ParticleBatch, compiled_runs, iter_batches, iter_particles, on_device
from pyrovae.programs import ModelGuide, run
from pyrovae.results import ObservedData
from pyrovae.runtime import memory
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.distributed import group
from pyrovae.runtime.progress_bar import progress

VARIANCE = "variance of "  # prefix of the Monte Carlo variances' names
OBSERVED = "observed"  # name of the observed values of a batch


@dataclass(frozen=True)
class Batch:
    """Rows of arguments on the device; the first ``count`` are data, the others fill up the plate."""

    number: int
    rows: Tensor
    count: int
    args: tuple[Any, ...]


@dataclass(frozen=True)
class BatchScoring:
    """Scoring of all data by their particles.

    Batch i draws from the stream (seed, "evaluate", i). Each rank takes every n-th batch of n ranks.

    Attributes:
        programs: from `scoring_context`.
        args: all data, and what travels with them, on any device.
        device: device to compute on.
        batch_size: data whose particles are drawn together.
        ks: numbers of particles, ascending, each dividing the next.
        seed: seed of the draws.
        chunk_size: rows that the model scores at once, None for a size that suits the device.
        engine: "auto", "eager" or "captured".

    """

    programs: ModelGuide
    args: tuple[Tensor, ...]
    device: torch.device
    batch_size: int
    ks: tuple[int, ...]
    seed: int
    chunk_size: int | None
    engine: str

    def run(
        self, journal: Journal, *, on_progress: Callable[[float], object] | None, show_progress: bool
    ) -> tuple[dict[str, Tensor], ObservedData | None]:
        """Return the statistics of all data, ``(..., N)`` by name, and the values that the model observed.

        Batches in the journal are not scored again. The model runs once on each of them, for its observed values.
        """
        ranks = group()
        parts = ranks.from_first(journal.read)
        done = sum(part["ELBO"].shape[-1] for part in parts)
        observations = Observations(self.programs)
        batches = self.batches()
        for batch in itertools.islice(batches, len(parts)):
            observations.add(self.observe(batch), batch.args, batch.rows)
        memory.keep_freed()
        num_data, num_rows = len(self.args[0]), self.ks[-1] * len(self.args[0])
        compiled = compiled_runs(self.programs, self.engine, num_rows=num_rows, device=self.device)
        with progress("evaluating", num_data, show_progress=show_progress and ranks.first, unit="data") as bar:
            num_scored = 0  # data of the batches that all ranks score now

            def advance(share: float) -> None:
                bar(done + share * num_scored)
                if on_progress is not None:
                    on_progress(done + share * num_scored)

            advance(0.0)
            try:
                while turn := list(itertools.islice(batches, ranks.size)):  # one batch for each rank
                    num_scored = sum(batch.count for batch in turn)
                    part = self.score(turn[ranks.rank], compiled, advance) if ranks.rank < len(turn) else {}
                    for batch, scored in zip(turn, ranks.gather(part), strict=False):
                        observations.add(scored.pop(OBSERVED), batch.args, batch.rows)
                        parts.append(scored)
                        journal.add(scored)
                    done += num_scored
                    advance(0.0)
            finally:
                journal.write()
        return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}, observations.summary()

    def batches(self) -> Iterator[Batch]:
        """Yield the batches in order."""
        args = self.args
        if self.programs.draws_rows:
            args = tuple(argument.to(self.device) for argument in args)
        selections = iter_batches(self.programs, len(args[0]), batch_size=self.batch_size)
        for number, (selected, count) in enumerate(selections):
            batch_args, rows = on_device(self.programs, args, selected, self.device)
            yield Batch(number, rows, count, batch_args)

    def score(self, batch: Batch, compiled: CompiledRuns | None, advance: Callable[[float], None]) -> dict[str, Tensor]:
        """Return the statistics of one batch and its observed values ``(D, B)``."""

        def reported(particles: Iterator[ParticleBatch]) -> Iterator[ParticleBatch]:
            num_drawn = 0
            for block in particles:
                yield block
                num_drawn += len(block.log_prior)
                advance(num_drawn / self.ks[-1])

        with forked_random(self._stream(batch), self.device), ObservedSites(self.programs) as observed:
            particles = iter_particles(
                self.programs, batch.args, batch.rows, self.ks[-1], chunk_size=self.chunk_size, compiled=compiled
            )
            statistics = batch_statistics(self.programs, reported(particles), self.ks)
        statistics[OBSERVED] = observed.values()
        return {name: value[..., : batch.count] for name, value in statistics.items()}

    def observe(self, batch: Batch) -> Tensor:
        """Return the values ``(D, B)`` that the model observes of one batch, from the draws of `score`."""
        with forked_random(self._stream(batch), self.device), ObservedSites(self.programs) as observed:
            run(*self.programs.bind(batch.args, batch.rows))
        return observed.values()[:, : batch.count]

    def _stream(self, batch: Batch) -> int:
        return stream_seed(self.seed, "evaluate", batch.number)


def batch_statistics(programs: ModelGuide, particles: Iterator[ParticleBatch], ks: Sequence[int]) -> dict[str, Tensor]:
    """Return the bounds of each datum ``(B,)`` of one batch, their Monte Carlo variances ``(C, B)``, and diagnostics of
    its weights ``(B,)``, in float64 on the CPU.
    """
    weights, terms = [], []
    for block in particles:
        weights.append(_to_float64(block.log_prior + block.log_likelihood - block.log_guide))
        terms.append(particle_terms(programs, block).map(_to_float64))
    log_weights = torch.cat(weights)  # (K, B)
    reconstruction, kl = torch.cat([t.reconstruction for t in terms]), torch.cat([t.kl for t in terms])
    statistics = {}
    for name, value in (("ELBO", reconstruction - kl), ("reconstruction", reconstruction), ("KL", kl)):
        statistics[name] = value.mean(0)
        statistics[VARIANCE + name] = monte_carlo_variances(value, 1)
    for k, bound in zip(ks, iwae(log_weights, ks), strict=True):
        statistics[f"L_{k}"] = bound
        statistics[f"{VARIANCE}L_{k}"] = monte_carlo_variances(log_weights, k)
    return {name: value.cpu() for name, value in (statistics | weight_diagnostics(log_weights)).items()}


def _to_float64(value: Tensor) -> Tensor:
    return (value.cpu() if value.device.type == "mps" else value).double()  # MPS has no float64
