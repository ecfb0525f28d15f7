"""Bounds on log p(x) by annealing: a lower bound, and for simulated data a lower and an upper bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyrovae.results.estimates import (
    ROUNDING,
    Difference,
    Estimate,
    PairedDifference,
    certified_margin,
    certified_text,
    reasons,
    unnormalized_text,
)
from pyrovae.results.tables import Number, Table, Tabled
from pyrovae.runtime.annotations import CheckedFields, PositiveInt

SIMULATED = "simulated from the model"
MANY_ERRORS = 4  # standard errors of a negative gap beyond chance
CONTRADICTION = (
    "the two bounds contradict each other: upper - lower is {} nats, so that one of them is wrong; a density of model "
    "or guide is random, or is not the density of its draws"
)


@dataclass(frozen=True)
class AnnealingSettings(CheckedFields):
    """Settings of annealed chains.

    Attributes:
        num_chains: K, independent chains per datum.
        num_temperatures: T, steps from the start to p(x, z); a single step is importance sampling.
        num_leapfrog: leapfrog steps per transition.
        seed: seed of all random streams.

    Raises:
        ValueError: if a number is not an integer >= 1.

    """

    num_chains: PositiveInt = 16
    num_temperatures: PositiveInt = 30
    num_leapfrog: PositiveInt = 5
    seed: int = 0

    def __str__(self) -> str:
        return (
            f"from the guide: {self.num_chains} chains, {self.num_temperatures} temperatures, "
            f"{self.num_leapfrog} leapfrog steps, seed {self.seed}"
        )


@dataclass(frozen=True, repr=False, kw_only=True)
class AnnealedBounds(Tabled):
    """Fields of the bounds by annealing.

    Attributes:
        acceptance: mean acceptance probability over the data; None without transitions.
        lowest_acceptance: lowest mean acceptance probability of a datum, in either direction.
        num_not_finite: number of data without a bound, since all their weights are zero or NaN.
        num_lost: number of NaN weights; they count as zero, which keeps a lower bound low and an upper bound high.
        settings: settings of the chains.
        num_data: number of data.
        data: name of the data.
        unnormalized: reason why the model is not a normalized distribution; None if it is.
        density: the estimated density, such as ``p(x | c)``.
        certified: whether the tables print bounds that hold with 95 % confidence; not for scoring in fewer bits than
            float32, nor for a model that draws x itself.
        per_datum: values ``(N,)`` by name; not part of the JSON.

    """

    acceptance: float | None
    lowest_acceptance: float | None
    num_not_finite: int
    num_lost: int
    settings: AnnealingSettings
    num_data: int
    data: str = "the given data"
    unnormalized: str | None = None
    density: str = "p(x)"
    certified: bool = True
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    def _notes(self, lower: Estimate, upper: Estimate | None = None, gap: Estimate | None = None) -> list[str]:
        """Return the reasons for missing numbers, and certified bounds, the contradiction of two bounds, or the warning
        for an unnormalized model.
        """
        bounds = [lower] if upper is None else [lower, upper]
        notes = [f"{label}: {why}" for why, labels in reasons(bounds).items() for label in labels]
        if self.num_not_finite:
            notes.append(f"{self.num_not_finite} data have no weight that is positive and finite")
        if self.num_lost:
            notes.append(f"{self.num_lost} weights are not a number and count as zero")
        if self.unnormalized is not None:
            notes.append(unnormalized_text(self.density, self.unnormalized))
        elif gap is not None and gap.is_below(MANY_ERRORS) and (gap.value or 0.0) < -ROUNDING:
            notes.append(CONTRADICTION.format(Number(gap.value, error=gap.se_data)))
        elif self.certified and lower.value is not None and bounds[-1].value is not None:
            margin = certified_margin(self.num_data)
            most = None if upper is None else bounds[-1].value + margin
            notes.append(certified_text(self.density, lower.value - margin, most))
        return notes


@dataclass(frozen=True, repr=False, kw_only=True)
class Annealing(AnnealedBounds):
    """The lower bound on log p(x) of annealed importance sampling (AIS).

    Attributes:
        bound: the estimate; its number of particles is the number of chains.
        ess: effective number of chains, mean over the data: K for equal weights, 1 if one weight dominates.
        lowest_ess: lowest effective number of chains of a datum.
        per_datum: "AIS", "acceptance", "ESS" and, for several chains, "AIS variance", the Monte Carlo variance of
            "AIS", each ``(N,)``.

    """

    bound: Estimate
    ess: float
    lowest_ess: float

    def compare_with(self, name: str, values: Tensor, *, se_monte_carlo: float | None = None) -> PairedDifference:
        """Return the paired difference of AIS and another bound; either may be higher.

        Args:
            name: name of the other bound, such as ``L_5000``.
            values: ``(N,)``, the other bound of the same data, nats.
            se_monte_carlo: Monte Carlo standard error of its mean, nats; None if unknown.

        """
        errors = (self.bound.se_monte_carlo, se_monte_carlo)
        noise = None if errors[0] is None or errors[1] is None else math.hypot(errors[0], errors[1])
        ours = self.per_datum["AIS"]
        values = values.to(ours.device)
        difference = Difference.over_data(ours, values)
        return PairedDifference("AIS", name, difference, int((ours > values).sum()), len(ours), noise)

    def tables(self) -> tuple[Table, ...]:
        """Return the table of the bound, its acceptance and its effective number of chains."""
        acceptance = (Number(self.acceptance, 2), Number(self.lowest_acceptance, 2))
        row = (self.bound.label, *self.bound.cells(), *acceptance, Number(self.ess, 1), Number(self.lowest_ess, 1))
        table = Table(
            header=("", "nats", "se data", "se MC", "acceptance", "lowest", "ESS", "lowest ESS"),
            rows=(row,),
            title=(
                f"Annealed importance sampling on {self.data}, {self.num_data} data, {self.settings}.",
                f"A lower bound on log {self.density}, in expectation; nats per datum, larger is better.",
            ),
            notes=tuple(self._notes(self.bound)),
        )
        return (table,)


@dataclass(frozen=True, repr=False, kw_only=True)
class Sandwich(AnnealedBounds):
    """A lower and an upper bound on log p(x) of the same data, simulated from the model.

    Attributes:
        lower: AIS.
        upper: BDMC: reversed chains that start at the z from which the datum was simulated.
        gap: upper - lower, paired; log p(x) lies between the two, in expectation.
        reverse_acceptance: mean acceptance probability of the reversed chains.
        per_datum: "AIS", "BDMC", "acceptance", "reverse acceptance" and "ESS", each ``(N,)``.

    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    reverse_acceptance: float | None
    data: str = SIMULATED

    def tables(self) -> tuple[Table, ...]:
        """Return the table of both bounds and the gap between them."""
        table = Table(
            header=("", "nats", "se data", "se MC", "acceptance"),
            rows=(
                ("lower, AIS", *self.lower.cells(), Number(self.acceptance, 2)),
                ("upper, BDMC", *self.upper.cells(), Number(self.reverse_acceptance, 2)),
                ("upper - lower", *self.gap.cells(), ""),
            ),
            title=(
                f"Bidirectional Monte Carlo on {self.num_data} data SIMULATED from the model, {self.settings}.",
                f"In expectation log {self.density} lies between the two; nats per datum.",
            ),
            notes=(
                "Both bounds hold for data simulated from the model, not for those it was given: only there is a "
                "draw of the posterior known, the z that the datum came from.",
                *self._notes(self.lower, self.upper, self.gap),
            ),
        )
        return (table,)
