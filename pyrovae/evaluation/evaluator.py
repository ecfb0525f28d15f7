"""Evaluation of any Pyro model and guide: the ELBO beside the IWAE bounds, with standard errors."""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.multi_sample import check_ladder
from pyrovae.data import Data, Split, fingerprint, transforms
from pyrovae.data.loader import Loader, Source
from pyrovae.diagnostics import assess_with_checks, summarize_weights
from pyrovae.evaluation.batch_scoring import VARIANCE, BatchScoring
from pyrovae.evaluation.checks import Checks, run_checks
from pyrovae.evaluation.resume import Journal
from pyrovae.importance import chunk_sizes, find_low_precision, score_one_particle, scoring_context
from pyrovae.programs import ModelGuide, Program, Unnormalized, find_modules, warn_of_links
from pyrovae.results import CheckResults, Estimate, Evaluation, ObservedData, bits_per_dimension, mean_and_error
from pyrovae.results.estimates import require_possible
from pyrovae.results.observed_data import DRAWN, MASKED, WHOLE
from pyrovae.runtime import memory
from pyrovae.runtime.arguments import merge_options, require_integer
from pyrovae.runtime.context import forked_random
from pyrovae.training.checkpoint import versions
from pyrovae.training.config import check_engine, choose_device
from pyrovae.training.state import snapshot
from pyrovae.vae import require_form

logger = logging.getLogger("pyrovae")

MAX_BATCH_SIZE = 256  # data in one batch, if the size is chosen here
NUM_EXAMPLES = 3  # data of the runs that inspect the programs


