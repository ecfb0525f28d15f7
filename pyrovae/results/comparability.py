"""Conditions for a comparison: the same data, transform, observed values, base measure and covariates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import WHOLE

MEASURES = {"counting": "log-probabilities", "Lebesgue": "log-densities"}

Evaluations = Mapping[str, Evaluation]


def comparable_groups(evaluations: Evaluations) -> list[dict[str, Evaluation]]:
    """Return groups of evaluations that may be compared, in the given order."""
    groups: dict[tuple[Any, ...], dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        observed = evaluation.observed.hash if evaluation.observed else None
        scored = (evaluation.data_hash, observed, evaluation.num_covariates)
        groups.setdefault((*scored, evaluation.base_measure, evaluation.unnormalized), {})[name] = evaluation
    return list(groups.values())


def require_comparable(evaluations: Evaluations) -> None:
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
