"""Evaluation of any Pyro model and guide: the ELBO beside the IWAE bounds, with standard errors.

`evaluate` takes these steps:

1. `scoring_context` runs model and guide on three data, and returns their structure, a `ModelGuide`;
2. `score_data` takes the data batch by batch;
3. `iter_particles` draws z from the guide for each batch, and scores them by model and guide;
4. `batch_statistics` reduces the log-weights ``(K, B)`` to the bounds of each datum, and diagnostics of its weights;
5. `Estimate.over_data` averages them over the data, and `run_checks` runs AIS and the other checks.
"""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.multi_sample import VARIANCE, check_ladder
from pyrovae.data import Data, Split, fingerprint, transforms
from pyrovae.data.loader import Loader, Source
from pyrovae.diagnostics import assess_with_checks, summarize_weights
from pyrovae.evaluation.batch_scoring import EvaluationOptions, Inputs, score_data
from pyrovae.evaluation.checks import Checks, run_checks
from pyrovae.evaluation.resume import Journal
from pyrovae.importance import chunk_sizes, find_low_precision, score_one_particle, scoring_context
from pyrovae.programs import NO_PARTICLES, ModelGuide, Program, Unnormalized, find_modules
from pyrovae.programs.values import snapshot
from pyrovae.results import (
    CheckResults,
    Estimate,
    Evaluation,
    ObservedData,
    bits_per_dimension,
    certified_margin,
    mean_and_error,
)
from pyrovae.results.estimates import require_possible
from pyrovae.results.evaluation_record import KL_OF
from pyrovae.results.observed_data import DRAWN, MASKED, WHOLE
from pyrovae.runtime import memory
from pyrovae.runtime.annotations import checked, merge_options
from pyrovae.runtime.context import forked_random
from pyrovae.runtime.environment import choose_device, versions
from pyrovae.vae import require_form

logger = logging.getLogger("pyrovae")

MAX_BATCH_SIZE = 256  # data in one batch, if the size is chosen here


@checked
def evaluate(
    model: Program,
    guide: Program,
    data: Data | Source,
    *,
    ks: Sequence[int] = (1, 5, 50, 500, 5000),
    checks: Annotated[Checks | None, "pyrovae.Checks() runs all"] = None,
    seed: int = 0,
    options: EvaluationOptions | None = None,
    **keywords: Any,
) -> Evaluation:
    """Estimate the ELBO and the ladder of IWAE bounds L_K on log p(x), from the same draws.

    Weights, buffers, module modes, switches and random streams are restored afterwards. Batch i draws from the stream
    (seed, "evaluate", i), so that the draws do not depend on the size of chunks. Memory does not grow with the number
    of data, and only by the log-weights of one batch with K. Ranks that initialized ``torch.distributed`` share the
    batches, and all return the same evaluation; the main process keeps the journal.

    Args:
        model: a Pyro program called with data; see `pyrovae.programs` for the contract.
        guide: another. ``evaluate(vae, data)`` takes both from an object that has them, such as a VAE.
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
        ValueError: if the rungs do not divide, the programs break their contract, data lie outside the support of the
            likelihood, or the log-weights do not fit into memory.
        TypeError: if a keyword is not an option.

    Example:
        >>> evaluation = evaluate(vae.model, vae.guide, data.test, ks=(1, 10, 100), batch_size=50)
        >>> print(evaluation)

    """
    options = merge_options(options, EvaluationOptions, keywords, function="evaluate", also=("ks", "checks", "seed"))
    inputs = _prepare(model, guide, data, ks=check_ladder(ks), checks=checks, seed=seed, options=options)
    model = Unnormalized()(model) if options.unnormalized else model
    journal = options.journal if isinstance(options.journal, Journal) else Journal(options.journal)
    with (
        scoring_context(model, guide, inputs.examples(), modules=inputs.modules) as programs,
        torch.no_grad(),
    ):
        inputs = replace(inputs, settings=inputs.settings | weights_of(inputs.modules, programs.params))
        coarse = find_low_precision(inputs.modules, inputs.examples())
        cautions = _log_cautions(programs, coarse)
        journal.start(_journal_key(programs, inputs, options) if journal.path is not None else "")
        per_datum, observed = score_data(programs, inputs, journal, options)
    if observed is not None and observed.fault is not None:
        logger.warning("%s", observed.fault)
        programs = replace(programs, unnormalized=observed.fault)
    estimates = _estimates(programs, per_datum, inputs.ks)
    is_certified = not (programs.unnormalized or coarse or (observed is not None and observed.what == DRAWN))
    results = None
    if checks is not None:
        results = run_checks(
            model,
            guide,
            inputs,
            checks,
            tightest=estimates[f"L_{inputs.ks[-1]}"],
            is_certified=is_certified,
            density="p(x)" if observed is None else observed.density,
            per_datum=per_datum,
            journal=journal,
            show_progress=options.show_progress,
        )
    evaluation = _record(inputs, programs, estimates, per_datum, observed, results, cautions, is_certified=is_certified)
    if journal is not options.journal:
        journal.remove()
    return evaluation


