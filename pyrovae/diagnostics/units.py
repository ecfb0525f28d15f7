"""Latent units that are used, and those that are not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae.diagnostics.collapse import unit_verdict
from pyrovae.results.latent_record import Unit

ACTIVE = 0.01  # variance of the posterior mean over the data: Burda, Grosse and Salakhutdinov's


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

    ``activity_i = Var_x(E_{q(z | x)} z_i)``, from which the variance that S draws give to their mean is taken off

    *Importance weighted autoencoders (Burda, Grosse, Salakhutdinov 2016)*, https://arxiv.org/abs/1509.00519

    Args:
        names: of the D units.
        means: of S draws of each posterior, ``(N, D)``.
        variances: of the same, ``(N, D)``.
        kls: nats, ``(N, D)``, NaN for units that have none.
        prior: mean and variance of each unit ``(D,)``, or None where it is not the same for all data.
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
