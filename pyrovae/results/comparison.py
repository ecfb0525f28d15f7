"""Comparison of evaluations on the same data, each paired datum by datum with a reference."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pyrovae.results.comparability import MEASURES, comparable_groups, describe_data, require_comparable
from pyrovae.results.comparison_table import ComparisonTable, Row, ranked_names
from pyrovae.results.estimates import Difference, Estimate
from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import WHOLE
from pyrovae.results.tables import Table, Tabled
from pyrovae.runtime.annotations import checked

SEPARATE = (
    "Nats compare models within a block only: blocks are of different data, of different parts of them, or of "
    "different measures (the logarithm of a probability is not one of a density)."
)
BITS = "Bits per dimension compare these blocks too, being code lengths of the same stored values:"
BINARIZED = ("DynamicBinarization", "StaticBinarization", "Threshold")
STORED = "stored values"


@dataclass(frozen=True, repr=False)
class Comparison(Tabled):
    """Several evaluations side by side.

    Attributes:
        blocks: tables of evaluations that may be compared, in the given order; one if all may.

    """

    blocks: tuple[ComparisonTable, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """One row per model, table by table."""
        return tuple(row for block in self.blocks for row in block.rows)

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of each block; the last one gives the reason for several blocks."""
        *first, last = (table for block in self.blocks for table in block.tables())
        return (*first, replace(last, notes=(*last.notes, *self._block_notes())))

    def to_csv(self) -> str:
        """Return one table per block as comma-separated values, with an empty line between them."""
        return "\n".join(block.wide_table().to_csv() for block in self.blocks)

    def _block_notes(self) -> list[str]:
        titles: dict[str, list[str]] = {}
        for block in self.blocks:
            if block.bits_of == STORED:
                titles.setdefault(block.stored, []).append(block.title.split(", sha256")[0])
        bits = [line for shared in titles.values() if len(shared) > 1 for line in (BITS, *shared)]
        return [SEPARATE, *bits] if len(self.blocks) > 1 else []


@checked
def compare(evaluations: Mapping[str, Evaluation], *, reference: str | None = None, blocks: bool = False) -> Comparison:
    """Compare evaluations on the same data, each paired datum by datum with a reference.

    ``difference = mean over data of L_K(x) - L_K of the reference(x)``, with its standard error and 95 % interval

    Evaluations with different data, transforms, observed values or base measures raise an error: a model that masks
    half of x, or observes ``2 * x``, scores other values (see `ObservedData`). With ``blocks=True`` they stand in
    separate tables, where dequantized data and stored levels have a common unit: with the change of variables
    ``log P(u) >= E log p(x) + log |dx/du|`` both are code lengths of the stored values, in bits per dimension.

    L_K bounds log p(x) from below, by a gap that may differ between models. If all models have annealed importance
    sampling on as many of the data, a second table compares it.

    Args:
        evaluations: evaluations by the name of the model.
        reference: name of the model to which the others are compared; the first if None. Blocks without it use their
            own first model.
        blocks: whether to put evaluations that may not be compared in separate tables.

    Returns:
        The comparison, which prints as a table and has ``to_markdown``, ``to_latex`` and ``to_csv``.

    Raises:
        ValueError: if there is nothing to compare; if evaluations differ in data, transform, measure, covariates or
            observed values; if the evaluations of a block have no K in common, or one has no values per datum.
        TypeError: if these are not evaluations by name.

    Example:
        >>> print(compare({"N(0, I)": first, "mixture": second}))

    """
    if not evaluations:
        raise ValueError("there is nothing to compare; give evaluations by name")
    for name, evaluation in evaluations.items():
        if not isinstance(evaluation, Evaluation):
            raise TypeError(
                f"compare takes what pyrovae.evaluate returns, but {name!r} is a {type(evaluation).__name__}; run "
                "folders are compared by pyrovae.report.compare"
            )
    if reference is not None and reference not in evaluations:
        raise ValueError(f"the reference is one of {', '.join(evaluations)}, but received {reference!r}")
    if not blocks:
        require_comparable(evaluations)
    return Comparison(tuple(_ladder_table(group, reference) for group in comparable_groups(evaluations)))


