"""Table of models that may be compared: paired differences with their intervals, and a ranking."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pyrovae.results.estimates import Difference, Estimate, copies_text
from pyrovae.results.tables import Cell, Interval, Number, Table, Tabled, percent
from pyrovae.results.training_seeds import LEVEL, MOST_SEEDS, POWER, holm, num_data_needed, num_seeds_needed

ONE_SEED = (
    "Standard errors and intervals are over the data, for these very weights, of one training seed. Another seed moves "
    "L_K too, by an amount that one seed cannot show: a difference between single trainings need not be one between "
    "models, resolved or not."
)
SEEDS = (
    "Bounds are means over training seeds; se data is their error over the data alone. Errors and intervals of "
    "differences are over both data and seeds, by Student's t; few seeds make them wide."
)
SMALL_DIFFERENCE = 0.2  # nats, whose cost in data and seeds is stated


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in a comparison, in nats per datum.

    Attributes:
        name: name of the model.
        rank: rank by the bound, 1 for the largest; a model with no resolved difference to the one above shares its
            rank; None without a value.
        bound: L_K at the largest K that all models of the table have, or AIS.
        difference: bound minus the bound of the reference, paired datum by datum; None for the reference itself.
        num_seeds: number of training seeds, over which the bounds are means.
        sd_seeds: standard deviation of the bound over training seeds; None for one seed.
        elbo: the ELBO; None beside AIS, which is on other data.
        reconstruction: first term of the ELBO, likewise.
        kl: second term of the ELBO, likewise.
        p_value: p-value of the difference after Holm's adjustment for the number of differences in the table.
        sd_difference: standard deviation over the data of the paired differences to the reference, nats.
        draws_share: share of the draws in the variance of the mean of these differences.
        is_best: whether the bound is higher than every other, each at the 5 % level after adjustment and by more than
            the gap of the other bound; never if all have one training seed or the gap of another is not known.
        bits_per_dimension: bits per dimension at the bound, where defined.
        kl_methods: method of the KL of each latent site.
        gap: estimated gap from the bound to log p(x), nats; None if it is not known.
        tolerance: largest gap that counts as none, nats.
        cautions: cautions of the evaluations.

    """

    name: str
    rank: int | None
    bound: Estimate
    difference: Difference | None
    num_seeds: int = 1
    sd_seeds: float | None = None
    elbo: Estimate | None = None
    reconstruction: Estimate | None = None
    kl: Estimate | None = None
    p_value: float | None = None
    sd_difference: float | None = None
    draws_share: float | None = None
    is_best: bool = False
    bits_per_dimension: float | None = None
    kl_methods: dict[str, str] = field(default_factory=dict)
    gap: float | None = None
    tolerance: float = 0.0
    cautions: tuple[str, ...] = ()

    def cells(self) -> dict[str, Cell]:
        """Return the cells of the table by the names of their columns."""
        paired: tuple[Cell, Cell, Cell] = ("", "", "")
        if (change := self.difference) is not None:
            resolved = "-" if self.p_value is None else "yes" if self.p_value < LEVEL else "no"
            paired = (Number(change.mean, signed=True, error=change.se), Interval(change.low, change.high), resolved)
        return {
            "model": self.name,
            "rank": "",
            "seeds": str(self.num_seeds),
            "ELBO": Number(self.elbo.value if self.elbo else None),
            "reconstruction": Number(self.reconstruction.value if self.reconstruction else None),
            "KL": Number(self.kl.value if self.kl else None),
            self.bound.label: Number(self.bound.value, bold=self.is_best),
            "se data": Number(self.bound.se_data),
            "sd seeds": Number(self.sd_seeds),
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
        num_data: number of data.
        rows: one row per model.
        steps: difference of each model in the ranking to the next.
        bits_of: the values whose code lengths the bits per dimension are, in words; None where undefined.
        stored: key of the stored values of the data, before any transform.
        annealed: the same models by annealed importance sampling (AIS), if all have it on as many data.
        num_distinct: number of distinct data; None if all differ.

    """

    title: str
    num_particles: int
    reference: str
    num_data: int
    rows: tuple[Row, ...]
    steps: tuple[Difference, ...]
    bits_of: str | None = None
    stored: str = ""
    annealed: ComparisonTable | None = None
    num_distinct: int | None = None

    @property
    def label(self) -> str:
        """Name of the bound: ``L_K`` or ``AIS``."""
        return self.rows[0].bound.label

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names from the largest bound to the smallest, without models that have no value."""
        return ranked_names({row.name: row.bound for row in self.rows})

    def tables(self) -> tuple[Table, ...]:
        """Return the table, and the table of AIS if there is one."""
        return (self.table(), self.annealed.table()) if self.annealed else (self.table(),)

    def table(self) -> Table:
        """Return the table of the models, with the ranking below it."""
        several = len(self.rows) > 1
        left_out = set() if several else {"rank", "difference", "95 % interval", "resolved"}
        left_out |= set() if any(row.elbo for row in self.rows) else {"ELBO", "reconstruction", "KL"}
        left_out |= set() if any(row.num_seeds > 1 for row in self.rows) else {"seeds", "sd seeds"}
        left_out |= {"bits/dim"} if self.bits_of is None else set()
        cells = (row.cells() | {"rank": self._rank_of(row)} for row in self.rows)
        rows = [{name: cell for name, cell in row.items() if name not in left_out} for row in cells]
        num = len(self.rows) - 1
        adjusted = f", adjusted for {num} differences (Holm); the 95 % intervals are not" if num > 1 else ""
        paired = (
            f"difference: {self.label} minus that of {self.reference}, paired datum by datum; resolved: whether it "
            f"differs from 0 at the 5 % level{adjusted}"
        )
        copies = [] if self.num_distinct is None else [f"{copies_text(self.num_data, self.num_distinct)}."]
        return Table(
            header=tuple(rows[0]),
            rows=tuple(tuple(row.values()) for row in rows),
            title=(self.title, paired) if several else (self.title,),
            notes=(*(self._caveats() if several else ()), *copies, *self._reasons()),
        )

    def _caveats(self) -> list[str]:
        label, notes = self.label, []
        if self.steps:
            signs = [" > " if is_resolved else " ~ " for is_resolved in resolved(self.steps)]
            order = "".join(itertools.chain.from_iterable(zip(self.ranking, [*signs, ""], strict=True)))
            meaning = " (~: not told apart from the next at the 5 % level)" if " ~ " in signs else ""
            seeds = " (one training seed each)" if all(row.num_seeds == 1 for row in self.rows) else ""
            notes.append(f"Ranking by {label}{seeds}: {order}{meaning}")
        return notes if label == "AIS" else [*notes, *self._gaps(), *self._power(), *self._errors()]

    def _gaps(self) -> list[str]:
        """Return a note on the gaps to log p(x) that are above the tolerance or not known."""
        gaps = [f"{row.name} about {row.gap:.3f} nats" for row in self.rows if (row.gap or 0.0) > row.tolerance]
        unknown = [row.name for row in self.rows if row.gap is None]
        if unknown:
            gaps.append(f"not known for {'any model' if len(unknown) == len(self.rows) else ', '.join(unknown)}")
        text = f"{self.label} may rank models in another order than log p(x). Gap from {self.label} to log p(x)"
        return [f"{text}: {'; '.join(gaps)}."] if gaps else []

    def _rank_of(self, row: Row) -> str:
        """Return the rank of a model, such as 1= if it shares it."""
        shared = sum(other.rank == row.rank for other in self.rows) > 1
        return "-" if row.rank is None else f"{row.rank}{'=' * shared}"

    def _errors(self) -> list[str]:
        """Return what the standard errors are over."""
        single = [row.name for row in self.rows if row.num_seeds == 1]
        if len(single) == len(self.rows):
            return [ONE_SEED]
        names = ", ".join(single)
        only = f" With one seed, taken to vary as the seeds of the others: {names}." if single else ""
        return [f"{SEEDS}{only}"]

    def _power(self) -> list[str]:
        """Return the numbers of data and seeds that resolve a small difference, and the share of the draws."""
        deviations = [row.sd_difference for row in self.rows if row.sd_difference]
        if not deviations:
            return []
        sd, delta = max(deviations), SMALL_DIFFERENCE
        known = [row.sd_seeds for row in self.rows if row.sd_seeds is not None]
        num_data = num_data_needed(sd, delta)
        takes = takes_of_data = f"{num_data:,} data (here {self.num_data:,})"
        if known:
            deviation = math.sqrt(fmean(value**2 for value in known))
            seeds = num_seeds_needed(deviation, delta, error=sd / math.sqrt(self.num_data))
            takes = f"{seeds} training seeds of each model with these {self.num_data:,} data"
            if seeds is None and num_data > self.num_data:
                takes = f"at least {takes_of_data}, and several training seeds of each model"
            elif seeds is None:
                takes = f"more than {MOST_SEEDS} training seeds of each model"
        text = f"To tell {delta} nats apart (5 % level, power {percent(POWER, 0)}) by paired differences takes {takes}."
        shares = [row.draws_share for row in self.rows if row.draws_share is not None]
        if len(shares) == len(deviations):
            text += f" The Monte Carlo draws are at most {percent(max(shares))} of the variance of these differences."
        return [text]

    def _reasons(self) -> list[str]:
        """Return the cautions, and the reasons for Monte Carlo KL terms and missing numbers, one sentence for each."""
        models: dict[str, list[str]] = {}
        for row in self.rows:
            lines = [
                f"the KL of {site} is estimated by Monte Carlo, since {method}"
                for site, method in row.kl_methods.items()
                if method != "closed form"
            ]
            lines += [f"{bound.label}: {bound.why}" for bound in (row.elbo, row.bound) if bound and bound.why]
            lines += [f"caution: {caution}" for caution in row.cautions]
            if row.difference and row.difference.why:
                lines.append(f"difference: {row.difference.why}")
            for reason in lines:
                models.setdefault(reason, []).append(row.name)
        return [f"{', '.join(names)}: {reason}" for reason, names in models.items()]


def ranked_names(bounds: Mapping[str, Estimate]) -> tuple[str, ...]:
    """Return the names of models from the largest bound to the smallest, without those that have no value."""
    known = {name: bound.value for name, bound in bounds.items() if bound.value is not None}
    return tuple(sorted(known, key=lambda name: -known[name]))


def resolved(steps: Sequence[Difference]) -> list[bool]:
    """Return for each step of a ranking whether its difference is resolved after adjustment."""
    return [p_value is not None and p_value < LEVEL for p_value in holm([step.p_value for step in steps])]
