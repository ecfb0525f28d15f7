"""Collapse, where different x get the same code, told from a prior that fits: the KL is small in both."""

from __future__ import annotations

from collections.abc import Sequence

from pyrovae.results import Estimate
from pyrovae.results.latents import Unit

NOTHING = 0.05  # nats of information that count as none
FITS = 0.1, 0.05  # marginal KL of a prior that fits, at most: in nats, or as a share of the KL


def collapse_or_fit(
    units: Sequence[Unit], kl: Estimate, below: Estimate, above: Estimate, marginal: Estimate, ceiling: float
) -> tuple[str, str]:
    """Tell a collapse from a prior that fits: the verdict, and its reason in a sentence.

    Args:
        units: of all sites.
        kl: E_x KL(q(z | x) || p(z)).
        below: I(x; z), a lower bound in the mean.
        above: the same from above.
        marginal: KL(q(z) || p(z)).
        ceiling: what ``below`` cannot exceed.

    """
    if below.value is None or kl.value is None:
        return "cannot be told", f"{below.why or kl.why}"
    active, said = sum(bool(unit.active) for unit in units), f"I(x; z) is {below.value:.3f} nats"
    few = f"{active} of {len(units)} units are active" if active else "no unit is active"
    if below.value <= NOTHING or (not active and below.value <= 2 * (below.se_data or 0.0)):
        where = "on the prior" if kl.value <= FITS[0] else f"away from the prior, with a KL of {kl.value:.3f} nats"
        same = "almost the same" if active else "the same"
        return "collapse", f"different x get {same} code, {where}: {said}, and {few}"
    if marginal.value is None:
        return "cannot be told", f"{said} and {few}, but there is no marginal KL: {marginal.why}"
    limit = max(FITS[0], FITS[1] * kl.value)
    if marginal.value <= limit:
        return "prior fits", (
            f"the aggregate posterior is {marginal.value:.3f} nats from the prior, while {said} and {few}: "
            "a small KL is no collapse here"
        )
    least = kl.value - above.value if above.value is not None else None
    if least is not None and least - 2 * (marginal.se_data or 0.0) > limit:
        return "prior does not fit", (
            f"the aggregate posterior is {least:.3f} to {marginal.value:.3f} nats from the prior, while {said}: {few}; "
            "a prior that lies where the codes do would raise the ELBO by as much"
        )
    return "cannot be told", (
        f"no collapse, since {said}, at least about that of at most {ceiling:.3f}; but so few data, by which the "
        f"marginal KL is at most {marginal.value:.3f}, do not tell whether the prior fits; {few}"
    )


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
