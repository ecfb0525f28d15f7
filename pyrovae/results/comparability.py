"""Conditions for a comparison: the same data, transform, observed values, base measure and covariates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import WHOLE

MEASURES = {"counting": "log-probabilities", "Lebesgue": "log-densities"}

Evaluations = Mapping[str, Evaluation]


def comparable_groups(evaluations: Evaluations) -> list[dict[str, Evaluation]]:
    """Return groups of evaluations that may be compared, in the given order."""
    groups: dict[tuple[Any, ...], dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        key = tuple(aspect.key(evaluation) for aspect in (VALUES, MEASURE, COVARIATES, NORMALIZATION, OBSERVED))
        groups.setdefault(key, {})[name] = evaluation
    return list(groups.values())


def require_comparable(evaluations: Evaluations) -> None:
    """Check that evaluations may be compared.

    Raises:
        ValueError: with the differences, the names on each side, and a remedy.

    """
    if len(comparable_groups(evaluations)) < 2:
        return
    same_data = len({evaluation.data_hash for evaluation in evaluations.values()}) == 1
    aspects = [DATA, TRANSFORM, MEASURE, COVARIATES, NORMALIZATION]
    aspects += [OBSERVED] if same_data else []  # observed values of different data differ anyway
    differing = [aspect for aspect in aspects if len(_sides(evaluations, aspect)) > 1] or [VALUES]
    sides = "; ".join(f"{aspect.name} ({_describe(evaluations, aspect)})" for aspect in differing)
    needless = TRANSFORM if MEASURE in differing else None  # a likelihood of another measure brings its transform
    remedies = ". ".join(aspect.remedy for aspect in differing if aspect is not needless)
    raise ValueError(
        f"models are compared on the same data in the same measure, but these differ in {sides}. "
        f"{remedies}; or keep them in separate tables by blocks=True (--blocks)"
    )


def describe_data(evaluation: Evaluation) -> str:
    """Return the data, their transform and their hash in words."""
    given = " given covariates" if evaluation.num_covariates else ""
    given += ", NOT log-probabilities" if evaluation.unnormalized else ""
    transform = f", {evaluation.data_transform['class']}" if evaluation.data_transform else ""
    partly = evaluation.observed is not None and evaluation.observed.what != WHOLE
    observed = f" (observed: {evaluation.observed})" if partly else ""
    return f"{evaluation.data}: {evaluation.num_data} data{given}{transform}{observed}"


@dataclass(frozen=True)
class _Aspect:
    """A property in which evaluations may differ.

    Attributes:
        name: name in words.
        key: returns the property in a form that can be compared.
        words: returns the property in words.
        remedy: a sentence without its full stop.

    """

    name: str
    key: Callable[[Evaluation], Any]
    words: Callable[[Evaluation], str]
    remedy: str


def _sides(evaluations: Evaluations, aspect: _Aspect) -> dict[Any, list[str]]:
    sides: dict[Any, list[str]] = {}
    for name, evaluation in evaluations.items():
        sides.setdefault(aspect.key(evaluation), []).append(name)
    return sides


def _describe(evaluations: Evaluations, aspect: _Aspect) -> str:
    sides = _sides(evaluations, aspect).values()
    return "; ".join(f"{', '.join(names)}: {aspect.words(evaluations[names[0]])}" for names in sides)


def _stored(evaluation: Evaluation) -> tuple[Any, ...]:
    """Return the hash of the stored data, or their name and size where it is unknown."""
    if evaluation.stored_hash is not None:
        return (evaluation.stored_hash,)
    bare = evaluation.data_transform is None  # tensors, whose name says nothing
    return (evaluation.data, evaluation.num_data, evaluation.data_hash if bare else None)


def _stored_words(evaluation: Evaluation) -> str:
    digest = evaluation.stored_hash or evaluation.data_hash
    return f"{evaluation.data}, {evaluation.num_data} data, stored sha256 {digest[:12]}"


def _transform_words(evaluation: Evaluation) -> str:
    description = evaluation.data_transform
    if description is None:
        return "none known"
    fields = ", ".join(f"{name}={value}" for name, value in description.items() if name != "class")
    return description["class"] + (f"({fields})" if fields else "")


def _observed_words(evaluation: Evaluation) -> str:
    observed = evaluation.observed
    return f"{observed}, sha256 {observed.hash[:12]}" if observed else "not known"


DATA = _Aspect(
    "data", _stored, _stored_words, "Evaluate them on the same data (the same --data, --split and --num_data)"
)
TRANSFORM = _Aspect(
    "transform",
    lambda evaluation: str(sorted((evaluation.data_transform or {}).items())),
    _transform_words,
    "Transform the data alike: data.with_transform(...), on the command line --data.transform CLASS",
)
MEASURE = _Aspect(
    "base measure",
    lambda evaluation: evaluation.base_measure,
    lambda evaluation: MEASURES.get(evaluation.base_measure or "", "not known"),
    "The logarithm of a probability is not one of a density: choose likelihoods of one measure",
)
COVARIATES = _Aspect(
    "covariates",
    lambda evaluation: evaluation.num_covariates,
    lambda evaluation: f"{evaluation.num_covariates} for each datum" if evaluation.num_covariates else "none",
    "log p(x | c) is not log p(x): give all models the same covariates",
)
OBSERVED = _Aspect(
    "what they observe of the data",
    lambda evaluation: evaluation.observed.hash if evaluation.observed else None,
    _observed_words,
    "Let all models observe the same values, obs=x, under the same masks; what is drawn or transformed must be so "
    "before the call. Where it is not known, evaluate again",
)
NORMALIZATION = _Aspect(
    "normalization",
    lambda evaluation: evaluation.unnormalized,
    lambda evaluation: f"not normalized: {evaluation.unnormalized}" if evaluation.unnormalized else "normalized",
    "The score of an unnormalized model is not a log-probability: remove its factors, and score values in the support",
)
VALUES = _Aspect(
    "the values that were scored, though stored data and transform agree",
    lambda evaluation: evaluation.data_hash,
    lambda evaluation: f"sha256 {evaluation.data_hash[:12]}",
    "Draw binarization and noise with one seed (--data.seed), in one dtype, and give all models the same covariates",
)
