"""Verdicts on a collapse, where different x get the same code, and on the fit of the prior: the KL is small in both."""

from __future__ import annotations

from collections.abc import Sequence

from pyrovae.results import Estimate
from pyrovae.results.latent_record import Unit

COLLAPSED, NOT_COLLAPSED, UNDECIDED = "collapsed", "not collapsed", "undecided"
FIT, UNFIT = "fits", "does not fit"

NOTHING = 0.05  # nats of information that count as none
FITS = 0.1, 0.05  # marginal KL of a prior that fits, at most: in nats, or as a share of the KL


def assess_collapse(units: Sequence[Unit], kl: Estimate, below: Estimate) -> tuple[str, str]:
    """Return whether different x get the same code, and the reason in one clause.

    Args:
        units: of all sites.
        kl: E_x KL(q(z | x) || p(z)).
        below: I(x; z), a lower bound in the mean.

    """
    if below.value is None or kl.value is None:
        return UNDECIDED, below.why or kl.why or "there is no I(x; z)"
    active = sum(bool(unit.active) for unit in units)
    few = f"{active} of {len(units)} units are active" if active else "no unit is active"
    if below.value <= NOTHING or (not active and below.value <= 2 * (below.se_data or 0.0)):
        return COLLAPSED, f"I(x; z) is {below.value:.3f} nats and {few}"
    return NOT_COLLAPSED, f"I(x; z) is at least {below.value:.3f} nats and {few}"


def assess_prior(kl: Estimate, above: Estimate, marginal: Estimate) -> tuple[str, str]:
    """Return whether the prior fits the aggregate posterior q(z), and the reason in one clause.

    Args:
        kl: E_x KL(q(z | x) || p(z)).
        above: I(x; z), an upper bound in the mean, so that ``kl - above`` is a lower bound of the marginal KL.
        marginal: KL(q(z) || p(z)), an upper bound in the mean.

    """
    if marginal.value is None or kl.value is None:
        return UNDECIDED, marginal.why or kl.why or "there is no marginal KL"
    limit = max(FITS[0], FITS[1] * kl.value)
    if marginal.value <= limit:
        return FIT, f"q(z) is at most {marginal.value:.3f} nats from it"
    least = kl.value - above.value if above.value is not None else 0.0
    span = f"q(z) is {least:.3f} to {marginal.value:.3f} nats from it"
    return (UNFIT if least - 2 * (marginal.se_data or 0.0) > limit else UNDECIDED), span


def unit_verdict(kl: float | None, misfit: float | None, *, active: bool | None) -> str:
    """Tell in words whether a unit is used, and whether the prior is where its codes are."""
    if active is None:
        return "cannot be told: not finite for some data"
    far = misfit is not None and misfit > FITS[0]
    if active:
        return "active" if misfit is None else "active, away from the prior" if far else "active, prior fits"
    if far or (kl is not None and kl > FITS[0]):
        return "collapsed, away from the prior"
    return "collapsed" if misfit is None and kl is None else "collapsed onto the prior"
