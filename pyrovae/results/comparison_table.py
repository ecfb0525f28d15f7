"""Table of models that may be compared: paired differences with their intervals, and a ranking."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from pyrovae.results.estimates import Difference, Estimate
from pyrovae.results.tables import Cell, Interval, Number, Table, Tabled

SEEDS = (
    "Standard errors and intervals are over the data, for these very weights. Another training seed moves L_K too, on "
    "MNIST by 0.04 to 0.2 nats: a difference below about 0.3 between single trainings means little, resolved or not."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in a comparison, in nats per datum.

    Attributes:
        name: name of the model.
        rank: rank by the bound, 1 for the largest; None without a value.
        bound: L_K at the largest K that all models of the table have, or AIS.
        difference: bound minus the bound of the reference, paired datum by datum; None for the reference itself.
        version: version of pyrovae that evaluated the model.
        largest_k: largest K of the evaluation; 0 beside AIS.
        elbo: the ELBO; None beside AIS, which is on other data.
        bits_per_dimension: bits per dimension at the bound, where defined.
        kl_methods: method of the KL of each latent site.

    """

    name: str
    rank: int | None
    bound: Estimate
    difference: Difference | None
    version: str
    largest_k: int = 0
    elbo: Estimate | None = None
    bits_per_dimension: float | None = None
    kl_methods: dict[str, str] = field(default_factory=dict)

    def cells(self) -> dict[str, Cell]:
        """Return the cells of the table by the names of their columns."""
        paired: tuple[Cell, Cell, Cell] = ("", "", "")
        if (change := self.difference) is not None:
            resolved = "-" if change.resolved is None else "yes" if change.resolved else "no"
            paired = (Number(change.mean, signed=True, error=change.se), Interval(change.low, change.high), resolved)
        return {
            "model": self.name,
            "rank": "-" if self.rank is None else str(self.rank),
            "ELBO": Number(self.elbo.value if self.elbo else None),
            self.bound.label: Number(self.bound.value),
            "se data": Number(self.bound.se_data),
            "bits/dim": Number(self.bits_per_dimension, 4),
            **dict(zip(("difference", "95 % interval", "resolved"), paired, strict=True)),
        }


@dataclass(frozen=True, repr=False)
class ComparisonTable(Tabled):
    """Models that scored the same data in the same measure.

    Attributes:
        title: data, number, transform, hash and measure in words.
        num_particles: K of L_K, or chains of AIS.
        reference: name of the model to which the others are compared.
        rows: one row per model.
        steps: difference of each model in the ranking to the next.
        bits_of: the values whose code lengths the bits per dimension are, in words; None where undefined.
        stored: key of the stored values of the data, before any transform.
        annealed: the same models by annealed importance sampling (AIS), if all have it on as many data.

    """

    title: str
    num_particles: int
    reference: str
    rows: tuple[Row, ...]
    steps: tuple[Difference, ...]
    bits_of: str | None = None
    stored: str = ""
    annealed: ComparisonTable | None = None

    @property
    def label(self) -> str:
        """Name of the bound: ``L_K`` or ``AIS``."""
        return self.rows[0].bound.label

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names from the largest bound to the smallest, without models that have no value."""
        return ranked_names(self.rows)

    def tables(self) -> tuple[Table, ...]:
        """Return the table, and the table of AIS if there is one."""
        return (self.table(), self.annealed.table()) if self.annealed else (self.table(),)

    def wide_table(self) -> Table:
        """Return both tables as one, without sentences."""
        main, *others = self.tables()
        for other in others:
            names = (name if name == "AIS" else f"AIS {name}" for name in other.header[1:])
            rows = zip(main.rows, other.rows, strict=True)
            main = Table((*main.header, *names), tuple((*row, *more[1:]) for row, more in rows))
        return Table(main.header, main.rows)

    def table(self) -> Table:
        """Return the table of the models, with the ranking below it."""
        several = len(self.rows) > 1
        left_out = set() if several else {"rank", "difference", "95 % interval", "resolved"}
        left_out |= set() if any(row.elbo for row in self.rows) else {"ELBO"}
        left_out |= {"bits/dim"} if self.bits_of is None else set()
        rows = [{name: cell for name, cell in row.cells().items() if name not in left_out} for row in self.rows]
        paired = (
            f"difference: {self.label} minus that of {self.reference}, paired datum by datum; resolved: whether its "
            "95 % interval excludes 0"
        )
        return Table(
            header=tuple(rows[0]),
            rows=tuple(tuple(row.values()) for row in rows),
            title=(self.title, paired) if several else (self.title,),
            notes=(*(self._caveats() if several else ()), *self._reasons()),
        )

    def _caveats(self) -> list[str]:
        label, notes = self.label, []
        if self.steps:
            signs = [" > " if step.resolved else " ~ " for step in self.steps]
            order = "".join(itertools.chain.from_iterable(zip(self.ranking, [*signs, ""], strict=True)))
            meaning = " (~: not told apart by their paired 95 % interval)" if " ~ " in signs else ""
            notes.append(f"Ranking by {label}: {order}{meaning}")
        further = [f"{row.name} (up to {row.largest_k})" for row in self.rows if row.largest_k > self.num_particles]
        if further:
            notes.append(
                f"{label} is compared, the largest K that all models have; evaluated further: {', '.join(further)}."
            )
        versions = dict.fromkeys(row.version for row in self.rows)
        if len(versions) > 1:
            notes.append(f"Evaluated by different versions of pyrovae: {', '.join(versions)}.")
        return notes if label == "AIS" else [*notes, SEEDS]

    def _reasons(self) -> list[str]:
        """Return the reasons for Monte Carlo KL terms and for missing numbers, one sentence per reason."""
        models: dict[str, list[str]] = {}
        for row in self.rows:
            lines = [
                f"the KL of {site} is estimated by Monte Carlo, since {method}"
                for site, method in row.kl_methods.items()
                if method != "closed form"
            ]
            lines += [f"{bound.label}: {bound.why}" for bound in (row.elbo, row.bound) if bound and bound.why]
            if row.difference and row.difference.why:
                lines.append(f"difference: {row.difference.why}")
            for reason in lines:
                models.setdefault(reason, []).append(row.name)
        return [f"{', '.join(names)}: {reason}" for reason, names in models.items()]


def ranked_names(rows: tuple[Row, ...]) -> tuple[str, ...]:
    """Return the names of rows from the largest bound to the smallest, without rows that have no value."""
    ranked = sorted((row for row in rows if row.rank is not None), key=lambda row: row.rank or 0)
    return tuple(row.name for row in ranked)
