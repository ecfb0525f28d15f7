"""Comparison of models on the same data, each paired datum by datum with a reference."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
from torch import Tensor

from pyrovae.results.comparison_table import ComparisonTable, Row, ranked_names, resolved
from pyrovae.results.estimates import Difference, Estimate
from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import WHOLE
from pyrovae.results.record import to_plain
from pyrovae.results.tables import Table, Tabled
from pyrovae.results.training_seeds import (
    difference_over_seeds,
    holm,
    mean_over_seeds,
    pool_seed_effects,
)
from pyrovae.runtime.annotations import checked

SEPARATE = (
    "Nats compare models within a block only: blocks are of different data, of different parts of them, or of "
    "different measures (the logarithm of a probability is not one of a density)."
)
BITS = "Bits per dimension compare these blocks too, being code lengths of the same stored values:"
BINARIZED = ("DynamicBinarization", "StaticBinarization", "Threshold")
STORED = "stored values"
MEASURES = {"counting": "log-probabilities", "Lebesgue": "log-densities"}


@dataclass(frozen=True, repr=False)
class Comparison(Tabled):
    """Several evaluations side by side.

    Attributes:
        blocks: tables of evaluations that may be compared, in the given order; one if all may.
        notes: sentences below the last table.

    """

    blocks: tuple[ComparisonTable, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row per model, table by table."""
        return tuple(row for block in self.blocks for row in block.rows)

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of each block; the last one gives the reason for several blocks."""
        *first, last = (table for block in self.blocks for table in block.tables())
        return (*first, replace(last, notes=(*last.notes, *self._block_notes(), *self.notes)))

    def to_csv(self) -> str:
        """Return one table per block as comma-separated values, without AIS, with an empty line between them."""
        return "\n".join(block.table().to_csv() for block in self.blocks)

    def to_json(self) -> str:
        """Return strict JSON: the numbers in full, and the sentences of the tables."""
        sentences = [line for table in self.tables() for line in (*table.title, *table.notes)]
        return json.dumps({**to_plain(self), "sentences": sentences}, indent=2, allow_nan=False) + "\n"

    def _block_notes(self) -> list[str]:
        titles: dict[str, list[str]] = {}
        for block in self.blocks:
            if block.bits_of == STORED:
                titles.setdefault(block.stored, []).append(block.title.split(", sha256")[0])
        bits = [line for shared in titles.values() if len(shared) > 1 for line in (BITS, *shared)]
        return [SEPARATE, *bits] if len(self.blocks) > 1 else []


@checked
def compare(
    evaluations: Annotated[
        Mapping[str, Evaluation | Sequence[Evaluation]], "give each a name: compare({'first': a, 'second': b})"
    ],
    *,
    reference: str | None = None,
    blocks: bool = False,
) -> Comparison:
    """Compare models on the same data, each paired datum by datum with a reference.

    ``difference = mean over data of L_K(x) - L_K of the reference(x)``, with its standard error and 95 % interval

    A model may have several evaluations, one for each training seed. L_K is then a mean over seeds, and the error of a
    difference is over both data and seeds. A difference is called resolved if it differs from 0 at the 5 % level after
    Holm's adjustment for the number of comparisons with the reference.

    Evaluations with different data, transforms, observed values or base measures raise an error: a model that masks
    half of x, or observes ``2 * x``, scores other values (see `ObservedData`). With ``blocks=True`` they stand in
    separate tables, where dequantized data and stored levels have a common unit: with the change of variables
    ``log P(u) >= E log p(x) + log |dx/du|`` both are code lengths of the stored values, in bits per dimension.

    L_K bounds log p(x) from below, by a gap that may differ between models; a note names the gaps that are large or not
    known. If all models have annealed importance sampling on as many of the data, a second table compares it.

    Args:
        evaluations: by the name of the model, an evaluation or a list of them, one for each training seed.
        reference: name of the model to which the others are compared; the first if None. Blocks without it use their
            own first model.
        blocks: whether to put models that may not be compared in separate tables.

    Returns:
        The comparison, which prints as a table and has ``to_markdown``, ``to_latex`` and ``to_csv``.

    Raises:
        ValueError: if there is nothing to compare; if evaluations differ in data, transform, measure, covariates or
            observed values; if the evaluations of a block have no K in common, or one has no values per datum.
        TypeError: if these are not evaluations by name.

    Example:
        >>> print(compare({"N(0, I)": first, "mixture": [second, third]}))

    """
    if not evaluations:
        raise ValueError("there is nothing to compare; give evaluations by name")
    models = {
        name: tuple(value) if isinstance(value, (list, tuple)) else (value,) for name, value in evaluations.items()
    }
    for name, seeds in models.items():
        for evaluation in seeds:
            if not isinstance(evaluation, Evaluation):
                raise TypeError(
                    f"compare takes what pyrovae.evaluate returns, but {name!r} is a {type(evaluation).__name__}; run "
                    "folders are compared by pyrovae.report.compare"
                )
        if not seeds:
            raise ValueError(f"a model has one evaluation or more, but {name!r} has none; leave it out")
        _require_seeds(name, seeds)
    if reference is not None and reference not in models:
        raise ValueError(f"the reference is one of {', '.join(models)}, but received {reference!r}")
    first = {name: seeds[0] for name, seeds in models.items()}
    if not blocks:
        require_comparable(first)
    groups = ({name: models[name] for name in group} for group in comparable_groups(first))
    return Comparison(tuple(_ladder_table(group, reference) for group in groups))


def comparable_groups(evaluations: Mapping[str, Evaluation]) -> list[dict[str, Evaluation]]:
    """Return groups of evaluations that may be compared, in the given order."""
    groups: dict[tuple[Any, ...], dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        observed = evaluation.observed.hash if evaluation.observed else None
        scored = (evaluation.data_hash, observed, evaluation.num_covariates)
        groups.setdefault((*scored, evaluation.base_measure, evaluation.unnormalized), {})[name] = evaluation
    return list(groups.values())


def require_comparable(evaluations: Mapping[str, Evaluation]) -> None:
    """Check that evaluations may be compared.

    Raises:
        ValueError: with the properties that differ, and their values for each group of names.

    """
    groups = comparable_groups(evaluations)
    if len(groups) < 2:
        return
    properties = {", ".join(group): _properties(next(iter(group.values()))) for group in groups}
    first = next(iter(properties.values()))
    differing = [name for name in first if len({values[name] for values in properties.values()}) > 1]
    sides = (f"{names}: {', '.join(values[name] for name in differing)}" for names, values in properties.items())
    raise ValueError(
        f"models are compared on the same data in the same measure, but these differ in {', '.join(differing)} "
        f"({'; '.join(sides)}); evaluate all on the same values, with one transform and one seed of the data, or keep "
        "them in separate tables by blocks=True (--blocks)"
    )


def _properties(evaluation: Evaluation) -> dict[str, str]:
    """Return the properties in which comparable evaluations agree, in words."""
    observed = evaluation.observed
    return {
        "data": f"{evaluation.num_data} data of {evaluation.data}",
        "transform": f"{evaluation.data_transform or 'no transform known'}",
        "base measure": MEASURES.get(evaluation.base_measure or "", "no measure known"),
        "covariates": f"{evaluation.num_covariates} covariates",
        "observed values": f"{observed}, sha256 {observed.hash[:12]}" if observed else "observed values not known",
        "normalization": evaluation.unnormalized or "normalized",
        "scored values": f"sha256 {evaluation.data_hash[:12]}",
    }


def describe_data(evaluation: Evaluation) -> str:
    """Return the data, their number, transform and observed values in words."""
    given = " given covariates" if evaluation.num_covariates else ""
    given += ", NOT log-probabilities" if evaluation.unnormalized else ""
    transform = f", {evaluation.data_transform['class']}" if evaluation.data_transform else ""
    partly = evaluation.observed is not None and evaluation.observed.what != WHOLE
    observed = f" (observed: {evaluation.observed})" if partly else ""
    return f"{evaluation.data}: {evaluation.num_data} data{given}{transform}{observed}"


def _require_seeds(name: str, seeds: tuple[Evaluation, ...]) -> None:
    """Check that evaluations of one model are of different weights and of the same data."""
    weights = [evaluation.settings.get("weights") for evaluation in seeds]
    if None not in weights and len(set(weights)) < len(weights):
        raise ValueError(
            f"the evaluations of a model are of several training seeds, but two of {name!r} have the same weights; "
            "give one evaluation of each trained model"
        )
    require_comparable({f"{name} ({i})": evaluation for i, evaluation in enumerate(seeds, 1)})


Models = Mapping[str, tuple[Evaluation, ...]]  # the evaluations of each model, one for each training seed


def _ladder_table(models: Models, reference: str | None) -> ComparisonTable:
    """Return the comparison of L_K at the largest common K, and of AIS."""
    k = _common_k(models)
    reference = reference if reference is not None and reference in models else next(iter(models))
    label = f"L_{k}"
    bare = [name for name, seeds in models.items() if any(label not in e.per_datum for e in seeds)]
    if bare and (len(models) > 1 or len(models[bare[0]]) > 1):
        raise ValueError(
            f"models are paired datum by datum, but {bare[0]!r} holds no values of {label} per datum; its JSON does "
            "not: read the whole report by report.read_report"
        )
    rungs = {name: [next(b for b in e.iwae if b.num_particles == k) for e in seeds] for name, seeds in models.items()}
    values = {
        name: torch.stack([e.per_datum[label].double() for e in seeds])
        for name, seeds in models.items()
        if name not in bare
    }
    gaps = {name: _if_known(max, list(map(_gap_at, seeds, rungs[name]))) for name, seeds in models.items()}
    first = models[reference][0]
    measure = MEASURES.get(first.base_measure or "", "log p(x)")
    rows, steps = _rank(rungs, values, gaps, reference)
    return ComparisonTable(
        f"{describe_data(first)}, sha256 {first.data_hash[:12]}; {measure}, nats per datum",
        k,
        reference,
        first.num_data,
        tuple(_with_terms(row, models[row.name], rungs[row.name]) for row in rows),
        steps,
        bits_of=next((words for (e, *_) in models.values() if (words := _bits_of(e))), None),
        stored=_stored(first),
        annealed=_annealed_table(models, reference),
        num_distinct=first.num_distinct,
    )


def _with_terms(row: Row, seeds: Sequence[Evaluation], rungs: Sequence[Estimate]) -> Row:
    """Return a row with means over seeds of the ELBO, its terms and the bits of each rung, and with the cautions."""
    return replace(
        row,
        elbo=mean_over_seeds([e.elbo for e in seeds]),
        reconstruction=mean_over_seeds([e.reconstruction for e in seeds]),
        kl=mean_over_seeds([e.kl for e in seeds]),
        bits_per_dimension=_if_known(fmean, list(map(_bits_at, seeds, rungs))),
        kl_methods=seeds[0].kl_methods,
        tolerance=max((e.weights.tolerance for e in seeds if e.weights), default=0.0),
        cautions=tuple(dict.fromkeys(caution for e in seeds for caution in e.cautions)),
    )


def _annealed_table(models: Models, reference: str) -> ComparisonTable | None:
    """Return the comparison of AIS, which is on the first of the data; None unless all have it on as many."""
    bounds, values, gaps = {}, {}, {}
    settings: dict[str, None] = {}
    sizes: set[int] = set()
    for name, seeds in models.items():
        records = [e.checked.annealing for e in seeds if e.checked and e.checked.annealing]
        sizes |= {len(record.per_datum.get("AIS", ())) for record in records}
        if len(records) < len(seeds) or len(sizes) > 1 or 0 in sizes:
            return None
        bounds[name] = [record.bound for record in records]
        values[name] = torch.stack([record.per_datum["AIS"].double() for record in records])
        sandwiches = [e.checked.sandwich if e.checked else None for e in seeds]
        gaps[name] = _if_known(max, [sandwich.gap.value if sandwich else None for sandwich in sandwiches])
        settings |= dict.fromkeys(str(record.settings) for record in records)
    (num_data,), num_all = sizes, models[reference][0].num_data
    data = "these data" if num_data == num_all else f"the first {num_data} of these data"
    title = f"Annealed importance sampling (AIS) on {data}, {' or '.join(settings)}; nats per datum"
    rows, steps = _rank(bounds, values, gaps, reference)
    return ComparisonTable(title, bounds[reference][0].num_particles, reference, num_data, rows, steps)


def _rank(
    bounds: Mapping[str, Sequence[Estimate]],
    values: Mapping[str, Tensor],
    gaps: Mapping[str, float | None],
    reference: str,
) -> tuple[tuple[Row, ...], tuple[Difference, ...]]:
    """Return rows with ranks and differences to the reference, and the steps of the ranking.

    Args:
        bounds: for each model the estimate of each training seed.
        values: for each model the values of each seed and datum ``(S, N)``, nats; a single model may lack them.
        gaps: for each model the gap from the bound to log p(x), nats; None where it is not known.
        reference: name of the model to which the others are compared.

    """
    means = {name: mean_over_seeds(seeds, values.get(name)) for name, seeds in bounds.items()}
    pooled = pool_seed_effects(values.values())

    def difference(name: str, other: str) -> Difference:
        return difference_over_seeds(values[name], values[other], pooled=pooled)

    ranking = ranked_names(means)
    steps = tuple(itertools.starmap(difference, itertools.pairwise(ranking)))
    ranks = dict.fromkeys(ranking[:1], 1)
    for place, is_resolved in enumerate(resolved(steps), 1):
        ranks[ranking[place]] = place + 1 if is_resolved else ranks[ranking[place - 1]]
    best = None
    if pooled is not None and len(ranking) == len(means) > 1:
        leads = [difference(ranking[0], name) for name in ranking[1:]]
        by_gap = [(lead.mean or 0.0, gaps[name]) for lead, name in zip(leads, ranking[1:], strict=True)]
        if all(resolved(leads)) and all(gap is not None and gap <= lead for lead, gap in by_gap):
            best = ranking[0]
    others = {name: difference(name, reference) for name in means if name != reference}
    p_values = dict(zip(others, holm([other.p_value for other in others.values()]), strict=True))
    rows = []
    for name, mean in means.items():
        seeds, sd, share = bounds[name], None, None
        if name in others:
            errors = [means[model].se_monte_carlo for model in (name, reference)]
            sd, share = _spread(values[name].mean(0) - values[reference].mean(0), errors)
        row = Row(
            name=name,
            rank=ranks.get(name),
            bound=mean,
            difference=others.get(name),
            p_value=p_values.get(name),
            sd_difference=sd,
            draws_share=share,
            is_best=name == best,
            num_seeds=len(seeds),
            sd_seeds=_if_known(stdev, [seed.value for seed in seeds]) if len(seeds) > 1 else None,
            gap=gaps[name],
        )
        rows.append(row)
    return tuple(rows), steps


def _spread(differences: Tensor, errors: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the standard deviation of paired differences ``(N,)``, and the share of the draws in their variance.

    ``errors`` are the Monte Carlo standard errors of the two means.
    """
    sd = differences.std().item() if len(differences) > 1 and differences.isfinite().all() else None
    noise = _if_known(lambda known: sum(error**2 for error in known), errors)  # variance of the mean difference
    return sd, min(1.0, noise * len(differences) / sd**2) if sd and noise is not None else None


