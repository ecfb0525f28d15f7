"""Models that may be compared, as one table: paired differences with their intervals, and a ranking."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from pyrovae.results.annealed_bounds import Annealing
from pyrovae.results.comparability import BINARIZED, data_of, groups, measure_of, require_comparable
from pyrovae.results.estimates import Difference, Estimate
from pyrovae.results.evaluation_record import Evaluation
from pyrovae.results.observed_data import WHOLE
from pyrovae.results.tables import Cell, Interval, Number, Table, Tabled

SEEDS = (
    "Standard errors and intervals are over the data, for these very weights. Another training seed moves L_K too, on "
    "MNIST by 0.04 to 0.2 nats: a difference below about 0.3 between single trainings means little, resolved or not."
)


@dataclass(frozen=True)
class Row:
    """One model in a comparison, in nats per datum.

    Attributes:
        name: of the model.
        rank: by the bound, 1 being the largest; None where there is no value.
        elbo: the ELBO; None beside AIS, which is on other data.
        bound: L_K at the largest K that all models of the block have, or AIS.
        largest_k: up to which it was evaluated.
        difference: of the bound to the reference, paired datum by datum; None for the reference itself.
        bits_per_dimension: at that bound, where that is defined.
        kl_methods: for each latent site how its KL was computed.
        version: of pyrovae that evaluated it.

    """

    name: str
    rank: int | None
    elbo: Estimate | None
    bound: Estimate
    largest_k: int
    difference: Difference | None
    bits_per_dimension: float | None
    kl_methods: dict[str, str]
    version: str


@dataclass(frozen=True)
class ComparisonTable:
    """Models that scored the same data in the same measure.

    Attributes:
        title: data, their number, transform, hash and measure in words.
        num_particles: K of L_K, chains of AIS.
        reference: name of the model that the others are compared to.
        bits_of: what bits per dimension are code lengths of, in words; None where they are not defined.
        stored: what tells the data before any transform, and whether they are given covariates, from others.
        rows: one for each model.
        steps: differences of each model in the ranking to the next.
        annealed: the same models by annealed importance sampling (AIS), where all have it on as many data.

    """

    title: str
    num_particles: int
    reference: str
    bits_of: str | None
    stored: str
    rows: tuple[Row, ...]
    steps: tuple[Difference, ...]
    annealed: ComparisonTable | None = None

    @property
    def label(self) -> str:
        """Name of the bound: ``L_K`` or ``AIS``."""
        return self.rows[0].bound.label

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names from the largest bound to the smallest; models without a value are left out."""
        return tuple(row.name for row in ranked(self.rows))

    def tables(self) -> tuple[Table, ...]:
        """Return the table, and that of AIS where there is one."""
        return (self.table(), self.annealed.table()) if self.annealed else (self.table(),)

    def wide(self) -> Table:
        """Return both tables as one, without sentences."""
        main, (other,) = self.table(), self.tables()[1:] or (None,)
        if other is None:
            return Table(main.header, main.rows)
        names = (name if name == "AIS" else f"AIS {name}" for name in other.header[1:])
        rows = zip(main.rows, other.rows, strict=True)
        return Table((*main.header, *names), tuple((*row, *more[1:]) for row, more in rows))

    def table(self) -> Table:
        """Return the table."""
        label, several = self.label, len(self.rows) > 1
        columns = {
            "model": True,
            "rank": several,
            "ELBO": any(row.elbo for row in self.rows),
            label: True,
            "se data": True,
            "bits/dim": self.bits_of is not None,
            **dict.fromkeys(("difference", "95 % interval", "resolved"), several),
        }
        paired = (
            f"difference: {label} minus that of {self.reference}, paired datum by datum; resolved: whether its 95 % "
            "interval excludes 0"
        )
        return Table(
            header=tuple(name for name, show_progress in columns.items() if show_progress),
            rows=tuple(tuple(itertools.compress(_cells(row), columns.values())) for row in self.rows),
            title=(self.title, paired) if several else (self.title,),
            notes=(*(self._caveats() if several else ()), *self._reasons()),
        )

    def _caveats(self) -> list[str]:
        """Return the ranking and what it does not say."""
        label = self.label
        notes = []
        if self.steps:
            signs = [" > " if step.resolved else " ~ " for step in self.steps]
            order = "".join(itertools.chain.from_iterable(zip(self.ranking, [*signs, ""], strict=True)))
            meaning = " (~: not told apart by their paired 95 % interval)" if " ~ " in signs else ""
            notes.append(f"Ranking by {label}: {order}{meaning}")
        smaller = {row.name: row.largest_k for row in self.rows if row.largest_k > row.bound.num_particles}
        if smaller:
            evaluated = ", ".join(f"{name} (up to {k})" for name, k in smaller.items())
            notes.append(f"{label} is compared, the largest K that all models have; evaluated further: {evaluated}.")
        versions = dict.fromkeys(row.version for row in self.rows)
        if len(versions) > 1:
            notes.append(f"Evaluated by different versions of pyrovae: {', '.join(versions)}.")
        return notes if label == "AIS" else [*notes, SEEDS]

    def _reasons(self) -> list[str]:
        """Return why Monte Carlo was used and why numbers are missing, a sentence for each reason."""
        models: dict[str, list[str]] = {}
        for row in self.rows:
            for site, method in row.kl_methods.items():
                if method != "closed form":
                    reason = f"the KL of {site} is estimated by Monte Carlo, since {method}"
                    models.setdefault(reason, []).append(row.name)
            for each in (row.elbo, row.bound):
                if each and each.why:
                    models.setdefault(f"{each.label}: {each.why}", []).append(row.name)
            if row.difference and row.difference.why:
                models.setdefault(f"difference: {row.difference.why}", []).append(row.name)
        return [f"{', '.join(names)}: {reason}" for reason, names in models.items()]