def _ladder_table(evaluations: dict[str, Evaluation], reference: str | None) -> ComparisonTable:
    """Return the comparison of L_K at the largest common K, and of AIS."""
    k = _common_k(evaluations)
    first = next(iter(evaluations.values()))
    reference = reference if reference is not None and reference in evaluations else next(iter(evaluations))
    bounds = {name: next(b for b in e.iwae if b.num_particles == k) for name, e in evaluations.items()}
    values = {name: e.per_datum[f"L_{k}"] for name, e in evaluations.items() if f"L_{k}" in e.per_datum}
    bare = [name for name in evaluations if name not in values]
    if bare and len(evaluations) > 1:
        raise ValueError(
            f"models are paired datum by datum, but {bare[0]!r} holds no values of L_{k} per datum; its JSON does not: "
            "read the whole report by report.read_report"
        )
    further = {
        name: {
            "largest_k": evaluation.iwae[-1].num_particles,
            "elbo": evaluation.elbo,
            "bits_per_dimension": _bits_at(evaluation, bounds[name].value),
            "kl_methods": evaluation.kl_methods,
        }
        for name, evaluation in evaluations.items()
    }
    measure = MEASURES.get(first.base_measure or "", "log p(x)")
    return ComparisonTable(
        f"{describe_data(first)}, sha256 {first.data_hash[:12]}; {measure}, nats per datum",
        k,
        reference,
        *_rank(evaluations, bounds, functools.partial(_paired, values), reference, further),
        bits_of=next((words for words in map(_bits_of, evaluations.values()) if words), None),
        stored=_stored(first),
        annealed=_annealed_table(evaluations, reference),
    )


def _annealed_table(evaluations: dict[str, Evaluation], reference: str) -> ComparisonTable | None:
    """Return the comparison of AIS, which is on the first of the data; None unless all have it on as many."""
    checks = {name: e.checked.annealing for name, e in evaluations.items() if e.checked}
    records = {name: record for name, record in checks.items() if record and "AIS" in record.per_datum}
    if len(records) < len(evaluations) or len({record.num_data for record in records.values()}) > 1:
        return None
    bounds = {name: record.bound for name, record in records.items()}
    values = {name: record.per_datum["AIS"] for name, record in records.items()}
    first = records[reference]
    whole = first.num_data == evaluations[reference].num_data
    data = "these data" if whole else f"the first {first.num_data} of these data"
    settings = " or ".join(dict.fromkeys(str(record.settings) for record in records.values()))
    return ComparisonTable(
        f"Annealed importance sampling (AIS) on {data}, {settings}; nats per datum",
        first.bound.num_particles,
        reference,
        *_rank(evaluations, bounds, functools.partial(_paired, values), reference),
    )


def _paired(values: Mapping[str, Tensor], name: str, other: str) -> Difference:
    return Difference.over_data(values[name], values[other])


def _rank(
    evaluations: Mapping[str, Evaluation],
    bounds: Mapping[str, Estimate],
    difference: Callable[[str, str], Difference],
    reference: str,
    further: Mapping[str, dict[str, Any]] | None = None,
) -> tuple[tuple[Row, ...], tuple[Difference, ...]]:
    """Return rows with ranks and differences to the reference, and the steps of the ranking.

    ``difference`` takes the names of two models; ``further`` holds other fields of the rows by the name of the model.
    """
    known = [bound.value for bound in bounds.values() if bound.value is not None]
    rows = tuple(
        Row(
            name=name,
            rank=None if bound.value is None else 1 + sum(other > bound.value for other in known),
            bound=bound,
            difference=None if name == reference else difference(name, reference),
            version=evaluations[name].versions.get("pyrovae", "not known"),
            **(further or {}).get(name, {}),
        )
        for name, bound in bounds.items()
    )
    return rows, tuple(itertools.starmap(difference, itertools.pairwise(ranked_names(rows))))


def _common_k(evaluations: Mapping[str, Evaluation]) -> int:
    ladders = {name: [bound.num_particles for bound in e.iwae] for name, e in evaluations.items()}
    common = set.intersection(*map(set, ladders.values()))
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
