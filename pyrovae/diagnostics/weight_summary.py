"""Diagnostics of importance weights: how many of them count, how far L_K lies below log p(x), and whether K is enough.

Weights of finite variance give ``L_K = log p(x) - c / K + ...``, so that each tenfold K closes nine tenths of the gap.
Weights with a Pareto tail k between 1/2 and 1 give a gap that falls like ``K^(1 - 1/k)``, and where K is far too small
for the guide L_K grows by about as many nats at every rung, so that the rungs do not show the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.bounds.multi_sample import effective_sample_size, normalized_weights
from pyrovae.diagnostics.psis import FEWEST, khat_threshold, pareto_khat
from pyrovae.results import CheckResults, Weights, mean_and_error
from pyrovae.results.tables import percent
from pyrovae.results.tightness import ENOUGH, FEW, NOT_ASYMPTOTIC, NOT_ENOUGH, SMALL_ESS, Quantiles
from pyrovae.runtime.annotations import checked

PERHAPS, UNKNOWN = "K may not be enough", "unknown"
SLOW = 0.5  # power of a gap that halves when K is multiplied by four, as of weights with a Pareto tail of 2/3
SLOWEST = 0.05  # smallest power for extrapolation; smaller ones cannot be distinguished from 0
MANY = 0.5  # share above which the weights of the whole data set are unreliable
ROUNDING = 1e-9  # rise of a rung, relative to its value, that rounding explains


@checked
def weight_diagnostics(log_weights: Tensor) -> dict[str, Tensor]:
    """Return the diagnostics of the weights of each datum, by name.

    Args:
        log_weights: log p(x, z) - log q(z | x), ``(K, ...)``, nats.

    Returns:
        Each ``(...)``, float64: "khat", "ESS", "largest weight" and "bias", which are `pareto_khat`,
        `effective_sample_size`, `largest_weight` and `bias_estimate`. NaN where a weight is NaN, where all are zero,
        and where K is too small.

    """
    return {
        "khat": pareto_khat(log_weights),
        "ESS": effective_sample_size(log_weights),
        "largest weight": largest_weight(log_weights),
        "bias": bias_estimate(log_weights),
    }


@checked
def largest_weight(log_weights: Tensor) -> Tensor:
    """Return the share of the largest weight in the sum of weights ``(K, ...)``: ``(...)``, between 1 / K and 1."""
    return normalized_weights(log_weights).amax(0)


@checked
def relative_variance(log_weights: Tensor) -> Tensor:
    """Return ``Var(w) / mean(w)^2`` of the weights, with the unbiased variance.

    It cannot exceed K, whatever the true variance is: where few weights make up the sum, it is too small.

    Args:
        log_weights: ``(K, ...)``, nats, K at least 2.

    Returns:
        ``(...)``, float64; NaN for a single particle.

    """
    shares, total = normalized_weights(log_weights), len(log_weights)
    return ((total * shares - 1) ** 2).sum(0) / (total - 1) if total > 1 else torch.full_like(shares[0], math.nan)


@checked
def bias_estimate(log_weights: Tensor) -> Tensor:
    """Return how far the bound L_K lies below log p(x) by the delta method: ``Var(w) / (2 K mean(w)^2)``.

    It is accurate if the variance of the weights is finite and K is much larger than the variance. It cannot exceed
    1/2 nat: for heavy tails, where tens of nats may be missing, it is far too small.

    *Debiasing evidence approximations: on importance-weighted autoencoders and jackknife variational inference
    (Nowozin 2018)*, https://openreview.net/forum?id=HyZoi-WRb

    Args:
        log_weights: ``(K, ...)``, nats.

    Returns:
        ``(...)``, nats; NaN for a single particle.

    """
    return relative_variance(log_weights) / (2 * len(log_weights))


def summarize_weights(per_datum: Mapping[str, Tensor], *, ks: Sequence[int], tolerance: float = 0.05) -> Weights:
    """Summarize the weights of a data set at its largest K, with a verdict on K.

    Args:
        per_datum: the values ``(N,)`` of `weight_diagnostics` at the largest K, and of "L_k" for each rung.
        ks: the rungs, ascending.
        tolerance: nats that L_K may lie below log p(x) if K is enough.

    """
    khat, bias, num_particles = per_datum["khat"], per_datum["bias"], ks[-1]
    bound = per_datum[f"L_{num_particles}"]
    zero = int(bound.isneginf().sum())
    available = khat[~khat.isnan()]
    threshold = khat_threshold(num_particles) if num_particles >= FEWEST else None
    weights = Weights(
        num_particles=num_particles,
        num_data=len(bound),
        threshold=threshold,
        num_above=int((available > threshold).sum()) if threshold is not None else 0,
        num_unavailable=len(khat) - len(available),
        num_constant=int(khat.isneginf().sum()),
        num_nan=int((~bound.isfinite()).sum()) - zero,
        num_zero=zero,
        khat=Quantiles.of(khat),
        ess=Quantiles.of(per_datum["ESS"]),
        largest=Quantiles.of(per_datum["largest weight"]),
        bias=bias.mean().item() if bias.isfinite().all() else None,
        **read_ladder({k: per_datum[f"L_{k}"] for k in ks}),
        tolerance=tolerance,
        verdict=UNKNOWN,
        reason="",
    )
    verdict, reason = assess(weights, ks)
    return replace(weights, verdict=verdict, reason=reason)


def read_ladder(rungs: Mapping[int, Tensor]) -> dict[str, float | None]:
    """Return the fields of `Weights` that follow from the rungs L_K: increment, power, their errors, extrapolated gap.

    ``L_K = log p - c K^-a`` for three rungs K1 < K2 < K3 gives
    ``(L_3 - L_2) / (L_2 - L_1) = (1 - (K2/K3)^a) / ((K2/K1)^a - 1)``, which is solved for a, and
    ``c K3^-a = (L_3 - L_2) / ((K3/K2)^a - 1)``. The gap is extrapolated by 1 / K, or by K^-a where the rungs are
    clearly slower.

    Args:
        rungs: for each K the bounds of each datum ``(N,)``, nats, from the same draws.

    """
    ks = tuple(rungs)
    fields = dict.fromkeys(("increment", "increment_error", "power", "power_error", "extrapolated"))
    if len(ks) < 2 or not all(values.isfinite().all() for values in rungs.values()):
        return fields
    last = rungs[ks[-1]] - rungs[ks[-2]]
    increment, error = mean_and_error(last)
    assert increment is not None
    step = math.log(ks[-1] / ks[-2])
    if increment <= ROUNDING * max(1.0, abs(rungs[ks[-1]].mean().item())):
        return fields | {"increment": max(0.0, increment), "increment_error": error, "extrapolated": 0.0}
    power = power_error = None
    if len(ks) > 2:
        power, power_error = _power(rungs[ks[-2]] - rungs[ks[-3]], last, math.log(ks[-2] / ks[-3]), step)
    used = max(SLOWEST, power) if power is not None and _below(power, power_error, 1.0) else 1.0
    extrapolated = increment / math.expm1(used * step)
    return dict(zip(fields, (increment, error, power, power_error, extrapolated), strict=True))


def assess(weights: Weights, ks: Sequence[int]) -> tuple[str, str]:
    """Return the verdict on the last rung, and the reason as a sentence.

    K is enough only if k-hat is above its threshold for few data and the remaining gap, the larger of the delta
    method's and the ladder's, is within the tolerance. All three depend on the guide's draws alone: they do not detect
    a mode that the guide never visits. A k-hat above its threshold does not mean that L_K is low for that datum, but
    that its weights are unreliable: one large weight may even have raised L_K. If this holds for more than half of the
    data, K is not enough; if it holds for some, the weights alone do not decide. Without k-hats, or with a median
    effective sample size below 2, both estimates of the gap may be far too small: the reason names a least number of
    missing nats.

    Args:
        weights: the summary; its verdict and reason are not read.
        ks: the rungs, ascending.

    """
    label, tolerance, share_above = f"L_{ks[-1]}", weights.tolerance, weights.share_above
    if num_bad := weights.num_nan + weights.num_zero:
        return UNKNOWN, f"{num_bad} of {weights.num_data} data have a {label} that is not finite; find out why first"
    gaps = {"delta method": weights.bias, "ladder": weights.extrapolated}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    remaining = max(known.values(), default=None)
    missing = f"({', '.join(f'{name} {_nats(gap)}' for name, gap in known.items())})"
    heavy = share_above is not None and share_above > FEW
    tails = ""
    if share_above is not None:
        tails = f"k-hat is above {weights.threshold:.2f} for {percent(share_above)} of the data"
    loose = f"; {tails}: {label} is loose, estimate log p(x) by AIS" if heavy else ""
    if remaining is not None and remaining > tolerance and _below(weights.power, weights.power_error, SLOW):
        power = weights.power or 0.0
        like = f"the gap falls like K^{-power:.2f} instead of K^-1" if power > 0 else "by more than at the rung before"
        return NOT_ASYMPTOTIC, (
            f"from L_{ks[-2]} to {label} the mean rose by {weights.increment:.3f} nats, and {like}, so that the "
            f"ladder does not show its limit{loose}"
        )
    if share_above is not None and share_above > MANY:
        return (
            NOT_ENOUGH,
            f"{tails}: {label} is loose, or cannot be distinguished from a loose bound; estimate log p(x) by AIS",
        )
    if remaining is not None and remaining > tolerance:
        unreliable = share_above is None or heavy or (weights.ess.median or SMALL_ESS) < SMALL_ESS
        return NOT_ENOUGH, (
            f"{'at least' if unreliable else 'about'} {_nats(remaining)} are missing in the mean of {label} {missing}, "
            f"more than {tolerance:g}{loose or '; evaluate a larger K, or estimate log p(x) by AIS'}"
        )
    if heavy:
        return UNKNOWN, (
            f"{tails}, whose weights do not measure their remaining gap; by the others about "
            f"{_nats(remaining or 0.0)} are missing in {label} {missing}"
        )
    if remaining is None:
        return UNKNOWN, "a single particle does not show the gap; evaluate a larger K"
    if share_above is None:
        return UNKNOWN, "k-hat is not available, K being below 25; evaluate a larger K"
    if len(ks) < 3 or weights.increment is None:
        return UNKNOWN, (
            f"{tails} and about {_nats(remaining)} are missing {missing}, but it takes three rungs to see whether the "
            "gap falls like 1 / K; evaluate more"
        )
    return ENOUGH, (
        f"as far as the guide's draws reach, about {_nats(remaining)} are missing in {label} {missing}, less than "
        f"{tolerance:g}, and {tails}"
    )


def assess_with_checks(weights: Weights, checked: CheckResults | None) -> Weights:
    """Return the summary with a verdict amended by AIS and BDMC, which may reach modes that the guide never draws.

    If AIS is above L_K on the same data by more than the tolerance, K is not enough. If BDMC leaves log p(x) of
    simulated data open by more than the tolerance, K may not be enough. Both by two Monte Carlo standard errors.
    """
    if checked is None:
        return weights
    label, higher = f"L_{weights.num_particles}", checked.higher
    if higher is not None and higher.value is not None:
        on = f"{label} on the same {higher.num_data} data"
        if higher.exceeds(weights.tolerance):
            verdict = NOT_ENOUGH if weights.verdict in (ENOUGH, UNKNOWN) else weights.verdict
            reason = f"AIS is {higher.value:.3f} nats above {on}; by the weights: {weights.reason}"
            return replace(weights, verdict=verdict, reason=reason)
        if weights.verdict != ENOUGH:
            return replace(weights, reason=f"{weights.reason}; AIS is not clearly above {on}")
    if checked.sandwich is None or weights.verdict != ENOUGH:
        return weights
    gap, total = checked.sandwich.gap, checked.sandwich.num_data
    noise = gap.se_data if gap.se_monte_carlo is None else gap.se_monte_carlo
    if gap.value is None:
        reason = f"BDMC has no bounds for {checked.sandwich.num_not_finite} of {total} simulated data"
    elif gap.value - 2 * (noise or 0.0) > weights.tolerance:
        reason = f"BDMC leaves log p(x) of {total} simulated data open by {gap.value:.3f} nats"
    else:
        return weights
    reason += f", so that the guide may miss a part of the posterior that neither {label} nor AIS reaches"
    return replace(weights, verdict=PERHAPS, reason=f"{reason}; by the weights: {weights.reason}")


def _power(first: Tensor, last: Tensor, first_step: float, last_step: float) -> tuple[float | None, float | None]:
    """Return the power and its standard error, from the rises of each datum ``(N,)`` at two rungs."""
    rise, before = last.mean().item(), first.mean().item()
    if rise <= 0 or before <= 0:
        return None, None

    def ratio(a: float) -> float:  # falls in a
        return -math.expm1(-a * last_step) / math.expm1(a * first_step) if a else last_step / first_step

    low, high = -2.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio(middle) > rise / before else (low, middle)
    power = (low + high) / 2
    _, error = mean_and_error(last - rise / before * first)
    slope = abs(ratio(power + 1e-4) - ratio(power - 1e-4)) / 2e-4
    return power, None if error is None else error / (slope * before)


def _below(value: float | None, error: float | None, limit: float) -> bool:
    """Return whether a value is below a limit by more than two standard errors."""
    return value is not None and error is not None and value + 2 * error < limit


def _nats(value: float) -> str:
    return f"{value:.4f} nats" if value >= 1e-4 else f"{value:.0e} nats" if value > ROUNDING else "0 nats"
