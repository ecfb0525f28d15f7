"""Evaluations that may be compared, paired datum by datum and ranked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from torch import Tensor

from pyrovae.results.annealing import Annealing
from pyrovae.results.block import Block, Row, ranked
from pyrovae.results.comparable import BINARIZED, data_of, measure_of
from pyrovae.results.difference import Difference
from pyrovae.results.estimate import Estimate
from pyrovae.results.evaluation import Evaluation
from pyrovae.results.observed import WHOLE

STORED = "stored values"

Paired = Callable[[str, str], Difference]


def block_of(evaluations: Mapping[str, Evaluation], wanted: str | None) -> Block:
    """Return evaluations of the same data as a block.

    Args:
        evaluations: by name, all of which may be compared.
        wanted: name of the reference; the first if it is not among them.

    Raises:
        ValueError: if they have no K in common, or one does not hold its values per datum.

    """
    k = _common_k(evaluations)
    first = next(iter(evaluations.values()))
    reference = wanted if wanted is not None and wanted in evaluations else next(iter(evaluations))
    bounds = {name: next(r for r in each.iwae if r.num_particles == k) for name, each in evaluations.items()}

    def paired(name: str, other: str) -> Difference:
        return Difference.over_data(*(_values(evaluations, each, f"L_{k}") for each in (name, other)))

    rows = tuple(
        Row(
            name=name,
            rank=_rank(bounds, name),
            elbo=each.elbo,
            bound=bounds[name],
            largest_k=each.iwae[-1].num_particles,
            difference=None if name == reference else paired(name, reference),
            bits_per_dimension=_bits_at(each, bounds[name].value),
            kl_methods=each.kl_methods,
            version=each.versions.get("pyrovae", "not known"),
        )
        for name, each in evaluations.items()
    )
    return Block(
        title=f"{data_of(first)}, sha256 {first.data_hash[:12]}; {measure_of(first)}, nats per datum",
        num_particles=k,
        reference=reference,
        bits_of=next((words for words in map(_bits_of, evaluations.values()) if words), None),
        stored=_stored(first),
        rows=rows,
        steps=_steps(rows, paired),
        annealed=_annealed(evaluations, reference),
    )


def _annealed(evaluations: Mapping[str, Evaluation], reference: str) -> Block | None:
    """Return the block of AIS, which is on the first of the data; None unless all have it on as many."""
    found = {
        name: each.checked.annealing
        for name, each in evaluations.items()
        if each.checked and each.checked.annealing and "AIS" in each.checked.annealing.per_datum
    }
    if len(found) < len(evaluations) or len({each.num_data for each in found.values()}) > 1:
        return None
    bounds = {name: each.bound for name, each in found.items()}

    def paired(name: str, other: str) -> Difference:
        return Difference.over_data(*(found[each].per_datum["AIS"] for each in (name, other)))

    rows = tuple(
        Row(
            name=name,
            rank=_rank(bounds, name),
            elbo=None,
            bound=bounds[name],
            largest_k=bounds[name].num_particles,
            difference=None if name == reference else paired(name, reference),
            bits_per_dimension=None,
            kl_methods={},
            version=evaluations[name].versions.get("pyrovae", "not known"),
        )
        for name in found
    )
    first = next(iter(evaluations.values()))
    return Block(
        title=_annealed_title(tuple(found.values()), first.num_data),
        num_particles=bounds[reference].num_particles,
        reference=reference,
        bits_of=None,
        stored="",
        rows=rows,
        steps=_steps(rows, paired),
    )


def _annealed_title(found: tuple[Annealing, ...], num_data: int) -> str:
    number = found[0].num_data
    settings = dict.fromkeys(str(each.settings) for each in found)
    which = "these data" if number == num_data else f"the first {number} of these data"
    return f"Annealed importance sampling (AIS) on {which}, {' or '.join(settings)}; nats per datum"


def _common_k(evaluations: Mapping[str, Evaluation]) -> int:
    """Return the largest K that all have."""
    common = set.intersection(*({rung.num_particles for rung in each.iwae} for each in evaluations.values()))
    if common:
        return max(common)
    ladders = "; ".join(
        f"{name}: {', '.join(str(rung.num_particles) for rung in each.iwae)}" for name, each in evaluations.items()
    )
    raise ValueError(
        f"models are compared at the largest K that all have, but these have no K in common ({ladders}); evaluate "
        "them with the same ks, so that L_K can be compared"
    )


def _values(evaluations: Mapping[str, Evaluation], name: str, label: str) -> Tensor:
    """Return a bound of each datum ``(N,)``."""
    if label not in evaluations[name].per_datum:
        raise ValueError(
            f"models are paired datum by datum, but {name!r} holds no values of {label} per datum; its JSON does not: "
            "read the whole report by report.read_report"
        )
    return evaluations[name].per_datum[label]


def _steps(rows: tuple[Row, ...], paired: Paired) -> tuple[Difference, ...]:
    """Return the difference of each model in the ranking to the next."""
    return tuple(paired(row.name, following.name) for row, following in itertools.pairwise(ranked(rows)))


def _rank(bounds: Mapping[str, Estimate], name: str) -> int | None:
    value = bounds[name].value
    if value is None:
        return None
    return 1 + sum(other.value is not None and other.value > value for other in bounds.values())


def _bits_at(evaluation: Evaluation, nats: float | None) -> float | None:
    """Return bits per dimension at another bound of an evaluation, which holds those of its last."""
    last, volume = evaluation.iwae[-1].value, evaluation.log_abs_det_jacobian or 0.0
    if evaluation.bits_per_dimension is None or nats is None or last is None or last + volume == 0:
        return None
    return evaluation.bits_per_dimension * (nats + volume) / (last + volume)


def _stored(evaluation: Evaluation) -> str:
    """Return what tells apart the stored values whose code length the bits are."""
    stored = evaluation.stored_hash or f"{evaluation.data}: {evaluation.num_data}"
    observed = evaluation.observed
    part = observed.hash if observed is not None and observed.what != WHOLE else ""
    return f"{stored} {evaluation.num_covariates} covariates {part}"


def _bits_of(evaluation: Evaluation) -> str | None:
    if evaluation.bits_per_dimension is None:
        return None
    transform = (evaluation.data_transform or {}).get("class")
    return "binary values" if transform in BINARIZED else STORED