def _if_known(function: Callable[[Any], float], values: Sequence[float | None]) -> float | None:
    """Return a function of values, or None if one of them is None."""
    return None if None in values else function(values)


def _gap_at(evaluation: Evaluation, rung: Estimate) -> float | None:
    """Return the gap from a rung to log p(x): its distance from the last one, and the gap of that."""
    last, gap = evaluation.iwae[-1].value, evaluation.weights.gap if evaluation.weights else None
    return None if last is None or rung.value is None or gap is None else last - rung.value + gap


def _common_k(models: Models) -> int:
    ladders = {name: [b.num_particles for b in e.iwae] for name, seeds in models.items() for e in seeds}
    common = set.intersection(*({b.num_particles for b in e.iwae} for seeds in models.values() for e in seeds))
    if common:
        return max(common)
    listed = "; ".join(f"{name}: {', '.join(map(str, ks))}" for name, ks in ladders.items())
    raise ValueError(
        f"models are compared at the largest K that all have, but these have no K in common ({listed}); evaluate "
        "them with the same ks, so that L_K can be compared"
    )


def _bits_at(evaluation: Evaluation, rung: Estimate) -> float | None:
    """Return bits per dimension at a rung, scaled from those at the last one."""
    last, volume = evaluation.iwae[-1].value, evaluation.log_abs_det_jacobian or 0.0
    if evaluation.bits_per_dimension is None or rung.value is None or last is None or last + volume == 0:
        return None
    return evaluation.bits_per_dimension * (rung.value + volume) / (last + volume)


def _stored(evaluation: Evaluation) -> str:
    """Return a key of the stored values whose code lengths the bits are."""
    stored = evaluation.stored_hash or f"{evaluation.data}: {evaluation.num_data}"
    observed = evaluation.observed
    part = observed.hash if observed is not None and observed.what != WHOLE else ""
    return f"{stored} {evaluation.num_covariates} covariates {part}"


def _bits_of(evaluation: Evaluation) -> str | None:
    if evaluation.bits_per_dimension is None:
        return None
    transform = evaluation.data_transform["class"] if evaluation.data_transform else None
    return "binary values" if transform in BINARIZED else STORED
