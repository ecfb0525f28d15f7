"""Means over data with their standard errors: estimates, and paired differences of two models or bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit
from torch import Tensor

from pyrovae.results.tables import Number, percent
from pyrovae.runtime.annotations import PositiveInt, checked

ROUNDING = 1e-3  # nats by which float32 may put a log-probability above 0
ONE_DATUM = "a single datum has no standard error"
CONFIDENCE = 0.95  # of certified bounds
NOT_NORMALIZED = "NOT a log-probability"  # start of the warning for unnormalized models


@dataclass(frozen=True, repr=False)
class Estimate:
    """A mean over data, in nats per datum, with two standard errors.

    Attributes:
        name: "ELBO", "reconstruction", "KL", "IWAE", "AIS" or "BDMC".
        num_particles: K: particles per datum inside the logarithm of an IWAE bound or in the average of the terms of
            the ELBO; chains of AIS and BDMC.
        value: the estimate, or None.
        se_data: standard error over the data; None for a single datum.
        se_monte_carlo: standard error over the draws at fixed data; None for a single draw.
        why: reason for a None.

    """

    name: str
    num_particles: int
    value: float | None
    se_data: float | None
    se_monte_carlo: float | None
    why: str | None = None

    def __repr__(self) -> str:
        if self.value is None:
            return f"{self.label}: {self.why}"
        value, se_data, se_monte_carlo = self.cells()
        return f"{self.label} {value} nats per datum (se data {se_data}, se MC {se_monte_carlo})"

    @property
    def label(self) -> str:
        """The name in tables and figures, such as ``L_50``."""
        return f"L_{self.num_particles}" if self.name == "IWAE" else self.name

    def is_below(self, num_errors: float) -> bool:
        """Return whether the value is below zero by more than a number of either standard error."""
        noise = max(self.se_monte_carlo or 0.0, self.se_data or 0.0)
        return self.value is not None and self.value < -num_errors * noise

    def cells(self, *, signed: bool = False) -> tuple[Number, Number, Number]:
        """Return the value and both standard errors as cells of a table."""
        return Number(self.value, signed=signed), Number(self.se_data), Number(self.se_monte_carlo, 4)

    @classmethod
    def over_data(cls, name: str, num_particles: int, values: Tensor, variances: Tensor) -> Estimate:
        """Return the mean over data.

        Args:
            name: name of the estimate.
            num_particles: K.
            values: ``(N,)``, one value per datum, nats.
            variances: ``(C, N)``, C estimates of the Monte Carlo variance of each value; the largest of their sums over
                the data is used. See `pyrovae.bounds.monte_carlo_variances`.

        """
        if why := _not_finite(values):
            return cls(name, num_particles, None, None, None, why)
        known = variances.sum(1).clamp(min=0)
        known = known[known.isfinite()]
        monte_carlo = known.sqrt().amax().item() / len(values) if len(known) else None
        mean, error = mean_and_error(values)
        return cls(name, num_particles, mean, error, monte_carlo, ONE_DATUM if error is None else None)


@checked
def certified_margin(num_data: PositiveInt) -> float:
    """Return the nats per datum by which to lower a bound so that it holds with a confidence of 95 % over the draws.

    ``mean log p(x_n) >= mean L_K(x_n) - log(1 / (1 - confidence)) / N``

    exp(L_K) of each datum is positive, has the expectation p(x_n) at fixed data, and is independent of the others. The
    product of all exp(L_K(x_n)) / p(x_n) therefore has the expectation 1. By Markov's inequality it exceeds 1 / (1 -
    confidence) with probability 1 - confidence at most; the logarithm of this statement, over N, is the line above. It
    holds for any guide and any K, without a normal approximation, and likewise for AIS with frozen transitions. The
    reverse holds for BDMC, since exp(-BDMC) has the expectation 1 / p(x_n) for data simulated from the model.

    Args:
        num_data: N, number of data.

    """
    return -math.log1p(-CONFIDENCE) / num_data


def certified_text(density: str, least: float, most: float | None = None) -> str:
    """Return a sentence on certified bounds on the mean of log p(x); printed digits are rounded outwards."""
    text = f"with {percent(CONFIDENCE, 0)} confidence over the draws, the mean of log {density} is at least "
    text += f"{math.floor(least * 1000) / 1000:.3f}, for any guide"
    return (
        text if most is None else f"{text}; with the same confidence it is at most {math.ceil(most * 1000) / 1000:.3f}"
    )


def copies_text(num_data: int, num_distinct: int) -> str:
    """Return the note on data of which some are copies."""
    return f"{num_data:,} data, {num_distinct:,} distinct: the standard errors count copies as independent"


def unnormalized_text(density: str, reason: str) -> str:
    """Return the warning for tables of an unnormalized model."""
    return f"{NOT_NORMALIZED}: {density} is not normalized ({reason})"


@checked
def mean_and_error(values: Tensor) -> tuple[float | None, float | None]:
    """Return the mean of values ``(N,)`` and its standard error; None if a value is not finite or N is 1."""
    if not len(values) or not values.isfinite().all():
        return None, None
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return values.mean().item(), error


def reasons(estimates: Iterable[Estimate]) -> dict[str, list[str]]:
    """Return the labels of the estimates with missing numbers, by the reason."""
    labels: dict[str, list[str]] = {}
    for estimate in estimates:
        if estimate.why:
            labels.setdefault(estimate.why, []).append(estimate.label)
    return labels


def require_possible(*estimates: Estimate) -> None:
    """Check that no log-probability of discrete data is above zero by more than four Monte Carlo standard errors.

    Args:
        estimates: bounds on the log-probability of discrete data; bounds from a single draw are not checked.

    Raises:
        ValueError: with the estimate and the usual causes.

    """
    for estimate in estimates:
        error = estimate.se_monte_carlo
        if estimate.value is not None and error is not None and estimate.value > ROUNDING + 4 * error:
            raise ValueError(
                f"a log-probability of discrete data is at most 0, but {estimate.label} is {estimate.value:.4g} nats: "
                "the guide has no density on the prior's measure, or a log_prob is wrong; check the distributions of "
                "the latent variables in model and guide, and those of your own"
            )


@dataclass(frozen=True)
class Difference:
    """A mean difference over data, in nats per datum, with its standard error and 95 % interval.

    Attributes:
        mean: None where a value is not finite.
        se: standard error of the mean over the data; None for a single datum.
        low: lower end of the interval ``mean -+ t se`` with the 0.975 quantile t of Student's t with N - 1 degrees of
            freedom.
        high: upper end of the interval.
        why: reason for a None.
        p_value: probability of a mean as far from 0 or farther if the true mean is 0, two-sided, by the same t.

    """

    mean: float | None
    se: float | None
    low: float | None
    high: float | None
    why: str | None = None
    p_value: float | None = None

    @classmethod
    def over_data(cls, ours: Tensor, theirs: Tensor) -> Difference:
        """Return the mean of ``ours - theirs``, values of the same data ``(N,)``, nats.

        Raises:
            ValueError: if their shapes differ.

        """
        if ours.shape != theirs.shape or ours.ndim != 1:
            raise ValueError(
                f"values are paired datum by datum, but received values of shapes {tuple(ours.shape)} and "
                f"{tuple(theirs.shape)}; compute both on the same data"
            )
        values = ours.double() - theirs.double()
        mean, se = mean_and_error(values)
        if mean is None or se is None:
            return cls(mean, None, None, None, _not_finite(values) or ONE_DATUM)
        return cls.of_mean(mean, se, len(values) - 1)

    @classmethod
    def of_mean(cls, mean: float, se: float, freedom: float) -> Difference:
        """Return the difference from its standard error and the degrees of freedom of this error."""
        half = float(stdtrit(freedom, 0.975)) * se
        p_value = 2 * float(stdtr(freedom, -abs(mean) / se)) if se else float(mean == 0)
        return cls(mean, se, mean - half, mean + half, p_value=p_value)


@dataclass(frozen=True, repr=False)
class PairedDifference:
    """The higher of two bounds on the same data, in nats per datum.

    Attributes:
        first: name of one bound.
        second: name of the other bound.
        difference: first - second, paired datum by datum.
        num_higher: number of data for which the first is higher.
        num_data: number of data.
        se_monte_carlo: standard error of the mean difference of these very data over the draws; None if unknown.

    """

    first: str
    second: str
    difference: Difference
    num_higher: int
    num_data: int
    se_monte_carlo: float | None = None

    @property
    def value(self) -> float | None:
        """Mean difference; None where a value is not finite."""
        return self.difference.mean

    @property
    def se(self) -> float | None:
        """Standard error over the data; None for a single datum."""
        return self.difference.se

    @property
    def noise(self) -> float | None:
        """Error that decides which bound of these data is higher: over the draws, or over the data if that is unknown.

        The error over the data is of the mean of other data too, and may hide a difference that is certain here.
        """
        return self.se if self.se_monte_carlo is None else self.se_monte_carlo

    @property
    def why(self) -> str | None:
        """Reason for a None."""
        return self.difference.why

    def exceeds(self, margin: float) -> bool:
        """Return whether the first bound of these data is higher by more than a margin and two standard errors."""
        return self.value is not None and self.noise is not None and self.value - 2 * self.noise > margin

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.first} and {self.second} are not compared: {self.why}"
        if self.value == 0:
            return f"{self.first} and {self.second} are equal"
        higher, lower = (self.first, self.second) if self.value > 0 else (self.second, self.first)
        count = self.num_higher if self.value > 0 else self.num_data - self.num_higher
        errors = {"the data": self.se, "the draws": self.se_monte_carlo}
        parts = [f"{Number(error)} over {of}" for of, error in errors.items() if error is not None]
        text = f"{higher} is higher than {lower} by {Number(abs(self.value))} nats"
        text += f", +- {' and '.join(parts)}" * bool(parts)
        text += ", which is within two standard errors" * (self.noise is not None and abs(self.value) < 2 * self.noise)
        return f"{text}; it is higher for {count} of {self.num_data} data"

    __repr__ = __str__


def _not_finite(values: Tensor) -> str | None:
    bad = int((~values.isfinite()).sum())
    return f"{bad} of {len(values)} data have a value that is not finite, which no mean may hide" if bad else None
