"""What may be compared: the same data, transformed and observed alike, in the same measure, given the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import WHOLE

MEASURES = {"counting": "log-probabilities", "Lebesgue": "log-densities"}
BINARIZED = ("DynamicBinarization", "StaticBinarization", "Threshold")

Evaluations = Mapping[str, Evaluation]


def groups(evaluations: Evaluations) -> list[dict[str, Evaluation]]:
    """Return evaluations in groups of those that may be compared, in the order in which they were given."""
    found: dict[tuple[Any, ...], dict[str, Evaluation]] = {}
    for name, each in evaluations.items():
        key = (*(aspect.key(each) for aspect in (_VALUES, _MEASURE, _COVARIATES, _NORMALIZATION)), _observed(each))
        found.setdefault(key, {})[name] = each
    return list(found.values())


def require_comparable(evaluations: Evaluations) -> None:
    """Refuse evaluations that may not be compared.

    Raises:
        ValueError: with what differs, which of them are on each side, and what to do.

    """
    if len(groups(evaluations)) < 2:
        return
    same_data = len({each.data_hash for each in evaluations.values()}) == 1  # of others, other values are observed
    aspects = (*_ASPECTS, _OBSERVED) if same_data else _ASPECTS
    differing = [aspect for aspect in aspects if len(_sides(evaluations, aspect)) > 1]
    differing = differing or [_VALUES]
    said = "; ".join(f"{aspect.name} ({_said(evaluations, aspect)})" for aspect in differing)
    needless = _TRANSFORM if _MEASURE in differing else None  # another likelihood brings its transform
    remedies = [aspect.remedy for aspect in differing if aspect is not needless]
    raise ValueError(
        f"models are compared on the same data in the same measure, but these differ in {said}. "
        f"{'. '.join(remedies)}; or keep them in separate tables by blocks=True (--blocks)"
    )


def measure_of(evaluation: Evaluation) -> str:
    """Return what was estimated, in words."""
    return MEASURES.get(evaluation.base_measure or "", "log p(x)")


def data_of(evaluation: Evaluation) -> str:
    """Return on which data, and how they were transformed, in words."""
    given = " given covariates" if evaluation.num_covariates else ""
    given += ", NOT log-probabilities" if evaluation.unnormalized else ""
    part = evaluation.observed is not None and evaluation.observed.what != WHOLE
    observed = f" (observed: {evaluation.observed})" if part else ""
    return f"{evaluation.data}: {evaluation.num_data} data{given}{_transform_class(evaluation, ', {}')}{observed}"


@dataclass(frozen=True)
class _Aspect:
    """Something in which evaluations may differ.

    Attributes:
        name: in words.
        key: by which they are told apart.
        words: for what one of them has.
        remedy: a sentence without its full stop.

    """

    name: str
    key: Callable[[Evaluation], Any]
    words: Callable[[Evaluation], str]
    remedy: str


def _sides(evaluations: Evaluations, aspect: _Aspect) -> dict[Any, list[str]]:
    sides: dict[Any, list[str]] = {}
    for name, each in evaluations.items():
        sides.setdefault(aspect.key(each), []).append(name)
    return sides


def _said(evaluations: Evaluations, aspect: _Aspect) -> str:
    """Return the names on each side, and what they have."""
    sides = _sides(evaluations, aspect).values()
    return "; ".join(f"{', '.join(names)}: {aspect.words(evaluations[names[0]])}" for names in sides)


def _stored(evaluation: Evaluation) -> tuple[Any, ...]:
    """Return what tells the data apart, whatever was done to them: their hash, or what is known without it."""
    if evaluation.stored_hash is not None:
        return (evaluation.stored_hash,)
    same = evaluation.data_transform is None  # bare tensors, whose name says nothing
    return (evaluation.data, evaluation.num_data, evaluation.data_hash if same else None)


def _stored_words(evaluation: Evaluation) -> str:
    digest = evaluation.stored_hash or evaluation.data_hash
    return f"{evaluation.data}, {evaluation.num_data} data, stored sha256 {digest[:12]}"


def _transform(evaluation: Evaluation) -> str:
    return str(sorted((evaluation.data_transform or {}).items()))


def _transform_words(evaluation: Evaluation) -> str:
    description = evaluation.data_transform
    if description is None:
        return "none known"
    fields = ", ".join(f"{name}={value}" for name, value in description.items() if name != "class")
    return description["class"] + (f"({fields})" if fields else "")


def _transform_class(evaluation: Evaluation, text: str) -> str:
    return text.format(evaluation.data_transform["class"]) if evaluation.data_transform else ""


def _observed(evaluation: Evaluation) -> str | None:
    return evaluation.observed.hash if evaluation.observed else None


def _observed_words(evaluation: Evaluation) -> str:
    observed = evaluation.observed
    return f"{observed}, sha256 {observed.hash[:12]}" if observed else "not known"


_DATA = _Aspect(
    "data", _stored, _stored_words, "Evaluate them on the same data (the same --data, --split and --num_data)"
)
_TRANSFORM = _Aspect(
    "transform",
    _transform,
    _transform_words,
    "Transform the data alike: data.with_transform(...), on the command line --data.transform CLASS",
)
_MEASURE = _Aspect(
    "base measure",
    lambda each: each.base_measure,
    lambda each: MEASURES.get(each.base_measure or "", "not known"),
    "The logarithm of a probability is not one of a density: choose likelihoods of one measure",
)
_COVARIATES = _Aspect(
    "covariates",
    lambda each: each.num_covariates,
    lambda each: f"{each.num_covariates} for each datum" if each.num_covariates else "none",
    "log p(x | c) is not log p(x): give all models the same covariates",
)
_OBSERVED = _Aspect(
    "what they observe of the data",
    _observed,
    _observed_words,
    "Let all models observe the same values, obs=x, under the same masks; what is drawn or transformed must be so "
    "before the call. Where it is not known, evaluate again",
)
_NORMALIZATION = _Aspect(
    "normalization",
    lambda each: each.unnormalized,
    lambda each: f"not normalized: {each.unnormalized}" if each.unnormalized else "normalized",
    "The score of an unnormalized model is not a log-probability: remove its factors, and score values in the support",
)
_ASPECTS = (_DATA, _TRANSFORM, _MEASURE, _COVARIATES, _NORMALIZATION)
_VALUES = _Aspect(
    "the values that were scored, though stored data and transform agree",
    lambda each: each.data_hash,
    lambda each: f"sha256 {each.data_hash[:12]}",
    "Draw binarization and noise with one seed (--data.seed), in one dtype, and give all models the same covariates",
)