def ranked(rows: tuple[Row, ...]) -> list[Row]:
    """Return rows from the largest bound to the smallest, without those that have none."""
    return sorted((row for row in rows if row.rank is not None), key=lambda row: row.rank or 0)


def _cells(row: Row) -> tuple[Cell, ...]:
    """Return every cell of a row."""
    change = row.difference
    paired: tuple[Cell, Cell, Cell] = ("", "", "")
    if change is not None:
        resolved = "-" if change.resolved is None else "yes" if change.resolved else "no"
        paired = (Number(change.mean, signed=True, error=change.se), Interval(change.low, change.high), resolved)
    return (
        row.name,
        "-" if row.rank is None else str(row.rank),
        Number(row.elbo.value if row.elbo else None),
        Number(row.bound.value),
        Number(row.bound.se_data),
        Number(row.bits_per_dimension, 4),
        *paired,
    )


STORED = "stored values"

Paired = Callable[[str, str], Difference]


def block_of(evaluations: Mapping[str, Evaluation], wanted: str | None) -> ComparisonTable:
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
    return ComparisonTable(
        title=f"{data_of(first)}, sha256 {first.data_hash[:12]}; {measure_of(first)}, nats per datum",
        num_particles=k,
        reference=reference,
        bits_of=next((words for words in map(_bits_of, evaluations.values()) if words), None),
        stored=_stored(first),
        rows=rows,
        steps=_steps(rows, paired),
        annealed=_annealed(evaluations, reference),
    )


def _annealed(evaluations: Mapping[str, Evaluation], reference: str) -> ComparisonTable | None:
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
    return ComparisonTable(
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


SEPARATE = (
    "Nats compare models within a block only: blocks are of different data, of different parts of them, or of "
    "different measures (the logarithm of a probability is not one of a density)."
)
BITS = "Bits per dimension compare these blocks too, being code lengths of the same stored values:"


@dataclass(frozen=True)
class Comparison(Tabled):
    """Several evaluations side by side.

    Attributes:
        blocks: of those that may be compared, in the order in which they were given; one where all may.

    """

    blocks: tuple[ComparisonTable, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """One for each model, block by block."""
        return tuple(row for block in self.blocks for row in block.rows)

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of each block, the last of them saying why there are several."""
        *first, last = (table for block in self.blocks for table in block.tables())
        return (*first, replace(last, notes=(*last.notes, *self._between())))

    def to_csv(self) -> str:
        """Return one table for each block as comma-separated values, an empty line between them."""
        return "\n".join(block.wide().to_csv() for block in self.blocks)

    def _between(self) -> list[str]:
        shared: dict[str, list[str]] = {}
        for block in self.blocks:
            if block.bits_of == STORED:
                shared.setdefault(block.stored, []).append(block.title.split(", sha256")[0])
        bits = [line for titles in shared.values() if len(titles) > 1 for line in (BITS, *titles)]
        return [SEPARATE, *bits] if len(self.blocks) > 1 else []


def compare(evaluations: Mapping[str, Evaluation], *, reference: str | None = None, blocks: bool = False) -> Comparison:
    """Put evaluations on the same data side by side, each paired datum by datum with a reference.

    ``difference = mean over data of L_K(x) - L_K of the reference(x)``, with its standard error and 95 % interval

    Evaluations of other data, of data transformed or observed otherwise, or in another base measure are refused: a
    model that masks half of x, or observes ``2 * x``, scores something else (see `ObservedData`). In blocks they
    stand in separate tables instead, where dequantized data and stored levels have a common unit: with the change of
    variables ``log P(u) >= E log p(x) + log |dx/du|`` both are code lengths of the stored values, in bits per
    dimension.

    L_K bounds log p(x) from below, by a gap that may differ between models. Where all have annealed importance sampling
    on as many of the data, a second table compares that.

    Args:
        evaluations: by the name of the model.
        reference: name of the model that the others are compared to; the first if None. Blocks that do not hold it
            have their own first.
        blocks: whether what may not be compared is put in separate tables, not refused.

    Returns:
        The comparison: printing it gives the table, and it has ``to_markdown``, ``to_latex`` and ``to_csv``.

    Raises:
        ValueError: if there is nothing to compare, evaluations differ in data, transform, measure, covariates or what
            they observe, those of a block have no K in common, or one does not hold its values per datum.
        TypeError: if these are not evaluations by name.

    Example:
        >>> print(compare({"N(0, I)": first, "mixture": second}))

    """
    _check(evaluations, reference)
    if not blocks:
        require_comparable(evaluations)
    return Comparison(tuple(block_of(group, reference) for group in groups(evaluations)))


def _check(evaluations: Mapping[str, Evaluation], reference: str | None) -> None:
    """Refuse what is not a mapping from names to evaluations."""
    if not isinstance(evaluations, Mapping):
        raise TypeError(
            "compare takes evaluations by the name of their model, but received a "
            f"{type(evaluations).__name__}; give for instance {{'first': a, 'second': b}}"
        )
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
