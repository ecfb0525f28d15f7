"""Evaluation of any Pyro model/guide pair: its ELBO beside its IWAE bounds, with standard errors."""

from __future__ import annotations

import datetime
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.multi_sample import check_ladder
from pyrovae.data import Data, Split, fingerprint, transforms
from pyrovae.data.loader import Loader, Source
from pyrovae.diagnostics import assess_with_checks, summarize_weights
from pyrovae.evaluation.batch_statistics import VARIANCE, batch_statistics
from pyrovae.evaluation.checks import Checks, run_checks
from pyrovae.evaluation.fingerprints import fingerprint_observed
from pyrovae.evaluation.resume import Journal
from pyrovae.importance import (
    ParticleBatch,
    chunk_sizes,
    compiled_runs,
    find_low_precision,
    iter_batches,
    iter_particles,
    on_device,
    score_one_particle,
    scoring_context,
)
from pyrovae.programs import ModelGuide, Program, Unnormalized, find_modules, warn_of_links
from pyrovae.results import Estimate, Evaluation, ObservedData, bits_per_dimension, mean_and_error
from pyrovae.results.estimates import require_possible
from pyrovae.results.observed_data import DRAWN, MASKED, WHOLE
from pyrovae.runtime import memory
from pyrovae.runtime.arguments import require_integer
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.distributed import group
from pyrovae.runtime.progress_bar import progress
from pyrovae.training.checkpoint import versions
from pyrovae.training.config import check_engine, choose_device
from pyrovae.training.state import snapshot
from pyrovae.vae import require_form

logger = logging.getLogger("pyrovae")

MOST_DATA = 256  # of one batch


