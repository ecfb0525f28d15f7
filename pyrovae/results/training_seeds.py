"""Differences between models of several training seeds, corrections for several comparisons, and power."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from scipy.special import ndtri, stdtrit
from torch import Tensor

from pyrovae.results.estimates import Difference, Estimate, mean_and_error

LEVEL, POWER = 0.05, 0.8  # probability of a false claim, and of finding a difference that exists
MOST_SEEDS = 100  # of each model, in a recommendation


def mean_over_seeds(estimates: Sequence[Estimate], values: Tensor | None = None) -> Estimate:
    """Return the mean of the estimates of one model by several training seeds, which share their data.

    Args:
        estimates: one for each seed.
        values: values of each seed and datum ``(S, N)``; without them the mean has no error over the data.

    """
    first, *others = estimates
    if not others:
        return first
    reason = next((estimate.why for estimate in estimates if estimate.value is None), None)
    if reason is not None:
        return replace(first, value=None, se_data=None, se_monte_carlo=None, why=reason)
    errors = [estimate.se_monte_carlo for estimate in estimates]
    known = [error for error in errors if error is not None]
    return replace(
        first,
        value=fmean(estimate.value for estimate in estimates if estimate.value is not None),
        se_data=None if values is None else mean_and_error(values.mean(0))[1],
        se_monte_carlo=math.hypot(*known) / len(errors) if len(known) == len(errors) else None,
    )


class SeedEffect(NamedTuple):
    """Variance of the effect of one training seed, in squared nats."""

    variance: float
    gross: float  # the same with the interaction of seeds and data, whose relative error is known
    freedom: int  # degrees of freedom of gross


def pool_seed_effects(models: Iterable[Tensor]) -> SeedEffect | None:
    """Return the pooled effect of a seed, for models of one seed; None if no model has two seeds.

    Args:
        models: values of each seed and datum of each model ``(S, N)``.

    """
    effects = [_seed_effect(values) for values in models if len(values) > 1]
    freedom = sum(effect.freedom for effect in effects)
    if not effects:
        return None
    variance, gross = (sum(e.freedom * e[i] for e in effects) / freedom for i in (0, 1))
    return SeedEffect(variance, gross, freedom)


def difference_over_seeds(ours: Tensor, theirs: Tensor, *, pooled: SeedEffect | None = None) -> Difference:
    """Return the mean difference of two models, with an error over both data and training seeds.

    ``y[s, n] = mean of the model + effect of seed s + effect of datum n + interaction``

    with independent random effects: data are shared by the models, seeds are not. The variance of the mean difference
    is the sum of the variance over the data of the mean over the seeds, and for each model the variance over the seeds
    of the mean over the data, less the interaction, which both contain. The interval has Satterthwaite's degrees of
    freedom.

    *The analysis of variance (Scheffe 1959)*; *An approximate distribution of estimates of variance components
    (Satterthwaite 1946)*, https://doi.org/10.2307/3002019

    Args:
        ours: values of each seed and datum ``(S, N)``, nats.
        theirs: values of the same data for other seeds ``(R, N)``, nats.
        pooled: effect of a seed for a model with one seed; without it the difference holds for this seed.

    Raises:
        ValueError: if the numbers of data differ.

    """
    paired = Difference.over_data(ours.double().mean(0), theirs.double().mean(0))
    if paired.se is None or paired.mean is None:
        return paired
    variance = paired.se**2
    squares = variance**2 / (ours.shape[1] - 1)  # sum of variance^2 / degrees of freedom
    for values in (ours.double(), theirs.double()):
        if len(values) > 1:
            effect = _seed_effect(values)
            variance += effect.variance / len(values)
            squares += (effect.gross / len(values)) ** 2 / effect.freedom
    num_single = (len(ours) == 1) + (len(theirs) == 1)
    if pooled is not None and num_single:
        variance += num_single * pooled.variance
        squares += (num_single * pooled.gross) ** 2 / pooled.freedom
    freedom = variance**2 / squares if squares else math.inf
    return Difference.of_mean(paired.mean, math.sqrt(variance), max(freedom, 1.0))


def _seed_effect(values: Tensor) -> SeedEffect:
    """Return the effect of a seed by values ``(S, N)`` of several seeds."""
    num_seeds, num_data = values.shape
    gross = values.double().mean(1).var().item()
    residuals = values - values.mean(1, keepdim=True) - values.mean(0) + values.mean()
    interaction = residuals.square().sum().item() / ((num_seeds - 1) * (num_data - 1))
    return SeedEffect(max(gross - interaction / num_data, 0.0), gross, num_seeds - 1)


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return p-values adjusted for their number, so that any false claim at a level has at most its probability.

    *A simple sequentially rejective multiple test procedure (Holm 1979)*, https://www.jstor.org/stable/4615733

    Args:
        p_values: one for each comparison; None for a comparison without one.

    """
    known = sorted((p_value, i) for i, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p_value, i) in enumerate(known):
        adjusted[i] = highest = max(highest, min(1.0, (len(known) - rank) * p_value))
    return tuple(adjusted)


def num_data_needed(sd: float, difference: float) -> int:
    """Return the number of data that resolve a paired difference, at level 0.05 with a power of 0.8.

    Args:
        sd: standard deviation of the paired differences over the data, nats.
        difference: size of the difference to be found, nats.

    """
    return max(2, math.ceil(((ndtri(1 - LEVEL / 2) + ndtri(POWER)) * sd / difference) ** 2))


def num_seeds_needed(sd: float, difference: float, *, error: float = 0.0) -> int | None:
    """Return the number of training seeds of each of two models that resolve a difference, likewise.

    Args:
        sd: standard deviation of the effect of one seed, nats.
        difference: size of the difference to be found, nats.
        error: standard error over the data, nats, which more seeds do not lower.

    Returns:
        The number; None if it exceeds 100, or if no number of seeds is enough with these data.

    """
    for seeds in range(2, MOST_SEEDS + 1):
        quantiles = stdtrit(2 * seeds - 2, 1 - LEVEL / 2) + stdtrit(2 * seeds - 2, POWER)
        if quantiles * math.sqrt(2 * sd**2 / seeds + error**2) <= difference:
            return seeds
    return None
