"""Tightness of the bounds: importance weights behind the largest K, and the steps from the ELBO to log p(x)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pyrovae.results.estimates import Estimate, reasons
from pyrovae.results.tables import Number, Table, Tabled, percent

SHARES = (0.05, 0.5, 0.95)
FEW = 0.05  # share of data with a k-hat above its threshold up to which a mean over the data is sound
SMALL_ESS = 2  # median effective sample size below which the weights of a typical datum are one weight
ENOUGH, NOT_ENOUGH, NOT_ASYMPTOTIC = "K is enough", "K is not enough", "not asymptotic"  # verdicts
ENOUGH_DATA = 30  # number of data from which Monte Carlo intervals of heavy-tailed weights cover as they should


@dataclass(frozen=True)
class Quantiles:
    """The 5 %, 50 % and 95 % quantiles of a diagnostic over the data.

    Attributes:
        low: 5 % quantile; None if it is infinite or no value is available.
        median: 50 % quantile.
        high: 95 % quantile.

    """

    low: float | None
    median: float | None
    high: float | None

    @classmethod
    def of(cls, values: Tensor) -> Quantiles:
        """Return the quantiles of values ``(N,)`` without NaN, interpolated between data."""
        known = values[~values.isnan()].double().numpy()
        if not len(known):
            return cls(None, None, None)
        with np.errstate(invalid="ignore"):  # between a finite value and an infinite one
            quantiles = np.quantile(known, SHARES).tolist()
        return cls(*(value if math.isfinite(value) else None for value in quantiles))

    def cells(self, digits: int) -> tuple[Number, ...]:
        """Return the quantiles as cells of a table."""
        return tuple(Number(value, digits) for value in (self.low, self.median, self.high))


@dataclass(frozen=True, repr=False)
class Weights(Tabled):
    """Tails of the importance weights behind L_K, the estimated gap from L_K to log p(x), and whether K is enough.

    Attributes:
        num_particles: K of the largest rung.
        num_data: N.
        threshold: k-hat above which a mean over K weights is unreliable; None for K below 25.
        num_above: number of data with a k-hat above the threshold.
        num_unavailable: number of data without a k-hat.
        num_constant: number of data whose largest weights are equal up to rounding, with a k-hat of -inf.
        num_nan: number of data with a NaN or infinite weight.
        num_zero: number of data whose weights are all zero.
        khat: k-hat over the data.
        ess: effective sample size over the data.
        largest: share of the largest weight over the data.
        bias: mean gap of L_K by the delta method, nats; None where a gap is not finite.
        increment: rise of the mean from the rung before the last, nats.
        increment_error: standard error of the rise over the data, paired.
        power: exponent a of a gap proportional to K^-a over the last three rungs.
        power_error: standard error of the exponent.
        extrapolated: gap left at the last rung by extrapolation of the ladder, nats.
        tolerance: gap up to which K is enough, nats.
        verdict: "K is enough", which holds as far as the guide's draws reach; "K may not be enough" where BDMC
            disagrees; "K is not enough", "not asymptotic" or "unknown".
        reason: reason for the verdict, a sentence.

    """

    num_particles: int
    num_data: int
    threshold: float | None
    num_above: int
    num_unavailable: int
    num_constant: int
    num_nan: int
    num_zero: int
    khat: Quantiles
    ess: Quantiles
    largest: Quantiles
    bias: float | None
    increment: float | None
    increment_error: float | None
    power: float | None
    power_error: float | None
    extrapolated: float | None
    tolerance: float
    verdict: str
    reason: str

    @property
    def share_above(self) -> float | None:
        """Share of the data with a k-hat that have it above the threshold."""
        available = self.num_data - self.num_unavailable
        return self.num_above / available if available else None

    @property
    def gap(self) -> float | None:
        """Estimated gap from L_K to log p(x), nats: the larger of both estimates; None where they are not reliable."""
        known = [gap for gap in (self.bias, self.extrapolated) if gap is not None]
        sound = (1.0 if self.share_above is None else self.share_above) <= FEW and (self.ess.median or 0) >= SMALL_ESS
        if not known or not sound or self.verdict not in (ENOUGH, NOT_ENOUGH):
            return None
        agrees = (max(known) <= self.tolerance) == (self.verdict == ENOUGH)  # not where AIS is higher
        return max(known) if agrees else None

    def tables(self) -> tuple[Table, ...]:
        """Return the quantiles over the data, and the gap that is left."""
        label = f"L_{self.num_particles}"
        quantiles = Table(
            ("", "5 %", "median", "95 %"),
            (
                ("k-hat", *self.khat.cells(2)),
                ("effective sample size", *self.ess.cells(1)),
                ("largest weight", *self.largest.cells(4)),
            ),
            title=(f"Weights behind {label}, {self.num_data} data",),
            notes=self._counts(),
        )
        notes = []
        if self.num_above and self.num_data < ENOUGH_DATA:
            notes.append(
                f"k-hat is high, and of fewer than {ENOUGH_DATA} data an interval of 1.96 se MC around {label} covers "
                "its mean about 0.78 (one datum) to 0.93 of the time, not 0.95"
            )
        power = None if self.power is None else -self.power
        verdict = "whether K is enough is unknown" if self.verdict == "unknown" else self.verdict
        gap = Table(
            ("", "nats"),
            (
                ("gap by the delta method", Number(self.bias, 4)),
                ("gap by the ladder", Number(self.extrapolated, 4)),
                ("rise at the last rung", Number(self.increment, 4, signed=True, error=self.increment_error)),
                ("power of K in the gap (no unit)", Number(power, 2, error=self.power_error)),
            ),
            title=(f"{verdict}: {self.reason}",),
            notes=tuple(notes),
        )
        return quantiles, gap

    def _counts(self) -> tuple[str, ...]:
        notes = [] if self.threshold is not None else ["k-hat needs K of at least 25"]
        if self.share_above is not None:
            notes.append(f"k-hat is above {self.threshold:.2f} for {self.num_above} data ({percent(self.share_above)})")
        counts = {
            "k-hat is not available": self.num_unavailable,
            "weights constant but for rounding, k-hat -inf": self.num_constant,
            "a weight that is NaN or infinite": self.num_nan,
            "all weights zero": self.num_zero,
        }
        notes += [f"{count} of {self.num_data} data: {fault}" for fault, count in counts.items() if count]
        return tuple(notes)


@dataclass(frozen=True, repr=False)
class Gaps(Tabled):
    """Three bounds on log p(x) of the same data, and the steps between them, nats per datum.

    ``bound - ELBO = (refined - ELBO) + (bound - refined)``, the amortization gap and the approximation gap

    Steps and their standard errors are computed from differences datum by datum.

    *Inference suboptimality in variational autoencoders (Cremer, Li, Duvenaud 2018)*, https://arxiv.org/abs/1801.03558

    Attributes:
        elbo: ELBO of the guide, with closed-form KL terms where they are right.
        refitted: ELBO of the guide after a fit of its own parameters to these data.
        refined: ELBO of a diagonal Gaussian over the unconstrained latent vector, optimized for each datum.
        bound: the tightest lower bound on log p(x); its name is the label.
        amortization: refined - ELBO: the cost of one encoder for all data; negative where the family of the guide is
            wider than the diagonal Gaussian.
        overfitting: refitted - ELBO: the part of the amortization gap that a refit to these data removes, at most
            the over-fitting of the guide.
        approximation: bound - refined: the cost of a diagonal Gaussian.
        total: bound - ELBO.
        num_data: number of data.
        seed: seed of all random streams.
        settings: draws, steps, epochs, batch size, device and dtype.
        notes: sentences on the computation of the bounds and on its limits.
        data: name of the data.
        density: the estimated density, such as ``p(x | c)``.
        per_datum: "ELBO", "refitted", "refined" and "bound", each ``(N,)``; not part of the JSON.

    """

    elbo: Estimate
    refitted: Estimate
    refined: Estimate
    bound: Estimate
    amortization: Estimate
    overfitting: Estimate
    approximation: Estimate
    total: Estimate
    num_data: int
    seed: int
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()
    data: str = "the given data"
    density: str = "p(x)"
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The bounds, then the steps between them."""
        bounds = (self.elbo, self.refitted, self.refined, self.bound)
        return (*bounds, self.amortization, self.overfitting, self.approximation, self.total)

    def tables(self) -> tuple[Table, ...]:
        """Return the bounds, and the steps between them."""
        optional = (self.refitted, self.overfitting)  # indented, and left out without a value
        rows = [
            (("  " if e in optional else "") + e.label, e)
            for e in self.estimates
            if e.value is not None or e not in optional
        ]
        num_bounds = 3 + (self.refitted.value is not None)
        bounds = Table(
            header=("", "nats", "se data", "se MC"),
            rows=tuple((label, *bound.cells()) for label, bound in rows[:num_bounds]),
            title=(
                f"Where the gap comes from, on {self.data}: {self.num_data} data, seed {self.seed}",
                f"Bounds on log {self.density} from below, nats per datum, larger is better.",
            ),
        )
        steps = Table(
            header=("gap", "nats", "se data", "se MC", "share"),
            rows=tuple((label, *step.cells(signed=True), self._share(step)) for label, step in rows[num_bounds:]),
            title=("Steps between them; standard errors are of differences datum by datum.",),
            notes=(*self.notes, *self._reasons()),
        )
        return bounds, steps

    def share(self, step: Estimate) -> float | None:
        """Return the share of the total gap that a step is; None if the gap is not resolved or a part is negative."""
        parts = [self.amortization.value, self.approximation.value, self.total.value, step.value]
        if any(part is None or part < 0 for part in parts) or not self.total.value or step.value is None:
            return None
        noise = max(self.total.se_data or 0.0, self.total.se_monte_carlo or 0.0)
        return None if self.total.value < 3 * noise else step.value / self.total.value

    def _share(self, step: Estimate) -> str:
        share = self.share(step)
        return "-" if share is None else percent(share, 0)

    def _reasons(self) -> list[str]:
        estimates = (estimate for estimate in self.estimates if estimate is not self.refitted)
        return [why if len(labels) > 3 else f"{', '.join(labels)}: {why}" for why, labels in reasons(estimates).items()]