def _prepare(
    model: Program,
    guide: Program,
    data: Data | Source,
    *,
    ks: tuple[int, ...],
    checks: Checks | None,
    seed: int,
    options: EvaluationOptions,
) -> Inputs:
    """Return the data as arguments of the programs, with the device and the size of a batch."""
    loader = Loader(data.test if isinstance(data, Data) else data)
    if options.num_data is not None:
        loader = loader.first(options.num_data)
    require_form(model, loader.source)
    modules = find_modules(model, guide, given=options.modules)
    device = _choose_device(options.device, modules, loader)
    batch_size = _choose_batch_size(options.batch_size, ks, len(loader), device)
    args = loader.fixed()
    settings = {
        "batch_size": batch_size,
        "device": str(device),
        "dtype": str(args[0].dtype).removeprefix("torch."),
        "checks": None if checks is None else asdict(checks),
    }
    return Inputs(loader, args, modules, device, batch_size, ks, seed, fingerprint(*args), settings)


def _log_cautions(programs: ModelGuide, coarse: str | None) -> list[str]:
    """Log what may be wrong with the programs, and return the sentences that stay in the record."""
    cautions = [f"{coarse}; evaluate model.float(), on data in float32"] if coarse else []
    cautions += programs.link_warnings
    for caution in cautions:
        logger.warning("%s", caution)
    if programs.nan:
        logger.warning("%s; data whose estimates are not finite are counted, and no mean hides them", programs.nan)
    elif not programs.broadcasts:
        logger.warning(NO_PARTICLES)
    return cautions


def _journal_key(programs: ModelGuide, inputs: Inputs, options: EvaluationOptions) -> str:
    """Return a text that differs between evaluations of other data, programs, weights, draws or versions."""
    probe = _probe(programs, inputs.examples())
    settings = {label: value for label, value in inputs.settings.items() if label != "checks"}
    computation = (inputs.ks, inputs.seed, options.chunk_size, options.engine, settings)
    return repr((inputs.data_hash, probe, *computation, versions()))


