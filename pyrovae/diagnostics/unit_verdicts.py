"""Verdicts on latent units, on a collapse of the posterior, and on the fit of the prior.

In a collapse different x get the same code. The KL is small in a collapse, and also where the prior fits the codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae.results import Estimate
from pyrovae.results.latent_record import Unit

ACTIVE = 0.01  # variance of an active unit's posterior mean over the data, as in Burda et al.
COLLAPSED, NOT_COLLAPSED, UNDECIDED = "collapsed", "not collapsed", "undecided"
FIT, UNFIT = "fits", "does not fit"

MAX_COLLAPSED = 0.05  # nats of information in a collapse, at most
MAX_FITTING = 0.1, 0.05  # marginal KL of a prior that fits, at most: in nats, or as a share of the KL


def active_units(
    names: Sequence[str],
    means: Tensor,
    variances: Tensor,
    kls: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    *,
    num_draws: int,
) -> tuple[Unit, ...]:
    """Return the units, active ones first, then by KL.

    ``activity_i = Var_x(E_{q(z | x)} z_i)``, minus the variance of a mean over S draws

    *Importance weighted autoencoders (Burda, Grosse, Salakhutdinov 2016)*, https://arxiv.org/abs/1509.00519

    Args:
        names: names of the D units.
        means: means of S draws of each posterior, ``(N, D)``.
        variances: variances of the same draws, ``(N, D)``.
        kls: KL of each unit in nats, ``(N, D)``, NaN for a unit without one.
        prior: mean and variance of each unit under the prior ``(D,)``; None if the prior differs between data.
        num_draws: S.

    """
    count = len(means)
    center = means.mean(0)
    moved = (means - center) ** 2 * count / (count - 1) - variances / num_draws  # (N, D)
    activity, variance = moved.mean(0), variances.mean(0)
    if prior is None:
        misfit = torch.full_like(activity, math.nan)
    else:
        ratio = (activity.clamp(min=0) + variance) / prior[1]
        misfit = 0.5 * (ratio + (center - prior[0]) ** 2 / prior[1] - 1 - ratio.log())
    units = []
    for d, name in enumerate(names):
        moves, spread = _or_none(activity[d]), _or_none(variance[d])
        active = None if moves is None or spread is None else moves > ACTIVE
        kl, away = _or_none(kls[:, d].mean()), _or_none(misfit[d])
        units.append(
            Unit(
                name=name,
                activity=moves,
                activity_error=_or_none(moved[:, d].std() / math.sqrt(count)),
                active=active,
                variance=spread,
                kl=kl,
                misfit=away,
                verdict=unit_verdict(kl, away, active=active),
            )
        )
    return tuple(
        sorted(units, key=lambda unit: (not unit.active, -(unit.activity or 0 if unit.kl is None else unit.kl)))
    )


def _or_none(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None


def assess_collapse(units: Sequence[Unit], kl: Estimate, below: Estimate) -> tuple[str, str]:
    """Return the verdict on a collapse, and the reason.

    Args:
        units: units of all sites.
        kl: E_x KL(q(z | x) || p(z)).
        below: I(x; z), a lower bound in the mean.

    """
    if below.value is None or kl.value is None:
        return UNDECIDED, below.why or kl.why or "there is no I(x; z)"
    active = sum(bool(unit.active) for unit in units)
    few = f"{active} of {len(units)} units are active" if active else "no unit is active"
    if below.value <= MAX_COLLAPSED or (not active and below.value <= 2 * (below.se_data or 0.0)):
        return COLLAPSED, f"I(x; z) is {below.value:.3f} nats and {few}"
    return NOT_COLLAPSED, f"I(x; z) is at least {below.value:.3f} nats and {few}"


def assess_prior(kl: Estimate, above: Estimate, marginal: Estimate) -> tuple[str, str]:
    """Return whether the prior fits the aggregate posterior q(z), and the reason.

    Args:
        kl: E_x KL(q(z | x) || p(z)).
        above: I(x; z), an upper bound in the mean, so that ``kl - above`` is a lower bound of the marginal KL.
        marginal: KL(q(z) || p(z)), an upper bound in the mean.

    """
    if marginal.value is None or kl.value is None:
        return UNDECIDED, marginal.why or kl.why or "there is no marginal KL"
    limit = max(MAX_FITTING[0], MAX_FITTING[1] * kl.value)
    if marginal.value <= limit:
        return FIT, f"q(z) is at most {marginal.value:.3f} nats from it"
    least = kl.value - above.value if above.value is not None else 0.0
    span = f"q(z) is {least:.3f} to {marginal.value:.3f} nats from it"
    return (UNFIT if least - 2 * (marginal.se_data or 0.0) > limit else UNDECIDED), span


def unit_verdict(kl: float | None, misfit: float | None, *, active: bool | None) -> str:
    """Return whether a unit is active, and whether the prior fits its codes, in words."""
    if active is None:
        return "unknown: not finite for some data"
    far = misfit is not None and misfit > MAX_FITTING[0]
    if active:
        return "active" if misfit is None else "active, away from the prior" if far else "active, prior fits"
    if far or (kl is not None and kl > MAX_FITTING[0]):
        return "collapsed, away from the prior"
    return "collapsed" if misfit is None and kl is None else "collapsed onto the prior"
