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
from pyrovae.importance import ParticleBatch, compiled_runs, iter_batches, iter_particles, on_device
from pyrovae.programs import ModelGuide, run
from pyrovae.results import ObservedData
from pyrovae.runtime import memory
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.distributed import group
from pyrovae.runtime.progress_bar import progress

VARIANCE = "variance of "  # prefix of the Monte Carlo variances' names
OBSERVED = "observed"  # name of the observed values of a batch


@dataclass(frozen=True)
class BatchScoring:
    """The scoring of all data by their particles.

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
        batches = enumerate(self.batches())
        for number, batch in itertools.islice(batches, len(parts)):
            observations.add(self.observe(number, batch), batch[2], batch[0])
        memory.keep_freed()
        compiled = compiled_runs(
            self.programs, self.engine, num_rows=self.ks[-1] * len(self.args[0]), device=self.device
        )
        main_shows = show_progress and ranks.first
        with progress("evaluating", len(self.args[0]), show_progress=main_shows, unit="data") as bar:

            def advance(num_done: float) -> None:
                bar(num_done)
                if on_progress is not None:
                    on_progress(num_done)

            advance(done)
            try:
                while turn := list(itertools.islice(batches, ranks.size)):  # one batch for each rank
                    part: dict[str, Tensor] = {}
                    num_data = sum(count for _, (_, count, _) in turn)
                    for number, batch in turn[ranks.rank : ranks.rank + 1]:

                        def advance_within(share: float, done: int = done, num_data: int = num_data) -> None:
                            advance(done + num_data * share)

                        part = self.score(number, batch, compiled, advance_within)
                    for (_, (rows, _, args)), scored in zip(turn, ranks.gather(part), strict=False):
                        observations.add(scored.pop(OBSERVED), args, rows)
                        parts.append(scored)
                        journal.add(scored)
                        done += scored["ELBO"].shape[-1]
                    advance(done)
            finally:
                journal.write()
        return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}, observations.summary()

    def batches(self) -> Iterator[tuple[Tensor, int, tuple[Any, ...]]]:
        """Yield the rows of each batch, how many of them count, and the arguments that they are rows of."""
        args = self.args
        if self.programs.draws_rows:
            args = tuple(argument.to(self.device) for argument in args)
        for selected, count in iter_batches(self.programs, len(args[0]), batch_size=self.batch_size):
            batch_args, rows = on_device(self.programs, args, selected, self.device)
            yield rows, count, batch_args

    def score(self, number: int, batch: Any, compiled: Any, advance: Callable[[float], None]) -> dict[str, Tensor]:
        """Return the statistics of one batch and its observed values ``(D, B)``."""
        rows, count, args = batch

        def watched(particles: Iterator[ParticleBatch]) -> Iterator[ParticleBatch]:
            num_drawn = 0
            for block in particles:
                yield block
                num_drawn += len(block.log_prior)
                advance(num_drawn / self.ks[-1])

        with forked_random(self._stream(number), self.device), ObservedSites(self.programs) as observed:
            particles = iter_particles(
                self.programs, args, rows, self.ks[-1], chunk_size=self.chunk_size, compiled=compiled
            )
            statistics = batch_statistics(self.programs, watched(particles), self.ks)
        statistics[OBSERVED] = observed.values()
        return {name: value[..., :count] for name, value in statistics.items()}

    def observe(self, number: int, batch: Any) -> Tensor:
        """Return the values ``(D, B)`` that the model observes of one batch, from the draws of `score`."""
        rows, count, args = batch
        with forked_random(self._stream(number), self.device), ObservedSites(self.programs) as observed:
            run(*self.programs.bind(args, rows))
        return observed.values()[:, :count]

    def _stream(self, number: int) -> int:
        return stream_seed(self.seed, "evaluate", number)


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
