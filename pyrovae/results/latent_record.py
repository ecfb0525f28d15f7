"""What the latent variables of a pair carry about the data, unit by unit and together."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pyrovae.results.estimates import Estimate
from pyrovae.results.tables import Number, Table, Tabled

ROWS = 20  # of the table of units


@dataclass(frozen=True)
class Unit:
    """One latent dimension, over the data.

    Attributes:
        name: such as ``z[3]``.
        activity: variance over the data of the posterior mean; None where means or variances are not finite.
        activity_error: its standard error over the data; None likewise.
        active: whether the activity is above 0.01; None likewise.
        variance: mean over the data of the posterior variance; None likewise.
        kl: mean KL(q(z_i | x) || p(z_i)), nats; None where the KL is no sum over units.
        misfit: KL of the Gaussians that have the mean and the variance of aggregate posterior and prior, nats; None
            where the prior is not the same for all data.
        verdict: in words.

    """

    name: str
    activity: float | None
    activity_error: float | None
    active: bool | None
    variance: float | None
    kl: float | None
    misfit: float | None
    verdict: str


@dataclass(frozen=True)
class Latents(Tabled):
    """How much the codes tell of the data, and whether the prior is where the codes are.

    ``E_x KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || p(z))``, where q(z) is the mean of q(z | x) over the data

    Attributes:
        num_data: N.
        num_draws: of each datum's posterior, for its means and variances.
        num_covariates: what the data are given with: the information is then that of x and covariates together.
        units: those that are active first, then by their KL.
        kl: E_x KL(q(z | x) || p(z)).
        information: the mutual information of datum and code under the guide, with q(z) over ``num_aggregate`` data. It
            cannot exceed ``ceiling`` or ``information_above``, and for data that the sample stands for it is a lower
            bound in the mean.
        information_above: the same with each datum left out of the q(z) that it is compared with, or ``kl`` where that
            is smaller: an upper bound in the mean.
        marginal_kl: KL(q(z) || p(z)), which is ``kl - information``, and thus an upper bound in the mean.
        num_aggregate: M, data that q(z) is over.
        num_codes: draws of z that it was compared at.
        ceiling: log M.
        why_units: why units have no KL; None if they all do.
        verdict: "collapsed", "not collapsed" or "undecided".
        reason: of the verdict, a clause.
        seed: of the draws.
        prior_verdict: "fits", "does not fit" or "undecided"; None if the record is of an earlier version.
        prior_reason: of that verdict, a clause.
        per_datum: "KL" and, for the data whose codes were compared, "information"; not part of the JSON.

    """

    num_data: int
    num_draws: int
    num_covariates: int
    units: tuple[Unit, ...]
    kl: Estimate
    information: Estimate
    information_above: Estimate
    marginal_kl: Estimate
    num_aggregate: int
    num_codes: int
    ceiling: float
    why_units: str | None
    verdict: str
    reason: str
    seed: int
    prior_verdict: str | None = None
    prior_reason: str | None = None
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def num_active(self) -> int:
        """How many units are known to be active."""
        return sum(bool(unit.active) for unit in self.units)

    @property
    def num_unknown(self) -> int:
        """How many units may be active or not, since they are not finite for some data."""
        return sum(unit.active is None for unit in self.units)

    def tables(self) -> tuple[Table, ...]:
        """Return the split of the KL, and the units."""
        rows = (
            ("KL(q(z | x) || p(z))", self.kl),
            ("  mutual information I(x; z)", self.information),
            ("    at most (each x left out of q(z), or the KL)", self.information_above),
            ("  marginal KL(q(z) || p(z))", self.marginal_kl),
        )
        unknown = f", {self.num_unknown} unknown" if self.num_unknown else ""
        split = Table(
            ("", "nats", "se data", "se MC"),
            tuple((name, *found.cells()) for name, found in rows),
            title=(
                f"Latent units, {self.num_data} data: {self.num_active} of {len(self.units)} units are active "
                f"(variance of the mean above 0.01){unknown}",
                f"Are the codes collapsed? {self.verdict}: {self.reason}.",
                *([f"Does the prior fit? {self.prior_verdict}: {self.prior_reason}."] if self.prior_verdict else []),
            ),
            notes=(
                f"q(z) is over {self.num_aggregate} data, at {self.num_codes} codes: I(x; z) cannot exceed "
                f"log {self.num_aggregate} = {self.ceiling:.3f}, and an estimate close to that is only a lower bound",
                *(f"{name.strip()}: {found.why}" for name, found in rows if found.why),
            ),
        )
        left = len(self.units) - ROWS
        units = Table(
            ("unit", "variance of the mean", "mean variance", "KL", "prior misfit", "verdict"),
            tuple(
                (
                    unit.name,
                    Number(unit.activity, 4, error=unit.activity_error),
                    Number(unit.variance, 4),
                    Number(unit.kl),
                    Number(unit.misfit),
                    unit.verdict,
                )
                for unit in self.units[:ROWS]
            ),
            notes=(
                *([f"{left} more units are left out"] if left > 0 else []),
                *([f"no KL by unit: {self.why_units}"] if self.why_units else []),
            ),
        )
        return split, units
