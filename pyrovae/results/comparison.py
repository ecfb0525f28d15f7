"""Comparison of models on the same data, each paired datum by datum with a reference."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyrovae.results.comparison_table import ComparisonTable, Row, ranked_names, resolved
from pyrovae.results.estimates import Difference, Estimate
from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import WHOLE
from pyrovae.results.record import to_plain
from pyrovae.results.tables import Table, Tabled
from pyrovae.results.training_seeds import (
    LEVEL,
    SeedEffect,
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
        """Return one table per block as comma-separated values, with an empty line between them."""
        return "\n".join(block.wide_table().to_csv() for block in self.blocks)

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
    evaluations: Mapping[str, Evaluation | Sequence[Evaluation]],
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
    try:
        require_comparable({f"{name} ({i})": evaluation for i, evaluation in enumerate(seeds, 1)})
    except ValueError as error:
        reason = str(error).partition(", or keep them")[0]
        raise ValueError(f"{reason}, or give them names of their own") from None


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
    further = {
        name: {
            "elbo": mean_over_seeds([e.elbo for e in seeds]),
            "reconstruction": mean_over_seeds([e.reconstruction for e in seeds]),
            "kl": mean_over_seeds([e.kl for e in seeds]),
            "bits_per_dimension": _mean(_bits_at(e, b.value) for e, b in zip(seeds, rungs[name], strict=True)),
            "kl_methods": seeds[0].kl_methods,
            "gap": _largest(_gap_at(e, b.value) for e, b in zip(seeds, rungs[name], strict=True)),
            "tolerance": max((e.weights.tolerance for e in seeds if e.weights), default=0.0),
            "cautions": tuple(dict.fromkeys(caution for e in seeds for caution in e.cautions)),
        }
        for name, seeds in models.items()
    }
    first = models[reference][0]
    measure = MEASURES.get(first.base_measure or "", "log p(x)")
    return ComparisonTable(
        f"{describe_data(first)}, sha256 {first.data_hash[:12]}; {measure}, nats per datum",
        k,
        reference,
        first.num_data,
        *_rank(models, _Bounds(rungs, values), reference, further),
        bits_of=next((words for (e, *_) in models.values() if (words := _bits_of(e))), None),
        stored=_stored(first),
        annealed=_annealed_table(models, reference),
        num_distinct=first.num_distinct,
    )


def _annealed_table(models: Models, reference: str) -> ComparisonTable | None:
    """Return the comparison of AIS, which is on the first of the data; None unless all have it on as many."""
    evaluations = [evaluation for seeds in models.values() for evaluation in seeds]
    records = [e.checked.annealing for e in evaluations if e.checked and e.checked.annealing]
    records = [record for record in records if "AIS" in record.per_datum]
    if len(records) < len(evaluations) or len({record.num_data for record in records}) > 1:
        return None
    remaining = iter(records)
    by_model = {name: [next(remaining) for _ in seeds] for name, seeds in models.items()}
    first = records[0]
    data = "these data" if first.num_data == evaluations[0].num_data else f"the first {first.num_data} of these data"
    settings = " or ".join(dict.fromkeys(str(record.settings) for record in records))
    bounds = {name: [record.bound for record in seeds] for name, seeds in by_model.items()}
    sandwiches = {name: [e.checked.sandwich if e.checked else None for e in seeds] for name, seeds in models.items()}
    further = {name: {"gap": _largest(s.gap.value if s else None for s in found)} for name, found in sandwiches.items()}
    values = {name: torch.stack([r.per_datum["AIS"].double() for r in seeds]) for name, seeds in by_model.items()}
    return ComparisonTable(
        f"Annealed importance sampling (AIS) on {data}, {settings}; nats per datum",
        first.bound.num_particles,
        reference,
        first.num_data,
        *_rank(models, _Bounds(bounds, values), reference, further),
    )


@dataclass(frozen=True)
class _Bounds:
    """One bound of several models on the same data.

    Attributes:
        estimates: for each model the estimate of each training seed.
        values: for each model the values of each seed and datum ``(S, N)``, nats; a single model may lack them.

    """

    estimates: Mapping[str, Sequence[Estimate]]
    values: Mapping[str, Tensor]

    @cached_property
    def means(self) -> dict[str, Estimate]:
        """Mean over seeds of each model."""
        return {name: mean_over_seeds(seeds, self.values.get(name)) for name, seeds in self.estimates.items()}

    @cached_property
    def seed_effect(self) -> SeedEffect | None:
        """Effect of a seed, for models of one seed."""
        return pool_seed_effects(self.values.values())

    def difference(self, name: str, other: str) -> Difference:
        """Return the paired difference of two models."""
        return difference_over_seeds(self.values[name], self.values[other], pooled=self.seed_effect)

    def sd_difference(self, name: str, other: str) -> float | None:
        """Return the standard deviation over the data of the difference of two models."""
        differences = self.values[name].mean(0) - self.values[other].mean(0)
        return differences.std().item() if len(differences) > 1 and differences.isfinite().all() else None

    def draws_share(self, name: str, other: str) -> float | None:
        """Return the share of the Monte Carlo draws in the variance of the difference of two models."""
        sd, errors = self.sd_difference(name, other), [self.means[model].se_monte_carlo for model in (name, other)]
        if not sd or None in errors:
            return None
        return min(1.0, sum(error**2 for error in errors if error) * self.values[name].shape[1] / sd**2)

    def resolved_best(self, gaps: Mapping[str, float | None]) -> str | None:
        """Return the model whose mean is above all others, None if there is none.

        Differences are resolved over seeds, and larger than the gap from the other mean to its log p(x), nats.
        """
        known = {name: mean.value for name, mean in self.means.items() if mean.value is not None}
        if not known or len(self.means) == 1 or self.seed_effect is None:
            return None
        best = max(known, key=lambda name: known[name])
        for name in known.keys() - {best}:
            gap = gaps.get(name)
            if gap is None or gap > known[best] - known[name]:
                return None
        p_values = holm([self.difference(best, name).p_value for name in self.means if name != best])
        return best if all(p_value is not None and p_value < LEVEL for p_value in p_values) else None


def _rank(
    models: Models, bounds: _Bounds, reference: str, further: Mapping[str, dict[str, Any]] | None = None
) -> tuple[tuple[Row, ...], tuple[Difference, ...]]:
    """Return rows with ranks and differences to the reference, and the steps of the ranking.

    ``further`` has other fields of the rows.
    """
    others = [name for name in models if name != reference]
    differences = {name: bounds.difference(name, reference) for name in others}
    p_values = dict(zip(others, holm([difference.p_value for difference in differences.values()]), strict=True))
    best = bounds.resolved_best({name: row.get("gap") for name, row in (further or {}).items()})
    ranking = ranked_names(bounds.means)
    steps = tuple(itertools.starmap(bounds.difference, itertools.pairwise(ranking)))
    starts = [1] if ranking else []
    for place, is_resolved in enumerate(resolved(steps), 2):
        starts.append(place if is_resolved else starts[-1])
    ranks = dict(zip(ranking, starts, strict=True))
    rows = tuple(
        Row(
            name=name,
            rank=ranks.get(name),
            bound=mean,
            difference=differences.get(name),
            p_value=p_values.get(name),
            sd_difference=None if name == reference else bounds.sd_difference(name, reference),
            is_best=name == best,
            num_seeds=len(models[name]),
            draws_share=None if name == reference else bounds.draws_share(name, reference),
            sd_seeds=_deviation([seed.value for seed in bounds.estimates[name]]),
            **(further or {}).get(name, {}),
        )
        for name, mean in bounds.means.items()
    )
    return rows, steps


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else statistics.fmean(known)  # type: ignore[arg-type]


def _largest(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else max(known)  # type: ignore[type-var]


def _gap_at(evaluation: Evaluation, nats: float | None) -> float | None:
    """Return the gap from another bound to log p(x): its distance from the last bound, and the gap of that."""
    last, gap = evaluation.iwae[-1].value, evaluation.weights.gap if evaluation.weights else None
    return None if last is None or nats is None or gap is None else last - nats + gap


def _deviation(values: list[float | None]) -> float | None:
    """Return the standard deviation over seeds; None for one seed or a missing value."""
    return None if None in values or len(values) < 2 else statistics.stdev(values)  # type: ignore[type-var]


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


def _bits_at(evaluation: Evaluation, nats: float | None) -> float | None:
    """Return bits per dimension at another bound, scaled from those at the last bound."""
    last, volume = evaluation.iwae[-1].value, evaluation.log_abs_det_jacobian or 0.0
    if evaluation.bits_per_dimension is None or nats is None or last is None or last + volume == 0:
        return None
    return evaluation.bits_per_dimension * (nats + volume) / (last + volume)


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