def _record(
    inputs: Inputs,
    programs: ModelGuide,
    estimates: dict[str, Estimate],
    per_datum: dict[str, Tensor],
    observed: ObservedData | None,
    results: CheckResults | None,
    cautions: Sequence[str],
    *,
    is_certified: bool,
) -> Evaluation:
    """Return the record of an evaluation."""
    split, ks, num_data = inputs.loader.split, inputs.ks, len(inputs.args[0])
    tightest = estimates[f"L_{ks[-1]}"].value
    num_given = sum(argument[0].numel() for argument in inputs.args[1:])
    return Evaluation(
        elbo=estimates["ELBO"],
        reconstruction=estimates["reconstruction"],
        kl=estimates["KL"],
        iwae=tuple(estimates[f"L_{k}"] for k in ks),
        kl_by_site={name: estimates[KL_OF + name] for name in programs.latents if KL_OF + name in estimates},
        kl_methods=dict(programs.kl),
        gains={f"L_{k}": mean_and_error(per_datum[f"L_{k}"] - per_datum["ELBO"]) for k in ks},
        num_data=num_data,
        data_hash=inputs.data_hash,
        base_measure=programs.base_measure,
        unnormalized=programs.unnormalized,
        certified=tightest - certified_margin(num_data) if is_certified and tightest is not None else None,
        seed=inputs.seed,
        settings=inputs.settings,
        versions=versions(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        cautions=tuple(cautions),
        num_distinct=_num_distinct(inputs.args),
        num_covariates=sum(observed.given.values()) if observed else num_given,
        weights=assess_with_checks(summarize_weights(per_datum, ks=ks), results),
        checked=results,
        observed=observed,
        per_datum={label: value for label, value in per_datum.items() if not label.startswith(VARIANCE)},
        data=inputs.loader.name,
        data_transform=split.transform.describe() if split else None,  # type: ignore[arg-type]
        stored_hash=fingerprint(split.stored) if split else None,
        log_abs_det_jacobian=_log_det(split, observed) if programs.base_measure == "Lebesgue" else None,
        bits_per_dimension=_bits(split, programs, observed, tightest),
    )


def _estimates(programs: ModelGuide, per_datum: dict[str, Tensor], ks: tuple[int, ...]) -> dict[str, Estimate]:
    """Return the means over the data, by label.

    Raises:
        ValueError: if a bound on a log-probability of discrete data is above 0.

    """
    sites = [label for label in per_datum if label.startswith(KL_OF)]
    kinds = {label: ks[-1] for label in ("ELBO", "reconstruction", "KL", *sites)} | {f"L_{k}": k for k in ks}
    estimates = {
        label: Estimate.over_data(
            "IWAE" if label.startswith("L_") else label, k, per_datum[label], per_datum[VARIANCE + label]
        )
        for label, k in kinds.items()
    }
    if programs.base_measure == "counting" and programs.unnormalized is None:
        require_possible(estimates["ELBO"], *(estimates[f"L_{k}"] for k in ks))
    return estimates


def weights_of(modules: Sequence[nn.Module], params: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings that identify weights: their fingerprint, and the names in ``params``.

    Args:
        modules: whose parameters and buffers are weights.
        params: names of ``pyro.param`` values, which are weights too.

    """
    weights = {"weights": fingerprint(*snapshot(modules, params).values())}
    return weights | {"params": list(params)} if params else weights


def _num_distinct(args: tuple[Tensor, ...]) -> int | None:
    """Return the number of distinct rows, of the data and of tensors along them together; None if all differ."""
    arrays = [argument.detach().cpu().reshape(len(argument), -1).contiguous() for argument in args if argument.numel()]
    rows = zip(*(array.view(torch.uint8).numpy() for array in arrays), strict=True)
    count = len({hash(tuple(value.tobytes() for value in row)) for row in rows})
    return count if count < len(args[0]) else None


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


def _probe(programs: ModelGuide, args: tuple[Tensor, ...]) -> str:
    """Return the fingerprint of one particle of some data, which differs between programs of equal weights."""
    device = args[0].device
    with forked_random(0, device):
        block = score_one_particle(programs, args, torch.arange(len(args[0]), device=device), checked=False)
    return fingerprint(block.log_prior, block.log_likelihood, block.log_guide)


def _log_det(split: Split | None, observed: ObservedData | None) -> float | None:
    """Return log |dx/du| of the map from stored values u to the values that were scored, nats per datum."""
    if split is None or observed is None or observed.what not in (WHOLE, MASKED):
        return None
    log_det = split.transform.log_abs_det_jacobian(split.x_shape, levels=split.levels)
    if log_det is None or observed.what == WHOLE:
        return log_det
    elementwise = isinstance(split.transform, transforms.Dequantization)  # each element adds the same
    return log_det * observed.num_elements / math.prod(split.x_shape) if elementwise else None


def _bits(split: Split | None, programs: ModelGuide, observed: ObservedData | None, nats: float | None) -> float | None:
    """Return bits per dimension where a value bounds the log-probability of a discrete datum."""
    log_det = 0.0 if programs.base_measure == "counting" else None
    if log_det is None and split is not None and isinstance(split.transform, transforms.Dequantization):
        log_det = _log_det(split, observed)
    size = programs.dimension_size
    if programs.unnormalized or nats is None or log_det is None or observed is None or size is None:
        return None
    several = len(observed.sites) > 1 and observed.what not in (WHOLE, MASKED)  # labels are not dimensions of x
    if observed.what == DRAWN or not observed.num_elements or not observed.only_data or several:
        return None
    return bits_per_dimension(nats, num_dimensions=observed.num_elements / size, log_abs_det_jacobian=log_det)