def evaluate(
    model: Program,
    guide: Program,
    data: Data | Source,
    *,
    ks: Sequence[int] = (1, 5, 50, 500, 5000),
    checks: Checks | None = None,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
    device: str | None = None,
    engine: str = "auto",
    modules: Iterable[nn.Module] = (),
    journal: str | Path | Journal | None = None,
    on_progress: Callable[[float], object] | None = None,
    unnormalized: bool = False,
    show_progress: bool = True,
) -> Evaluation:
    """Estimate the ELBO and the ladder of IWAE bounds L_K on log p(x), from the same draws.

    Values of weights and buffers, modes, switches and random streams are afterwards as before. Batch i draws from the
    stream (seed, i), so that a run in other chunks sees the same draws. Memory does not grow with the number of data,
    and only by the log-weights of one batch with K. Processes that initialized ``torch.distributed`` take turns at the
    batches, and all return the same; the first keeps the journal.

    Args:
        model: a Pyro program called with data; see `pyrovae.programs` for the contract.
        guide: another.
        data: a data set, whose test part is evaluated; or one split, the data ``(N, ...)`` themselves, or a tuple of
            them and of what travels with them along the plate.
        ks: numbers of particles K, each dividing the next.
        checks: what is found out beside the bounds, such as AIS, and on how many data; nothing if None.
        batch_size: data whose particles are drawn together; chosen by the largest K and the kind of device if None.
        chunk_size: rows, a datum with K particles counting K, that the model scores at once; if None chosen by the size
            of a datum in the model and the kind of device, and on CUDA fewer where the memory ends.
        seed: of the draws.
        device: to compute on, to which the modules are moved; where they are if None.
        engine: "captured" compiles the scoring of particles once, on a CPU with a C++ compiler; "eager" runs the model
            anew each time, to the same numbers but for rounding; "auto" decides by their number.
        modules: those used by the programs that cannot be found from them.
        journal: file that keeps the finished batches and checks of an evaluation that is interrupted; the same call
            goes on after them, to the same numbers, and removes it at the end. A `Journal` is removed by the caller,
            when the result is in a safe place.
        on_progress: told how many data are done, at the start and after each block of particles, when it is a fraction;
            in each process, not while checks run. It must not draw from torch's default streams.
        unnormalized: whether values outside the support of a distribution with ``validate_args=False`` are scored. The
            results are then not log-probabilities, and every table says so.
        show_progress: whether progress is shown.

    Returns:
        Estimates in nats per datum, larger being better, with standard errors and the values per datum.

    Raises:
        ValueError: if the rungs do not divide (the text names the nearest that do), the pair breaks its contract, data
            lie outside the support of the likelihood, or the log-weights do not fit into memory.

    Example:
        >>> evaluation = evaluate(vae.model, vae.guide, data.test, ks=(1, 10, 100))
        >>> print(evaluation)

    """
    ks = check_ladder(ks)
    if checks is not None and not isinstance(checks, Checks):
        raise TypeError(f"checks is what pyrovae.Checks() returns, or None, but received {checks!r}")
    check_engine(engine)
    for what, value in (("batch_size", batch_size), ("chunk_size", chunk_size)):
        if value is not None:
            require_integer(value, name=what)
    source = data.test if isinstance(data, Data) else data
    rows = Loader(source)
    require_form(model, source)
    found = (*modules, *find_modules(model, guide))
    where = _device(found, rows) if device is None else choose_device(device)
    for module in found if device is not None else ():
        module.to(where)
    batch_size = batch_size or max(1, min(MOST_DATA, chunk_sizes(where).particles // max(ks)))
    memory.require(
        8.0 * 8 * max(ks) * min(batch_size, len(rows)),
        what=f"the log-weights of {min(batch_size, len(rows))} data with K = {max(ks)}",
        hint="choose a smaller K or batch_size",
        device=where,
    )
    args = rows.fixed()
    example_inputs = tuple(argument[:3].to(where) for argument in args)
    settings = {"batch_size": batch_size, "device": str(where), "dtype": str(args[0].dtype).removeprefix("torch.")}
    data_hash = rows.hash()
    name = source.name if isinstance(source, Split) else "tensors"
    weights = weights_hash(model, guide, modules)
    model = Unnormalized()(model) if unnormalized else model
    with (
        scoring_context(model, guide, example_inputs, modules=found, all_data=lambda: _moved(args, where)) as programs,
        torch.no_grad(),
    ):
        if coarse := find_low_precision(found, example_inputs):
            logger.warning("%s; evaluate model.float(), on data in float32", coarse)
        warn_of_links(programs)
        if programs.nan:
            logger.warning("%s; data whose estimates are not finite are counted, and no mean hides them", programs.nan)
        probe = _probe(programs, _moved(args, where) if programs.draws_rows else example_inputs)
        observed = fingerprint_observed(programs, _batches(programs, args, where, batch_size))
        key = (data_hash, weights, probe, observed, ks, seed, chunk_size, engine, settings, versions())
        finished = journal if isinstance(journal, Journal) else Journal(journal)
        finished.start(repr(key))
        per_datum = _walked(
            programs,
            args,
            where,
            finished,
            ks=ks,
            batch_size=batch_size,
            chunk_size=chunk_size,
            engine=engine,
            seed=seed,
            on_progress=on_progress,
            show_progress=show_progress,
        )
        methods, measure, draws_rows, why = (
            dict(programs.kl),
            programs.base_measure,
            programs.draws_rows,
            programs.unnormalized,
        )
    ladder = tuple(_estimate("IWAE", k, per_datum) for k in ks)
    elbo = _estimate("ELBO", max(ks), per_datum)
    if measure == "counting" and why is None:
        require_possible(elbo, *ladder)
    checked = None
    if checks is not None:
        checked = run_checks(
            model,
            guide,
            _moved(args, where),
            checks,
            name=name,
            tightest=ladder[-1],
            per_datum=per_datum,
            variances=per_datum[f"{VARIANCE}L_{ks[-1]}"],
            draws_rows=draws_rows,
            finished=finished,
            seed=seed,
            modules=found,
            show_progress=show_progress,
        )
    evaluation = Evaluation(
        elbo=elbo,
        reconstruction=_estimate("reconstruction", max(ks), per_datum),
        kl=_estimate("KL", max(ks), per_datum),
        iwae=ladder,
        kl_methods=methods,
        gains={f"L_{k}": mean_and_error(per_datum[f"L_{k}"] - per_datum["ELBO"]) for k in ks},
        num_data=len(rows),
        data=name,
        data_hash=data_hash,
        data_transform=source.transform.describe() if isinstance(source, Split) else None,
        base_measure=measure,
        log_abs_det_jacobian=_log_det(rows, observed) if measure == "Lebesgue" else None,
        bits_per_dimension=None if why else _bits(rows, measure, observed, ladder[-1].value),
        unnormalized=why,
        seed=seed,
        settings={**settings, "weights": weights, "checks": None if checks is None else asdict(checks)},
        versions=versions(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        stored_hash=fingerprint(source.stored) if isinstance(source, Split) else None,
        num_covariates=sum(observed.given.values()) if observed else sum(a[0].numel() for a in args[1:]),
        weights=assess_with_checks(summarize_weights(per_datum, ks=ks), checked),
        checked=checked,
        observed=observed,
        per_datum={label: value for label, value in per_datum.items() if not label.startswith(VARIANCE)},
    )
    if finished is not journal:
        finished.remove()
    return evaluation


def weights_hash(model: Program, guide: Program, modules: Iterable[nn.Module] = ()) -> str:
    """Return the fingerprint of all parameters and buffers of the modules of a pair."""
    return fingerprint(*snapshot((*modules, *find_modules(model, guide)), ()).values())


def _probe(programs: ModelGuide, args: tuple[Any, ...]) -> str:
    """Return the fingerprint of what a pair computes on a few rows: programs may differ where their weights do not."""
    device = args[0].device
    with forked_random(0, device):
        block = score_one_particle(
            programs, args, torch.arange(programs.num_rows, device=device) % len(args[0]), checked=False
        )
    return fingerprint(block.log_prior, block.log_likelihood, block.log_guide)


def _walked(
    programs: ModelGuide,
    args: tuple[Tensor, ...],
    device: torch.device,
    finished: Journal,
    *,
    ks: tuple[int, ...],
    batch_size: int,
    chunk_size: int | None,
    engine: str,
    seed: int,
    on_progress: Callable[[float], object] | None,
    show_progress: bool,
) -> dict[str, Tensor]:
    """Return the batch statistics of all data, ``(..., N)`` by name; finished batches are read from the journal."""
    processes = group()
    parts = processes.from_first(finished.read)
    done = sum(part["ELBO"].shape[-1] for part in parts)
    memory.keep_freed()
    compiled = compiled_runs(programs, engine, num_rows=max(ks) * len(args[0]), device=device)
    waiting = itertools.islice(enumerate(_batches(programs, args, device, batch_size)), len(parts), None)
    with progress("evaluating", len(args[0]), show_progress=show_progress and processes.first, unit="data") as bar:

        def advance(done: float) -> None:
            bar(done)
            if on_progress is not None:
                on_progress(done)

        advance(done)
        try:
            while now := list(itertools.islice(waiting, processes.size)):  # each process takes one of them
                part: dict[str, Tensor] = {}
                data = sum(count for _, (_, count, _) in now)
                for number, (rows, count, of_batch) in now[processes.rank : processes.rank + 1]:
                    with forked_random(stream_seed(seed, "evaluate", number), device):
                        found = iter_particles(
                            programs, of_batch, rows, max(ks), chunk_size=chunk_size, compiled=compiled
                        )
                        told = _told(found, max(ks), advance, done, data)
                        part = {name: value[..., :count] for name, value in batch_statistics(told, ks).items()}
                for each in processes.gather(part)[: len(now)]:
                    parts.append(each)
                    finished.add(each)
                    done += each["ELBO"].shape[-1]
                advance(done)
        finally:
            finished.write()
    return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}


def _told(
    found: Iterator[ParticleBatch], num_particles: int, advance: Callable[[float], None], done: int, num_data: int
) -> Iterator[ParticleBatch]:
    """Yield the blocks of some data, and tell how far these are, with so many done before."""
    drawn = 0
    for block in found:
        yield block
        drawn += len(block.log_prior)
        advance(done + num_data * drawn / num_particles)


def _batches(
    programs: ModelGuide, args: tuple[Tensor, ...], device: torch.device, batch_size: int
) -> Iterator[tuple[Tensor, int, tuple[Any, ...]]]:
    """Yield the rows of each batch, how many of them count, and the arguments that they are rows of, on the device."""
    if programs.draws_rows:
        args = _moved(args, device)
    for selected, count in iter_batches(programs, len(args[0]), batch_size=batch_size):
        of_batch, rows = on_device(programs, args, selected, device)
        yield rows, count, of_batch


def _moved(args: tuple[Any, ...], device: torch.device) -> tuple[Any, ...]:
    return tuple(argument.to(device) for argument in args)


def _estimate(name: str, k: int, per_datum: dict[str, Tensor]) -> Estimate:
    label = f"L_{k}" if name == "IWAE" else name
    return Estimate.over_data(name, k, per_datum[label], per_datum[VARIANCE + label])


def _device(modules: Iterable[nn.Module], rows: Loader) -> torch.device:
    """Return where the modules are, or the data if there are no modules with parameters."""
    for module in modules:
        for parameter in module.parameters():
            return parameter.device
    return rows.device


def _log_det(rows: Loader, observed: ObservedData | None) -> float | None:
    """Return log |dx/du| of the map from stored values u to those that were scored, nats per datum."""
    split = rows.source
    if not isinstance(split, Split) or observed is None or observed.what not in (WHOLE, MASKED):
        return None
    whole = split.transform.log_abs_det_jacobian(split.x_shape, levels=split.levels)
    if whole is None or observed.what == WHOLE:
        return whole
    alike = isinstance(split.transform, transforms.Dequantization)  # elements, each of which adds as much
    return whole * observed.num_elements / math.prod(split.x_shape) if alike else None


def _bits(rows: Loader, measure: str | None, observed: ObservedData | None, nats: float | None) -> float | None:
    """Return bits per dimension where log p(x) is, or bounds, the log-probability of a discrete datum."""
    dequantized = isinstance(rows.source, Split) and isinstance(rows.source.transform, transforms.Dequantization)
    log_det = 0.0 if measure == "counting" else _log_det(rows, observed) if dequantized else None
    if nats is None or log_det is None or observed is None or observed.what == DRAWN or not observed.num_elements:
        return None
    several = len(observed.sites) > 1 and observed.what not in (WHOLE, MASKED)
    if not observed.only_data or several:  # labels are not dimensions of x
        return None
    return bits_per_dimension(nats, num_dimensions=observed.num_elements, log_abs_det_jacobian=log_det)
