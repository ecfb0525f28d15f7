"""What was found out beside the bounds of a data set, each on some of its data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyrovae.results.annealing import Annealing, PairedDifference, Sandwich
from pyrovae.results.estimate import Estimate
from pyrovae.results.gaps import Gaps
from pyrovae.results.latents import Latents
from pyrovae.results.table import Table, Tabled


@dataclass(frozen=True)
class Checked(Tabled):
    """What checks of an evaluation found: None where one was not asked for, or could not be had.

    Attributes:
        annealing: AIS on the first data.
        same_data: L_K on these data, at the largest K.
        higher: which of the two is higher.
        sandwich: AIS and BDMC on data simulated from the model.
        gaps: where the gap between the ELBO and the tightest bound comes from, on the first data.
        latents: what the latent variables of the first data carry.
        left_out: why a check that was asked for could not be had, by its name.

    """

    annealing: Annealing | None
    same_data: Estimate | None
    higher: PairedDifference | None
    sandwich: Sandwich | None
    gaps: Gaps | None
    latents: Latents | None
    left_out: dict[str, str]

    def tables(self) -> tuple[Table, ...]:
        """Return the tables of all checks, AIS beside L_K on the same data."""
        records = (self.sandwich, self.gaps, self.latents)
        found = [self.annealed()] if self.annealing else []
        found += [table for record in records if record is not None for table in record.tables()]
        if self.left_out:
            notes = tuple(f"{name}: {why}" for name, why in self.left_out.items())
            found.append(Table(("left out",), tuple((name,) for name in self.left_out), notes=notes))
        return tuple(found)

    def annealed(self) -> Table:
        """Return the table of AIS with L_K on the same data below it, and which is higher."""
        assert self.annealing is not None
        (table,) = self.annealing.tables()
        if self.same_data is None or self.higher is None:
            return table
        cells = (f"{self.same_data.label}, same data", *self.same_data.cells())
        empty = ("",) * (len(table.header) - len(cells))
        return replace(table, rows=(*table.rows, (*cells, *empty)), notes=(f"{self.higher}.", *table.notes))
