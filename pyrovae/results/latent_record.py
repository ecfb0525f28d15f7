"""Draws of the latent variables, and their information about the data, unit by unit and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrovae.results.estimates import Estimate
from pyrovae.results.tables import Cell, Number, Table, Tabled

ROWS = 20  # units in a table
LOG_PROBS = "log_prior", "log_likelihood", "log_guide"  # fields of `Particles`


@dataclass(frozen=True, repr=False)
class Particles:
    """Draws of a guide and their log-probabilities.

    Attributes:
        z: values of each latent site, ``(K, B, ...)``.
        log_prior: log p(z), ``(K, B)``, nats.
        log_likelihood: log p(x | z), ``(K, B)``, nats.
        log_guide: log q(z | x), ``(K, B)``, nats.

    """

    z: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor

    def __repr__(self) -> str:
        num_particles, num_data = self.log_prior.shape
        return f"Particles({num_particles} of {num_data} data; latent sites {', '.join(map(repr, self.z))})"

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z | x), ``(K, B)``, nats."""
        return self.log_prior + self.log_likelihood - self.log_guide

    @staticmethod
    def concatenate(parts: Sequence[Particles], dim: int) -> Particles:
        """Return one record of several batches of particles (dim 0) or of data (dim 1)."""
        z = {site: torch.cat([part.z[site] for part in parts], dim) for site in parts[0].z}
        return Particles(z, *(torch.cat([getattr(part, name) for part in parts], dim) for name in LOG_PROBS))


@dataclass(frozen=True)
class Unit:
    """One latent dimension, over the data.

    Attributes:
        name: name, such as ``z[3]``.
        activity: variance over the data of the posterior mean; None where moments are not finite.
        activity_error: standard error of the activity over the data; None likewise.
        active: whether the activity is above 0.01; None likewise.
        variance: mean over the data of the posterior variance; None likewise.
        kl: mean KL(q(z_i | x) || p(z_i)), nats; None where the KL is not a sum over units.
        misfit: KL of the Gaussians with the moments of aggregate posterior and prior, nats; None where the prior
            differs between data.
        verdict: verdict in words.

    """

    name: str
    activity: float | None
    activity_error: float | None
    active: bool | None
    variance: float | None
    kl: float | None
    misfit: float | None
    verdict: str


@dataclass(frozen=True, repr=False)
class Latents(Tabled):
    """Mutual information of codes and data, and the distance of the aggregate posterior from the prior.

    ``E_x KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || p(z))``, where q(z) is the mean of q(z | x) over the data

    Attributes:
        num_data: N.
        num_draws: draws from the posterior of each datum, for its moments.
        num_covariates: elements of the covariates; if any, the information is about x and covariates together.
        units: active units first, then by their KL.
        kl: E_x KL(q(z | x) || p(z)).
        information: mutual information of datum and code under the guide, with q(z) over ``num_aggregate`` data. It
            cannot exceed ``ceiling`` or ``information_above``, and for data that the sample stands for it is a lower
            bound in the mean.
        information_above: the same with each datum left out of its q(z), or ``kl`` if that is smaller: an upper bound
            in the mean.
        marginal_kl: KL(q(z) || p(z)) = ``kl - information``, an upper bound in the mean.
        num_aggregate: M, number of data in q(z).
        num_codes: number of draws of z at which q(z) was evaluated.
        ceiling: log M.
        why_units: reason for units without KL; None if all have one.
        verdict: "collapsed", "not collapsed" or "undecided".
        reason: reason for the verdict, a clause.
        seed: seed of the draws.
        prior_verdict: "fits", "does not fit" or "undecided"; None in records of earlier versions.
        prior_reason: reason for that verdict, a clause.
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
        """Number of active units."""
        return sum(bool(unit.active) for unit in self.units)

    @property
    def num_unknown(self) -> int:
        """Number of units whose activity is unknown, since it is not finite."""
        return sum(unit.active is None for unit in self.units)

    def tables(self) -> tuple[Table, ...]:
        """Return the parts of the KL, and the units."""
        return self._parts_table(), self._units_table()

    def _parts_table(self) -> Table:
        parts = {
            "KL(q(z | x) || p(z))": self.kl,
            "  mutual information I(x; z)": self.information,
            "    at most (each x left out of q(z), or the KL)": self.information_above,
            "  marginal KL(q(z) || p(z))": self.marginal_kl,
        }
        unknown = f", {self.num_unknown} unknown" if self.num_unknown else ""
        return Table(
            ("", "nats", "se data", "se MC"),
            tuple((name, *estimate.cells()) for name, estimate in parts.items()),
            title=(
                f"Latent units, {self.num_data} data: {self.num_active} of {len(self.units)} units are active "
                f"(variance of the mean above 0.01){unknown}",
                f"Are the codes collapsed? {self.verdict}: {self.reason}.",
                *([f"Does the prior fit? {self.prior_verdict}: {self.prior_reason}."] if self.prior_verdict else []),
            ),
            notes=(
                f"q(z) is over {self.num_aggregate} data, at {self.num_codes} codes: I(x; z) cannot exceed "
                f"log {self.num_aggregate} = {self.ceiling:.3f}, and an estimate close to that is only a lower bound",
                *(f"{name.strip()}: {estimate.why}" for name, estimate in parts.items() if estimate.why),
            ),
        )

    def _units_table(self) -> Table:
        def cells(unit: Unit) -> tuple[Cell, ...]:
            activity = Number(unit.activity, 4, error=unit.activity_error)
            return unit.name, activity, Number(unit.variance, 4), Number(unit.kl), Number(unit.misfit), unit.verdict

        left_out = len(self.units) - ROWS
        return Table(
            ("unit", "variance of the mean", "mean variance", "KL", "prior misfit", "verdict"),
            tuple(map(cells, self.units[:ROWS])),
            notes=(
                "prior misfit: of each unit by itself; all units together may be farther from the prior, as above",
                *([f"{left_out} more units are left out"] if left_out > 0 else []),
                *([f"no KL by unit: {self.why_units}"] if self.why_units else []),
            ),
        )