@dataclass(frozen=True)
class EvaluationOptions:
    """How an evaluation is computed.

    Attributes:
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

    batch_size: int | None = None
    chunk_size: int | None = None
    device: str | None = None
    engine: str = "auto"
    modules: Iterable[nn.Module] = ()
    journal: str | Path | Journal | None = None
    on_progress: Callable[[float], object] | None = None
    unnormalized: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        check_engine(self.engine)
        for name in ("batch_size", "chunk_size"):
            if getattr(self, name) is not None:
                require_integer(getattr(self, name), name=name)


def evaluate(
    model: Program,
    guide: Program,
    data: Data | Source,
    *,
    ks: Sequence[int] = (1, 5, 50, 500, 5000),
    checks: Checks | None = None,
    seed: int = 0,
    options: EvaluationOptions | None = None,
    **keywords: Any,
) -> Evaluation:
    """Estimate the ELBO and the ladder of IWAE bounds L_K on log p(x), from the same draws.

    Weights, buffers, module modes, switches and random streams are restored afterwards. Batch i draws from the stream
    (seed, i), so that the draws do not depend on the size of chunks. Memory does not grow with the number of data, and
    only by the log-weights of one batch with K. Ranks that initialized ``torch.distributed`` share the batches, and all
    return the same evaluation; the main process keeps the journal.

    Args:
        model: a Pyro program called with data; see `pyrovae.programs` for the contract.
        guide: another.
        data: a data set, whose test part is evaluated; or one split, the data ``(N, ...)`` themselves, or a tuple of
            the data and of tensors that travel with them along the plate.
        ks: numbers of particles K, each dividing the next.
        checks: diagnostics to run beside the bounds, such as AIS, and their numbers of data; None for none.
        seed: seed of the draws.
        options: batch size, device, journal and the other fields of `EvaluationOptions`.
        keywords: fields of `EvaluationOptions`, which override ``options``.

    Returns:
        Estimates in nats per datum, larger being better, with standard errors and the values per datum.

    Raises:
        ValueError: if the rungs do not divide (the text names the nearest that do), the programs break their contract,
            data lie outside the support of the likelihood, or the log-weights do not fit into memory.
        TypeError: if a keyword is not an option.

    Example:
        >>> evaluation = evaluate(vae.model, vae.guide, data.test, ks=(1, 10, 100), batch_size=50)
        >>> print(evaluation)

    """
    options = merge_options(options, EvaluationOptions, keywords, function="evaluate")
    ks = check_ladder(ks)
    if checks is not None and not isinstance(checks, Checks):
        raise TypeError(f"checks must be a pyrovae.Checks or None, but received {checks!r}")
    task = _prepare(model, guide, data, ks, checks, seed, options)
    journal = options.journal if isinstance(options.journal, Journal) else Journal(options.journal)
    programs, per_datum, observed = _score(task, journal)
    estimates = _estimates(programs, per_datum, ks)
    results = None
    if checks is not None:
        results = run_checks(
            task.model,
            guide,
            _to_device(task.args, task.device),
            checks,
            name=task.name,
            tightest=estimates[f"L_{ks[-1]}"],
            per_datum=per_datum,
            draws_rows=programs.draws_rows,
            journal=journal,
            seed=seed,
            modules=task.modules,
            show_progress=options.show_progress,
        )
    evaluation = _record(task, programs, per_datum, observed, estimates, results)
    if journal is not options.journal:
        journal.remove()
    return evaluation


@dataclass(frozen=True)
class _Task:
    """An evaluation whose arguments are checked and whose open options are chosen."""

    model: Program
    guide: Program
    source: Source
    args: tuple[Tensor, ...]
    data_hash: str
    modules: tuple[nn.Module, ...]
    device: torch.device
    ks: tuple[int, ...]
    seed: int
    options: EvaluationOptions
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.source.name if isinstance(self.source, Split) else "tensors"


def _prepare(
    model: Program,
    guide: Program,
    data: Data | Source,
    ks: tuple[int, ...],
    checks: Checks | None,
    seed: int,
    options: EvaluationOptions,
) -> _Task:
    """Check the data, and choose device and batch size."""
    source = data.test if isinstance(data, Data) else data
    loader = Loader(source)
    require_form(model, source)
    modules = (*options.modules, *find_modules(model, guide))
    device = _choose_device(options.device, modules, loader)
    batch_size = _choose_batch_size(options.batch_size, ks, len(loader), device)
    args = loader.fixed()
    settings = {
        "batch_size": batch_size,
        "device": str(device),
        "dtype": str(args[0].dtype).removeprefix("torch."),
        "weights": weights_hash(model, guide, options.modules),
        "checks": None if checks is None else asdict(checks),
    }
    model = Unnormalized()(model) if options.unnormalized else model
    return _Task(model, guide, source, args, loader.hash(), modules, device, ks, seed, options, settings)


def _score(task: _Task, journal: Journal) -> tuple[ModelGuide, dict[str, Tensor], ObservedData | None]:
    """Return the inspected programs, the statistics of all data by name, and the values that the model observed."""
    options = task.options
    examples = tuple(argument[:NUM_EXAMPLES].to(task.device) for argument in task.args)
    context = scoring_context(
        task.model,
        task.guide,
        examples,
        modules=task.modules,
        all_data=lambda: _to_device(task.args, task.device),
    )
    with context as programs, torch.no_grad():
        _warn(programs, task.modules, examples)
        scoring = BatchScoring(
            programs,
            task.args,
            device=task.device,
            batch_size=task.settings["batch_size"],
            ks=task.ks,
            seed=task.seed,
            chunk_size=options.chunk_size,
            engine=options.engine,
        )
        journal.start(_journal_key(task, programs, examples) if journal.path is not None else "")
        per_datum, observed = scoring.run(journal, on_progress=options.on_progress, show_progress=options.show_progress)
    return programs, per_datum, observed


def _estimates(programs: ModelGuide, per_datum: dict[str, Tensor], ks: tuple[int, ...]) -> dict[str, Estimate]:
    """Return the means over the data, by label.

    Raises:
        ValueError: if a bound on a log-probability of discrete data is above 0.

    """
    kinds = {"ELBO": ks[-1], "reconstruction": ks[-1], "KL": ks[-1], **{f"L_{k}": k for k in ks}}
    estimates = {
        label: Estimate.over_data(
            "IWAE" if label.startswith("L_") else label, k, per_datum[label], per_datum[VARIANCE + label]
        )
        for label, k in kinds.items()
    }
    if programs.base_measure == "counting" and programs.unnormalized is None:
        require_possible(estimates["ELBO"], *(estimates[f"L_{k}"] for k in ks))
    return estimates


def _record(
    task: _Task,
    programs: ModelGuide,
    per_datum: dict[str, Tensor],
    observed: ObservedData | None,
    estimates: dict[str, Estimate],
    checked: CheckResults | None,
) -> Evaluation:
    """Return the evaluation with everything that a table of it states."""
    split = task.source if isinstance(task.source, Split) else None
    ladder = tuple(estimates[f"L_{k}"] for k in task.ks)
    num_given = sum(observed.given.values()) if observed else sum(argument[0].numel() for argument in task.args[1:])
    return Evaluation(
        elbo=estimates["ELBO"],
        reconstruction=estimates["reconstruction"],
        kl=estimates["KL"],
        iwae=ladder,
        kl_methods=dict(programs.kl),
        gains={f"L_{k}": mean_and_error(per_datum[f"L_{k}"] - per_datum["ELBO"]) for k in task.ks},
        num_data=len(task.args[0]),
        data=task.name,
        data_hash=task.data_hash,
        data_transform=split.transform.describe() if split else None,
        base_measure=programs.base_measure,
        log_abs_det_jacobian=_log_det(task.source, observed) if programs.base_measure == "Lebesgue" else None,
        bits_per_dimension=_bits(task.source, programs, observed, ladder[-1].value),
        unnormalized=programs.unnormalized,
        seed=task.seed,
        settings=task.settings,
        versions=versions(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        stored_hash=fingerprint(split.stored) if split else None,
        num_covariates=num_given,
        weights=assess_with_checks(summarize_weights(per_datum, ks=task.ks), checked),
        checked=checked,
        observed=observed,
        per_datum={label: value for label, value in per_datum.items() if not label.startswith(VARIANCE)},
    )


def weights_hash(model: Program, guide: Program, modules: Iterable[nn.Module] = ()) -> str:
    """Return the fingerprint of all parameters and buffers of the modules of two programs."""
    return fingerprint(*snapshot((*modules, *find_modules(model, guide)), ()).values())


def _choose_device(name: str | None, modules: Iterable[nn.Module], loader: Loader) -> torch.device:
    """Move the modules to the named device; without a name return the device of the modules, or else of the data."""
    if name is not None:
        device = choose_device(name)
        for module in modules:
            module.to(device)
        return device
    parameters = (parameter for module in modules for parameter in module.parameters())
    return next((parameter.device for parameter in parameters), loader.device)


def _choose_batch_size(size: int | None, ks: Sequence[int], num_data: int, device: torch.device) -> int:
    """Return the size of a batch whose log-weights fit into memory."""
    size = size or max(1, min(MAX_BATCH_SIZE, chunk_sizes(device).particles // ks[-1]))
    memory.require(
        8.0 * 8 * ks[-1] * min(size, num_data),
        what=f"the log-weights of {min(size, num_data)} data with K = {ks[-1]}",
        hint="choose a smaller K or batch_size",
        device=device,
    )
    return size


def _to_device(args: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(argument.to(device) for argument in args)


def _warn(programs: ModelGuide, modules: Iterable[nn.Module], examples: tuple[Tensor, ...]) -> None:
    """Log limits of the numbers that show before the evaluation."""
    if coarse := find_low_precision(modules, examples):
        logger.warning("%s; evaluate model.float(), on data in float32", coarse)
    warn_of_links(programs)
    if programs.nan:
        logger.warning("%s; data whose estimates are not finite are counted, and no mean hides them", programs.nan)


def _journal_key(task: _Task, programs: ModelGuide, examples: tuple[Tensor, ...]) -> str:
    """Return a text that differs between evaluations of other data, weights, programs or options of the bounds."""
    args = _to_device(task.args, task.device) if programs.draws_rows else examples
    with forked_random(0, task.device):
        rows = torch.arange(programs.num_rows, device=task.device) % len(args[0])
        block = score_one_particle(programs, args, rows, checked=False)
    probe = fingerprint(block.log_prior, block.log_likelihood, block.log_guide)  # of programs with equal weights
    options = {name: value for name, value in task.settings.items() if name != "checks"}
    sizes = (task.options.chunk_size, task.options.engine)
    return repr((task.data_hash, probe, task.ks, task.seed, sizes, options, versions()))


def _log_det(source: Source, observed: ObservedData | None) -> float | None:
    """Return log |dx/du| of the map from stored values u to the values that were scored, nats per datum."""
    if not isinstance(source, Split) or observed is None or observed.what not in (WHOLE, MASKED):
        return None
    log_det = source.transform.log_abs_det_jacobian(source.x_shape, levels=source.levels)
    if log_det is None or observed.what == WHOLE:
        return log_det
    elementwise = isinstance(source.transform, transforms.Dequantization)  # each element adds the same
    return log_det * observed.num_elements / math.prod(source.x_shape) if elementwise else None


def _bits(source: Source, programs: ModelGuide, observed: ObservedData | None, nats: float | None) -> float | None:
    """Return bits per dimension where a value bounds the log-probability of a discrete datum."""
    dequantized = isinstance(source, Split) and isinstance(source.transform, transforms.Dequantization)
    counting = programs.base_measure == "counting"
    log_det = 0.0 if counting else _log_det(source, observed) if dequantized else None
    if programs.unnormalized or nats is None or log_det is None or observed is None:
        return None
    if observed.what == DRAWN or not observed.num_elements:
        return None
    several = len(observed.sites) > 1 and observed.what not in (WHOLE, MASKED)
    if not observed.only_data or several:  # labels are not dimensions of x
        return None
    return bits_per_dimension(nats, num_dimensions=observed.num_elements, log_abs_det_jacobian=log_det)
