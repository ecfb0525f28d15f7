"""Models that may be compared, as one table: paired differences with their intervals, and a ranking."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from pyrovae.results.difference import Difference
from pyrovae.results.estimate import Estimate
from pyrovae.results.table import Cell, Interval, Number, Table

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
class Block:
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
    annealed: Block | None = None

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
