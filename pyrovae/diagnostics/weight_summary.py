"""Diagnostics of importance weights: how many of them count, and how far L_K lies below log p(x)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyrovae.bounds.multi_sample import effective_sample_size, normalized_weights
from pyrovae.diagnostics.ladder import PERHAPS, UNKNOWN, assess, read_ladder
from pyrovae.diagnostics.psis import FEWEST, khat_threshold, pareto_khat
from pyrovae.results import CheckResults, Weights
from pyrovae.results.tightness import ENOUGH, NOT_ENOUGH, Quantiles
from pyrovae.runtime.annotations import checked


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
    khat, num_particles = per_datum["khat"], ks[-1]
    bound = per_datum[f"L_{num_particles}"]
    zero = int(bound.isneginf().sum())
    nan = int((~bound.isfinite()).sum()) - zero
    available = khat[~khat.isnan()]
    threshold = khat_threshold(num_particles) if num_particles >= FEWEST else None
    above = int((available > threshold).sum()) if threshold is not None else 0
    bias = per_datum["bias"]
    ladder = read_ladder({k: per_datum[f"L_{k}"] for k in ks})
    mean_bias = bias.mean().item() if bias.isfinite().all() else None
    verdict, reason = assess(
        ladder,
        num_bad=nan + zero,
        num_data=len(bound),
        bias=mean_bias,
        threshold=threshold,
        share_above=above / len(available) if len(available) else None,
        tolerance=tolerance,
        ess=Quantiles.of(per_datum["ESS"]).median,
    )
    return Weights(
        num_particles=num_particles,
        num_data=len(bound),
        threshold=threshold,
        num_above=above,
        num_unavailable=len(khat) - len(available),
        num_constant=int(khat.isneginf().sum()),
        num_nan=nan,
        num_zero=zero,
        khat=Quantiles.of(khat),
        ess=Quantiles.of(per_datum["ESS"]),
        largest=Quantiles.of(per_datum["largest weight"]),
        bias=mean_bias,
        increment=ladder.increment,
        increment_error=ladder.increment_error,
        power=ladder.power,
        power_error=ladder.power_error,
        extrapolated=ladder.extrapolated,
        tolerance=tolerance,
        verdict=verdict,
        reason=reason,
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
