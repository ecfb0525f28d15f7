"""What the importance weights of a data set say of its largest bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyrovae.results.estimate import Estimate
from pyrovae.results.table import Number, Table, Tabled, percent

SHARES = (0.05, 0.5, 0.95)
ENOUGH_DATA = 30  # from which on Monte Carlo errors of heavy-tailed weights cover


@dataclass(frozen=True)
class Quantiles:
    """The 5 %, 50 % and 95 % quantiles of a diagnostic over the data.

    Attributes:
        low: a twentieth of the data lie below; None where that one is infinite, or none is available.
        median: half of the data lie below.
        high: a twentieth of the data lie above.

    """

    low: float | None
    median: float | None
    high: float | None

    @classmethod
    def of(cls, values: Tensor) -> Quantiles:
        """Return those of values ``(N,)``, NaN (not available) left aside, interpolated between data."""
        known = values[~values.isnan()].double().numpy()
        if not len(known):
            return cls(None, None, None)
        with np.errstate(invalid="ignore"):  # between a finite value and an infinite one
            found = np.quantile(known, SHARES).tolist()
        return cls(*(value if math.isfinite(value) else None for value in found))

    def cells(self, digits: int) -> tuple[Number, ...]:
        """Return them as a row of a table."""
        return tuple(Number(value, digits) for value in (self.low, self.median, self.high))


@dataclass(frozen=True)
class Weights(Tabled):
    """How heavy the weights behind L_K are, how far L_K may lie below log p(x), and whether K is enough.

    Attributes:
        num_particles: K, of the largest rung.
        num_data: N.
        threshold: k-hat above which an average over K weights is not to be trusted; None where K is below 25.
        num_above: data whose k-hat is above it.
        num_unavailable: data without a k-hat.
        why_unavailable: the reasons, in words; None where there are none.
        num_constant: data whose largest weights are all the same, but for rounding, so that k-hat is -inf.
        num_nan: data with a weight that is NaN or infinite.
        num_zero: data whose weights are all zero.
        khat: over the data.
        ess: effective sample sizes.
        largest: shares of the largest weight.
        bias: mean gap of L_K by the delta method, nats; None where one is not finite.
        jackknife: estimate of log p(x) without the 1 / K of the gap; not a bound.
        increment: rise of the mean from the rung before the last, nats.
        increment_error: its standard error over the data, paired.
        power: a of a gap that falls like K^-a over the last three rungs.
        power_error: its standard error.
        extrapolated: the gap that is left at the last rung by the ladder, nats.
        tolerance: nats that may be missing for K to be enough.
        verdict: "K is enough", which holds as far as the guide's draws reach; "K may not be enough" where BDMC does not
            bear that out; "K is not enough", "not asymptotic" or "cannot be told".
        reason: of the verdict, a sentence.

    """

    num_particles: int
    num_data: int
    threshold: float | None
    num_above: int
    num_unavailable: int
    why_unavailable: str | None
    num_constant: int
    num_nan: int
    num_zero: int
    khat: Quantiles
    ess: Quantiles
    largest: Quantiles
    bias: float | None
    jackknife: Estimate
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
        """Share of the data with a k-hat whose k-hat is above its threshold."""
        available = self.num_data - self.num_unavailable
        return self.num_above / available if available else None

    def tables(self) -> tuple[Table, ...]:
        """Return the quantiles over the data, and what is missing in the bound."""
        label = f"L_{self.num_particles}"
        spread = Table(
            ("", "5 %", "median", "95 %"),
            (
                ("k-hat", *self.khat.cells(2)),
                ("effective sample size", *self.ess.cells(1)),
                ("largest weight", *self.largest.cells(4)),
            ),
            title=(f"Weights behind {label}, {self.num_data} data",),
            notes=self._counts(),
        )
        notes = [] if self.jackknife.why is None else [f"jackknife: {self.jackknife.why}"]
        if self.num_above and self.num_data < ENOUGH_DATA:
            notes.append(
                f"k-hat is high, and of fewer than {ENOUGH_DATA} data an interval of 1.96 se MC around {label} covers "
                "its mean about 0.78 (one datum) to 0.93 of the time, not 0.95"
            )
        missing = Table(
            ("", "nats"),
            (
                ("gap by the delta method", Number(self.bias, 4)),
                ("gap by the ladder", Number(self.extrapolated, 4)),
                ("rise at the last rung", Number(self.increment, 4, signed=True, error=self.increment_error)),
                ("power of K in the gap (no unit)", Number(_negative(self.power), 2, error=self.power_error)),
                ("jackknife (not a bound)", Number(self.jackknife.value, 3, error=self.jackknife.se_data)),
            ),
            title=(f"{self.verdict}: {self.reason}",),
            notes=tuple(notes),
        )
        return spread, missing

    def _counts(self) -> tuple[str, ...]:
        notes = []
        if self.share_above is not None:
            notes.append(f"k-hat is above {self.threshold:.2f} for {self.num_above} data ({percent(self.share_above)})")
        for count, what in (
            (self.num_unavailable, f"k-hat is not available, {self.why_unavailable}"),
            (self.num_constant, "weights constant but for rounding, k-hat -inf"),
            (self.num_nan, "a weight that is NaN or infinite"),
            (self.num_zero, "all weights zero"),
        ):
            if count:
                notes.append(f"{count} of {self.num_data} data: {what}")
        return tuple(notes)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
