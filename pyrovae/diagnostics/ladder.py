"""Verdict on K from the rungs of the ladder, the k-hats and the delta method.

Weights of finite variance give ``L_K = log p(x) - c / K + ...``, so that each tenfold K closes nine tenths of the gap.
Weights with a Pareto tail k between 1/2 and 1 give a gap that falls like ``K^(1 - 1/k)``, and where K is far too small
for the guide L_K grows by about as many nats at every rung, so that the rungs do not show the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from pyrovae.results import mean_and_error
from pyrovae.results.tables import percent
from pyrovae.results.tightness import ENOUGH, FEW, NOT_ASYMPTOTIC, NOT_ENOUGH, SMALL_ESS
from pyrovae.runtime.annotations import checked

PERHAPS, UNKNOWN = "K may not be enough", "unknown"

SLOW = 0.5  # power of a gap that halves when K is multiplied by four, as of weights with a Pareto tail of 2/3
SLOWEST = 0.05  # smallest power for extrapolation; smaller ones cannot be distinguished from 0
MANY = 0.5  # share above which the weights of the whole data set are unreliable
ROUNDING = 1e-9  # rise of a rung, relative to its value, that rounding explains


@dataclass(frozen=True)
class Ladder:
    """Estimate of the gap that remains at the last rung, from the last three rungs, which are means over the data.

    Attributes:
        ks: numbers of particles.
        increment: mean L_K of the last rung minus the rung before, nats; None for a single rung.
        increment_error: standard error of the increment over the data, paired.
        power: a of a gap that falls like K^-a, solved from the last three rungs; 1 for weights of finite variance.
        power_error: standard error of the power.
        extrapolated: remaining gap, nats: by 1 / K, or by K^-a where the rungs are clearly slower.

    """

    ks: tuple[int, ...]
    increment: float | None
    increment_error: float | None
    power: float | None
    power_error: float | None
    extrapolated: float | None

    def gap(self, power: float) -> float | None:
        """Return the remaining gap at the last rung if it falls like K^-power, nats."""
        if self.increment is None:
            return None
        return self.increment / math.expm1(power * math.log(self.ks[-1] / self.ks[-2]))

    @property
    def slow(self) -> bool:
        """Whether the gap falls clearly slower than 1 / sqrt K."""
        return _below(self.power, self.power_error, SLOW)


@checked
def read_ladder(rungs: Mapping[int, Tensor]) -> Ladder:
    """Estimate the remaining gap from the rungs L_K.

    ``L_K = log p - c K^-a`` for three rungs K1 < K2 < K3 gives
    ``(L_3 - L_2) / (L_2 - L_1) = (1 - (K2/K3)^a) / ((K2/K1)^a - 1)``, which is solved for a, and
    ``c K3^-a = (L_3 - L_2) / ((K3/K2)^a - 1)``.

    Args:
        rungs: for each K the bounds of each datum ``(N,)``, nats, from the same draws.

    """
    ks = tuple(rungs)
    if len(ks) < 2 or not all(values.isfinite().all() for values in rungs.values()):
        return Ladder(ks, None, None, None, None, None)
    last = rungs[ks[-1]] - rungs[ks[-2]]
    increment, error = mean_and_error(last)
    assert increment is not None
    step = math.log(ks[-1] / ks[-2])
    if increment <= ROUNDING * max(1.0, abs(rungs[ks[-1]].mean().item())):
        return Ladder(ks, max(0.0, increment), error, None, None, 0.0)
    power = power_error = None
    if len(ks) > 2:
        power, power_error = _power(rungs[ks[-2]] - rungs[ks[-3]], last, math.log(ks[-2] / ks[-3]), step)
    ladder = Ladder(ks, increment, error, power, power_error, None)
    used = max(SLOWEST, power) if power is not None and _below(power, power_error, 1.0) else 1.0
    return replace(ladder, extrapolated=ladder.gap(used))


@checked
def assess(
    ladder: Ladder,
    *,
    num_bad: int,
    num_data: int,
    bias: float | None,
    threshold: float | None,
    share_above: float | None,
    tolerance: float,
    ess: float | None = None,
) -> tuple[str, str]:
    """Return the verdict on the last rung, and the reason as a sentence.

    K is enough only if k-hat is above its threshold for few data and the remaining gap, the larger of the delta
    method's and the ladder's, is within the tolerance. All three depend on the guide's draws alone: they do not detect
    a mode that the guide never visits. A k-hat above its threshold does not mean that L_K is low for that datum, but
    that its weights are unreliable: one large weight may even have raised L_K. If this holds for more than half of the
    data, K is not enough; if it holds for some, the weights alone do not decide. Without k-hats, or with a median
    effective sample size below 2, both estimates of the gap may be far too small: the reason names a least number of
    missing nats.

    Args:
        ladder: from `read_ladder`.
        num_bad: number of data whose bound is not finite.
        num_data: N.
        bias: mean of the delta method's gaps, nats.
        threshold: threshold of k-hat; None if K is too small for k-hat.
        share_above: share of data whose k-hat is above the threshold.
        tolerance: largest remaining gap, nats, for which K is enough.
        ess: median effective sample size over the data; None if unknown.

    """
    label = f"L_{ladder.ks[-1]}"
    if num_bad:
        return UNKNOWN, f"{num_bad} of {num_data} data have a {label} that is not finite; find out why first"
    gaps = {"delta method": bias, "ladder": ladder.extrapolated}
    known = {name: gap for name, gap in gaps.items() if gap is not None}
    remaining = max(known.values(), default=None)
    missing = f"({', '.join(f'{name} {_nats(gap)}' for name, gap in known.items())})"
    heavy = share_above is not None and share_above > FEW
    tails = f"k-hat is above {threshold:.2f} for {percent(share_above)} of the data" if share_above is not None else ""
    loose = f"; {tails}: {label} is loose, estimate log p(x) by AIS" if heavy else ""
    if remaining is not None and remaining > tolerance and ladder.slow:
        power = ladder.power or 0.0
        like = f"the gap falls like K^{-power:.2f} instead of K^-1" if power > 0 else "by more than at the rung before"
        return NOT_ASYMPTOTIC, (
            f"from L_{ladder.ks[-2]} to {label} the mean rose by {ladder.increment:.3f} nats, and {like}, so that the "
            f"ladder does not show its limit{loose}"
        )
    if share_above is not None and share_above > MANY:
        return (
            NOT_ENOUGH,
            f"{tails}: {label} is loose, or cannot be distinguished from a loose bound; estimate log p(x) by AIS",
        )
    if remaining is not None and remaining > tolerance:
        unreliable = share_above is None or heavy or (ess is not None and ess < SMALL_ESS)
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
    if len(ladder.ks) < 3 or ladder.increment is None:
        return UNKNOWN, (
            f"{tails} and about {_nats(remaining)} are missing {missing}, but it takes three rungs to see whether the "
            "gap falls like 1 / K; evaluate more"
        )
    return ENOUGH, (
        f"as far as the guide's draws reach, about {_nats(remaining)} are missing in {label} {missing}, less than "
        f"{tolerance:g}, and {tails}"
    )


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
