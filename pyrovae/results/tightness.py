"""What the importance weights of a data set say of its largest bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from pyrovae.results.estimates import Estimate
from pyrovae.results.tables import Number, Table, Tabled, percent

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
            bear that out; "K is not enough", "not asymptotic" or "unknown".
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


@dataclass(frozen=True)
class Gaps(Tabled):
    """Three bounds on log p(x) of the same data, and the steps between them, nats per datum.

    ``bound - ELBO = (refined - ELBO) + (bound - refined)``, the amortization gap and the approximation gap

    Steps are differences datum by datum, and so are their standard errors over the data.

    *Inference suboptimality in variational autoencoders (Cremer, Li, Duvenaud 2018)*, https://arxiv.org/abs/1801.03558

    Attributes:
        elbo: of the guide, with closed-form KL terms where they are right.
        refitted: the ELBO of the guide after its own parameters were fitted to these data.
        refined: the ELBO of a diagonal Gaussian over the unconstrained latent vector, found for each datum by itself.
        bound: the tightest bound, an estimate of log p(x) from below; its name is the label.
        amortization: refined - ELBO: what one encoder for all data costs; negative where the guide has a wider family
            than the diagonal Gaussian.
        overfitting: refitted - ELBO, the part of the amortization gap that an encoder fitted to these data would not
            have.
        approximation: bound - refined: what a diagonal Gaussian costs.
        total: bound - ELBO.
        num_data: how many data there are.
        seed: of all random streams.
        settings: draws, steps, epochs, batch size, device and dtype.
        notes: sentences on how the bounds were found, and on what should not be read off them.
        data: their name.
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
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The bounds, then the steps between them."""
        bounds = (self.elbo, self.refitted, self.refined, self.bound)
        return (*bounds, self.amortization, self.overfitting, self.approximation, self.total)

    def tables(self) -> tuple[Table, ...]:
        """Return the bounds, and the steps between them."""
        rows = [(self.elbo, ""), (self.refitted, "  "), (self.refined, ""), (self.bound, "")]
        bounds = Table(
            header=("", "nats", "se data", "se MC"),
            rows=tuple(
                (indent + bound.label, *bound.cells())
                for bound, indent in rows
                if bound.value is not None or not indent
            ),
            title=(
                f"Where the gap comes from, on {self.data}: {self.num_data} data, seed {self.seed}",
                "Bounds on log p(x) from below, nats per datum, larger is better.",
            ),
        )
        rows = [(self.amortization, ""), (self.overfitting, "  "), (self.approximation, ""), (self.total, "")]
        steps = Table(
            header=("gap", "nats", "se data", "se MC", "share"),
            rows=tuple(
                (indent + step.name, *step.cells(signed=True), self._share(step))
                for step, indent in rows
                if step.value is not None or not indent
            ),
            title=("Steps between them; standard errors are of differences datum by datum.",),
            notes=(*self.notes, *self._whys()),
        )
        return bounds, steps

    def share(self, step: Estimate) -> float | None:
        """Return the part of the total gap that a step is, None where that gap is not resolved or a part negative."""
        parts = [self.amortization.value, self.approximation.value, self.total.value, step.value]
        if any(part is None or part < 0 for part in parts) or not self.total.value or step.value is None:
            return None
        noise = max(self.total.se_data or 0.0, self.total.se_monte_carlo or 0.0)
        return None if self.total.value < 3 * noise else step.value / self.total.value

    def _share(self, step: Estimate) -> str:
        share = self.share(step)
        return "-" if share is None else f"{100 * share:.0f} %"

    def _whys(self) -> list[str]:
        """Return the reasons for numbers that are missing, each once."""
        whys: dict[str, list[str]] = {}
        for estimate in self.estimates:
            if estimate.why and estimate is not self.refitted:  # whose reason is that of the over-fitting
                whys.setdefault(estimate.why, []).append(estimate.label)
        return [why if len(names) > 3 else f"{', '.join(names)}: {why}" for why, names in whys.items()]
