"""What annealing says of log p(x): a lower bound, and for simulated data the sandwich of a lower and an upper one."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pyrovae.results.estimates import Estimate, PairedDifference
from pyrovae.results.tables import Number, Table, Tabled
from pyrovae.runtime.arguments import require_integer

SIMULATED = "simulated from the model"


@dataclass(frozen=True)
class AnnealingSettings:
    """How chains were run.

    Attributes:
        num_chains: K, independent chains of each datum.
        num_temperatures: T, steps from the start to p(x, z); with a single one it is importance sampling.
        num_leapfrog: leapfrog steps of each transition.
        from_prior: whether the chains start from p(z), not from q(z | x).
        seed: of all random streams.

    Raises:
        ValueError: if a number is not a whole one of at least 1.

    """

    num_chains: int = 16
    num_temperatures: int = 30
    num_leapfrog: int = 5
    from_prior: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "num_leapfrog"):
            require_integer(getattr(self, name), name=name)

    def __str__(self) -> str:
        """Return them as a sentence."""
        start = "the prior" if self.from_prior else "the guide"
        return (
            f"from {start}: {self.num_chains} chains, {self.num_temperatures} temperatures, "
            f"{self.num_leapfrog} leapfrog steps, seed {self.seed}"
        )


@dataclass(frozen=True)
class Annealing(Tabled):
    """The lower bound on log p(x) of annealed importance sampling.

    Attributes:
        bound: the estimate, its number of particles being that of chains.
        acceptance: mean probability over data with which a proposal was accepted; None without transitions.
        lowest_acceptance: that of the datum where it is lowest.
        ess: effective number of chains, mean over data: K where all chains weigh the same, 1 where one decides.
        lowest_ess: that of the datum where it is lowest.
        num_not_finite: data whose weights are all zero or not a number, so that they have no bound.
        num_lost: weights that are not a number; they count as zero, which keeps the bound a lower one.
        settings: of the chains.
        num_data: how many data there are.
        data: their name.
        per_datum: "AIS", "acceptance", "ESS" and, for several chains, "AIS variance", the Monte Carlo variance of
            "AIS", each ``(N,)``; not part of the JSON.

    """

    bound: Estimate
    acceptance: float | None
    lowest_acceptance: float | None
    ess: float
    lowest_ess: float
    num_not_finite: int
    num_lost: int
    settings: AnnealingSettings
    num_data: int
    data: str = "the given data"
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    def compare_with(self, name: str, values: Tensor) -> PairedDifference:
        """Return the paired difference to another bound, which AIS need not exceed.

        Args:
            name: of the other bound, such as ``L_5000``.
            values: ``(N,)``, that bound of the same data, nats.

        """
        return PairedDifference.over_data("AIS", self.per_datum["AIS"], name, values)

    def tables(self) -> tuple[Table, ...]:
        """Return its table."""
        return (
            Table(
                header=("", "nats", "se data", "se MC", "acceptance", "lowest", "ESS", "lowest"),
                rows=(
                    (
                        self.bound.label,
                        *self.bound.cells(),
                        Number(self.acceptance, 2),
                        Number(self.lowest_acceptance, 2),
                        Number(self.ess, 1),
                        Number(self.lowest_ess, 1),
                    ),
                ),
                title=(
                    f"Annealed importance sampling on {self.data}, {self.num_data} data, {self.settings}.",
                    "A lower bound on log p(x), in expectation; nats per datum, larger is better.",
                ),
                notes=tuple(_notes((self.bound,), self.num_not_finite, self.num_lost)),
            ),
        )


@dataclass(frozen=True)
class Sandwich(Tabled):
    """A lower and an upper bound on log p(x) of the same data, simulated from the model.

    Attributes:
        lower: AIS.
        upper: BDMC, by the reversed chains that start at the z which the datum was simulated from.
        gap: upper - lower, paired; log p(x) lies between, in expectation.
        acceptance: of the forward chains, mean over data; None without transitions.
        reverse_acceptance: of the reversed chains.
        lowest_acceptance: the lower of the two, of the datum where it is lowest.
        num_not_finite: data without one of the bounds.
        num_lost: weights that are not a number; they count as zero, which keeps the bounds apart.
        settings: of the chains.
        num_data: how many data were simulated.
        data: their name.
        per_datum: "AIS", "BDMC", "acceptance", "reverse acceptance" and "ESS", each ``(N,)``; not part of the JSON.

    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    acceptance: float | None
    reverse_acceptance: float | None
    lowest_acceptance: float | None
    num_not_finite: int
    num_lost: int
    settings: AnnealingSettings
    num_data: int
    data: str = SIMULATED
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    def tables(self) -> tuple[Table, ...]:
        """Return its table."""
        return (
            Table(
                header=("", "nats", "se data", "se MC", "acceptance"),
                rows=(
                    ("lower, AIS", *self.lower.cells(), Number(self.acceptance, 2)),
                    ("upper, BDMC", *self.upper.cells(), Number(self.reverse_acceptance, 2)),
                    ("upper - lower", *self.gap.cells(), ""),
                ),
                title=(
                    f"Bidirectional Monte Carlo on {self.num_data} data SIMULATED from the model, {self.settings}.",
                    "In expectation log p(x) lies between the two; nats per datum.",
                ),
                notes=(
                    "Both bounds hold for data simulated from the model, not for those it was given: only there is a "
                    "draw of the posterior known, the z that the datum came from.",
                    *_notes((self.lower, self.upper), self.num_not_finite, self.num_lost),
                ),
            ),
        )


def _notes(estimates: tuple[Estimate, ...], num_not_finite: int, num_lost: int) -> list[str]:
    """Return what is missing, and why."""
    notes = list(dict.fromkeys(f"{estimate.label}: {estimate.why}" for estimate in estimates if estimate.why))
    if num_not_finite:
        notes.append(f"{num_not_finite} data have no weight that is positive and finite")
    if num_lost:
        notes.append(f"{num_lost} weights are not a number and count as zero")
    return notes
