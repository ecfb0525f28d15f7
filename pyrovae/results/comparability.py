"""Conditions for a comparison: the same data, transform, observed values, base measure and covariates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import TOTAL, WHOLE

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
        ValueError: with the differences, the names on each side, and a remedy.

    """
    if len(comparable_groups(evaluations)) < 2:
        return
    same_data = len({evaluation.data_hash for evaluation in evaluations.values()}) == 1
    aspects = [MEASURE, COVARIATES, NORMALIZATION]
    # Observed values of different data differ anyway
    aspects = [*aspects, OBSERVED] if same_data else [DATA, TRANSFORM, *aspects]
    differing = [aspect for aspect in aspects if len(_sides(evaluations, aspect)) > 1] or [VALUES]
    sides = "; ".join(f"{aspect.name} ({_describe(evaluations, aspect)})" for aspect in differing)
    needless = TRANSFORM if MEASURE in differing else None  # a likelihood of another measure brings its transform
    remedies = ". ".join(aspect.remedy for aspect in differing if aspect is not needless)
    raise ValueError(
        f"models are compared on the same data in the same measure, but these differ in {sides}. "
        f"{remedies}; or keep them in separate tables by blocks=True (--blocks)"
    )


def describe_data(evaluation: Evaluation) -> str:
    """Return the data, their number, transform and observed values in words."""
    given = " given covariates" if evaluation.num_covariates else ""
    given += ", NOT log-probabilities" if evaluation.unnormalized else ""
    transform = f", {evaluation.data_transform['class']}" if evaluation.data_transform else ""
    partly = evaluation.observed is not None and evaluation.observed.what != WHOLE
    observed = f" (observed: {evaluation.observed})" if partly else ""
    return f"{evaluation.data}: {evaluation.num_data} data{given}{transform}{observed}"


class _Aspect(NamedTuple):
    """A property in which evaluations may differ: its name, its description for an evaluation, and a remedy."""

    name: str
    describe: Callable[[Evaluation], str]
    remedy: str


def _sides(evaluations: Evaluations, aspect: _Aspect) -> dict[str, list[str]]:
    """Return the names of the evaluations by the description of an aspect."""
    sides: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        sides.setdefault(aspect.describe(evaluation), []).append(name)
    return sides


def _describe(evaluations: Evaluations, aspect: _Aspect) -> str:
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in _sides(evaluations, aspect).items())


def _describe_stored(evaluation: Evaluation) -> str:
    digest = evaluation.stored_hash
    if digest is None and evaluation.data_transform is None:  # tensors, whose name says nothing
        digest = evaluation.data_hash
    return f"{evaluation.data}, {evaluation.num_data} data" + (f", stored sha256 {digest[:12]}" if digest else "")


def _describe_transform(evaluation: Evaluation) -> str:
    description = evaluation.data_transform
    if description is None:
        return "none known"
    fields = ", ".join(f"{name}={value}" for name, value in sorted(description.items()) if name != "class")
    return description["class"] + (f"({fields})" if fields else "")


def _describe_covariates(evaluation: Evaluation) -> str:
    total = ", among them the total of x" if evaluation.observed and TOTAL in evaluation.observed.given else ""
    return f"{evaluation.num_covariates} for each datum{total}" if evaluation.num_covariates else "none"


DATA = _Aspect("data", _describe_stored, "Evaluate them on the same data (the same --data, --split and --num_data)")
TRANSFORM = _Aspect(
    "transform",
    _describe_transform,
    "Transform the data alike: data.with_transform(...), on the command line --data.transform CLASS",
)
MEASURE = _Aspect(
    "base measure",
    lambda evaluation: MEASURES.get(evaluation.base_measure or "", "not known"),
    "The logarithm of a probability is not one of a density: choose likelihoods of one measure",
)
COVARIATES = _Aspect(
    "covariates",
    _describe_covariates,
    "log p(x | c) is not log p(x): give all models the same covariates",
)
OBSERVED = _Aspect(
    "what they observe of the data",
    lambda e: f"{e.observed}, sha256 {e.observed.hash[:12]}" if e.observed else "not known",
    "Let all models observe the same values, obs=x, under the same masks; what is drawn or transformed must be so "
    "before the call. Where it is not known, evaluate again",
)
NORMALIZATION = _Aspect(
    "normalization",
    lambda evaluation: f"not normalized: {evaluation.unnormalized}" if evaluation.unnormalized else "normalized",
    "The score of an unnormalized model is not a log-probability: remove its factors, and score values in the support",
)
VALUES = _Aspect(
    "the values that were scored, though stored data and transform agree",
    lambda evaluation: f"sha256 {evaluation.data_hash[:12]}",
    "Draw binarization and noise with one seed (--data.seed), in one dtype, and give all models the same covariates",
)
