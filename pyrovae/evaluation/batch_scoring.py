"""Particles of a whole data set, batch by batch, reduced to statistics of each datum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.evidence import particle_terms
from pyrovae.bounds.multi_sample import VARIANCE, iwae, monte_carlo_variances
from pyrovae.compile import Engine
from pyrovae.data.loader import Loader
from pyrovae.diagnostics import weight_diagnostics
from pyrovae.evaluation.observations import Observations, observed_values
from pyrovae.evaluation.resume import Journal
from pyrovae.importance import ParticleBatch, compiled_runs, iter_batches, iter_particles, on_device
from pyrovae.programs import ModelGuide
from pyrovae.results import ObservedData
from pyrovae.results.evaluation_record import KL_OF
from pyrovae.runtime import memory
from pyrovae.runtime.annotations import CheckedFields, PositiveInt
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.distributed import group
from pyrovae.runtime.progress_bar import progress

NUM_EXAMPLES = 3  # data of the runs that inspect the programs
OBSERVED, WEIGHTS = "observed", "log-weights"  # names of the observed values and of the weights of a batch


@dataclass(frozen=True)
class EvaluationOptions(CheckedFields):
    """How an evaluation is computed.

    Attributes:
        num_data: number of data to evaluate, the first ones; None for all.
        batch_size: data whose particles are drawn together; None for a size by the largest K and the device.
        chunk_size: rows that the model scores at once, one row for each particle of each datum; None for a size by the
            elements of a datum and the device, halved on CUDA when memory ends.
        device: device to compute on, to which the modules are moved; None for the device of the modules.
        engine: "captured" compiles the scoring of particles once, on a CPU with a C++ compiler; "eager" runs the model
            for each chunk, to the same numbers but for rounding; "auto" chooses by the number of particles.
        modules: modules of the programs that cannot be found from the programs.
        journal: progress file of finished batches and checks. After an interruption the same call resumes from it, to
            the same numbers, and removes it at the end. A `Journal` is removed by the caller.
        on_progress: function called with the number of evaluated data at the start and after each block of particles,
            on each rank, except while checks run. It must not draw from torch's default random streams.
        unnormalized: score values outside the support of a distribution with ``validate_args=False``. The results are
            not log-probabilities, and every table says so.
        show_progress: show a progress bar.

    Raises:
        ValueError: if a size is not an integer >= 1, or the engine is unknown.

    """

    num_data: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    chunk_size: PositiveInt | None = None
    device: str | None = None
    engine: Engine = "auto"
    modules: Iterable[nn.Module] = ()
    journal: str | Path | Journal | None = None
    on_progress: Callable[[float], object] | None = None
    unnormalized: bool = False
    show_progress: bool = True


@dataclass(frozen=True)
class Inputs:
    """Data and settings of an evaluation.

    Attributes:
        loader: the data.
        args: the data and further tensors along the plate, noise drawn once, where they are stored.
        modules: modules of model and guide, on the device.
        device: device to compute on.
        batch_size: data whose particles are drawn together.
        ks: numbers of particles.
        seed: seed of the draws.
        data_hash: fingerprint of the arguments.
        settings: facts of the computation that the record keeps.

    """

    loader: Loader
    args: tuple[Tensor, ...]
    modules: Sequence[nn.Module]
    device: torch.device
    batch_size: int
    ks: tuple[int, ...]
    seed: int
    data_hash: str
    settings: dict[str, Any]

    def examples(self) -> tuple[Tensor, ...]:
        """Return the first rows of the arguments on the device."""
        return tuple(argument[:NUM_EXAMPLES].to(self.device) for argument in self.args)


def score_data(
    programs: ModelGuide, inputs: Inputs, journal: Journal, options: EvaluationOptions
) -> tuple[dict[str, Tensor], ObservedData | None]:
    """Score all data by their particles.

    Batch i draws from the stream (seed, "evaluate", i). Each rank takes every n-th batch of n ranks. Batches in the
    journal are not scored again: the model runs once on each of them, for its observed values.

    Returns:
        The statistics of all data, ``(..., N)`` by name, and the values that the model observed.

    """
    ks, seed, device = inputs.ks, inputs.seed, inputs.device
    num_data, ranks = len(inputs.args[0]), group()
    journal.parts = ranks.from_first(lambda: journal.parts)
    done = sum(part["ELBO"].shape[-1] for part in journal.parts)
    batches = (  # number, arguments on the device, and rows of these
        (number, *on_device(inputs.args, rows, device))
        for number, rows in enumerate(iter_batches(programs, num_data, batch_size=inputs.batch_size))
    )
    observations = Observations(programs)
    for number, batch_args, rows in itertools.islice(batches, len(journal.parts)):
        _, trace = observations.run(batch_args, rows, stream_seed(seed, "evaluate", number))
        observations.add(observed_values(programs, trace.nodes), batch_args, rows)
    memory.keep_freed()
    compiled = compiled_runs(programs, options.engine, num_rows=ks[-1] * num_data, device=device)
    with progress("evaluating", num_data, show_progress=options.show_progress and ranks.first, unit="data") as bar:
        num_scored = 0  # data of the batches that all ranks score now

        def advance(share: float) -> None:
            bar(done + share * num_scored)
            if options.on_progress is not None:
                options.on_progress(done + share * num_scored)

        def score(number: int, batch_args: tuple[Any, ...], rows: Tensor) -> dict[str, Tensor]:
            with forked_random(stream_seed(seed, "evaluate", number), device):
                particles = iter_particles(
                    programs, batch_args, rows, ks[-1], chunk_size=options.chunk_size, compiled=compiled
                )
                return batch_statistics(programs, particles, ks, advance)

        advance(0.0)
        try:
            while turn := list(itertools.islice(batches, ranks.size)):  # one batch for each rank
                num_scored = sum(len(rows) for *_, rows in turn)
                part = score(*turn[ranks.rank]) if ranks.rank < len(turn) else {}
                for (_, batch_args, rows), scored in zip(turn, ranks.gather(part), strict=False):
                    observations.add(scored.pop(OBSERVED), batch_args, rows)
                    journal.add(scored)
                done += num_scored
                advance(0.0)
        finally:
            journal.write()
    parts = journal.parts
    return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}, observations.summary()


def batch_statistics(
    programs: ModelGuide, particles: Iterator[ParticleBatch], ks: Sequence[int], advance: Callable[[float], object]
) -> dict[str, Tensor]:
    """Return the bounds of each datum ``(B,)`` of one batch, their Monte Carlo variances ``(C, B)``, and diagnostics of
    its weights ``(B,)``, in float64 on the CPU, and its observed values ``(D, B)``.

    Programs with several latent sites have the KL of each site too. The share of the particles is reported after each
    block of them.
    """
    blocks: list[dict[str, Tensor]] = []  # (K', B) by name
    observed, num_drawn = torch.empty(0), 0
    for block in particles:
        if not blocks:
            observed = observed_values(programs, block.observed_sites)
        terms = particle_terms(programs, block)
        values = {KL_OF + name: value for name, value in terms.kl_of.items() if len(terms.kl_of) > 1}
        values |= {"ELBO": terms.elbo, "reconstruction": terms.reconstruction, "KL": terms.kl}
        values[WEIGHTS] = block.log_weights
        if block.log_weights.device.type == "mps":  # which has no float64
            values = {name: value.cpu() for name, value in values.items()}
        blocks.append({name: value.double() for name, value in values.items()})
        num_drawn += len(block.log_prior)
        advance(num_drawn / ks[-1])
    values = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}  # (K, B)
    log_weights = values.pop(WEIGHTS)
    statistics = {OBSERVED: observed}
    for name, value in values.items():
        statistics[name] = value.mean(0)
        statistics[VARIANCE + name] = monte_carlo_variances(value, 1)
    for k, bound in zip(ks, iwae(log_weights, ks), strict=True):
        statistics[f"L_{k}"] = bound
        statistics[f"{VARIANCE}L_{k}"] = monte_carlo_variances(log_weights, k)
    return {name: value.cpu() for name, value in (statistics | weight_diagnostics(log_weights)).items()}
