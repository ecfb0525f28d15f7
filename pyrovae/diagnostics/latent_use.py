"""Use of the latent variables: active units, mutual information, and the fit of the prior to the codes.

In a collapse different x get the same code. The KL is small in a collapse, and also where the prior fits the codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pyrovae.diagnostics.information import Information, information, unit_kl
from pyrovae.importance import (
    UnconstrainedLatents,
    draw_guide,
    iter_batches,
    score_model,
    scoring_context,
    sum_over_sites,
)
from pyrovae.programs import ModelGuide, Program, run
from pyrovae.programs.site_checks import unwrapped
from pyrovae.results import Estimate
from pyrovae.results.latent_record import Latents, Unit
from pyrovae.runtime.annotations import Range, checked
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

ROUNDING = 1e-10  # nats below which a value is zero
BATCH_ELEMENTS = 2**20  # elements of u that are drawn at once
PRIOR_DRAWS = 4000  # draws for the moments of the prior
ACTIVE = 0.01  # variance of an active unit's posterior mean over the data, as in Burda et al.
MAX_COLLAPSED = 0.05  # nats of information in a collapse, at most
MAX_FITTING = 0.1, 0.05  # marginal KL of a prior that fits, at most: in nats, or as a share of the KL
UNDECIDED = "undecided"


@checked
def latents(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_draws: Annotated[int, Range(2)] = 100,
    seed: int = 0,
    modules: Iterable[nn.Module] = (),
    show_progress: bool = False,
) -> Latents:
    """Find the active latent units, estimate the information of codes about x, and assess the fit of the prior.

    ``E_x KL(q(z | x) || p(z)) = I(x; z) + KL(q(z) || p(z))``, ``q(z) = (1 / N) sum_n q(z | x_n)``

    If all x have the same code (I = 0), the posterior has collapsed, whether the KL is zero or large. If the marginal
    KL is zero and I is not, the prior fits. Units are the dimensions of z on an unconstrained scale, which is z itself
    for a site without constraints. A unit is active if the variance of its posterior mean over x exceeds 0.01.
    I(x; z) over N data cannot exceed log N: a value near log N is only a lower limit.

    *Importance weighted autoencoders (Burda, Grosse, Salakhutdinov 2016)*, https://arxiv.org/abs/1509.00519

    *ELBO surgery (Hoffman, Johnson 2016)*, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    Args:
        model: a Pyro program called with ``(x, *covariates)``.
        guide: another.
        x: ``(N, ...)``, the data, at least 2.
        covariates: tensors that travel with x along the data plate.
        num_draws: draws of each posterior for its mean and variance, at least 2.
        seed: seed of the draws.
        modules: modules of the programs that cannot be found from the programs.
        show_progress: show a progress bar.

    Returns:
        The parts of the KL in nats per datum with standard errors, the units, and a verdict.

    Raises:
        ValueError: if there are fewer than 2 data or draws, or the programs break their contract.

    Example:
        >>> print(latents(vae.model, vae.guide, data.test.fixed()))

    """
    if len(x) < 2:
        raise ValueError(f"a variance takes at least 2 data, but received {len(x)}; give more")
    args = (x, *covariates)
    with (
        scoring_context(model, guide, args, modules=modules) as programs,
        torch.no_grad(),
        progress("latent variables", 2 * len(x), show_progress=show_progress, unit="data") as advance,
    ):
        with forked_random(stream_seed(seed, "latents", 0), x.device):
            names, codes, joint = _codes(programs, args, num_draws, advance)
        with forked_random(stream_seed(seed, "latents", 1), x.device):
            compared = information(programs, args, lambda done: advance(len(x) + done))
        with forked_random(stream_seed(seed, "latents", 2), x.device):
            prior = _prior_moments(programs, args)
            has_normal_units = prior is not None and _has_normal_units(programs, args)
    kl = Estimate.over_data("KL", num_draws, codes["KL"], codes["KL variance"].unsqueeze(0))
    ceiling = math.log(compared.num_aggregate)
    below, above = _bounded(_over_codes(compared.below), _over_codes(compared.above), kl, ceiling)
    marginal = _marginal(codes["KL"], compared, kl, below, same_prior=prior is not None)
    units = _units(names, codes, prior, num_draws=num_draws)
    sites = ", ".join(map(repr, joint))
    verdict, reason = _assess_collapse(units, kl, below)
    prior_verdict, prior_reason = _assess_prior(kl, above, marginal, units if has_normal_units else ())
    return Latents(
        num_data=len(x),
        num_draws=num_draws,
        num_covariates=len(covariates),
        units=units,
        kl=kl,
        information=below,
        information_above=above,
        marginal_kl=marginal,
        num_aggregate=compared.num_aggregate,
        num_codes=compared.below.numel(),
        ceiling=ceiling,
        why_units=f"guide or prior of {sites} is a joint distribution of its units" if sites else None,
        verdict=verdict,
        reason=reason,
        prior_verdict=prior_verdict,
        prior_reason=prior_reason,
        seed=seed,
        per_datum={"KL": codes["KL"], "information": compared.below.mean(0)},
    )


def _codes(
    programs: ModelGuide, args: tuple[Any, ...], num_draws: int, advance: Callable[[int], object]
) -> tuple[tuple[str, ...], dict[str, Tensor], list[str]]:
    """Return the names of the units; mean, variance and KL of each ``(N, D)``, and the KL of each datum with its Monte
    Carlo variance ``(N,)``; and the names of sites without a KL of each unit.
    """
    parts, done = [], 0
    elements = num_draws * sum(latent.num_elements for latent in programs.latents.values())
    for rows in iter_batches(programs, len(args[0]), batch_size=max(1, BATCH_ELEMENTS // max(1, elements))):
        space = UnconstrainedLatents(programs, args, rows.to(args[0].device))
        u, _ = space.draw(num_draws)
        units, total, noise, joint = unit_kl(space)
        part = {"mean": u.mean(0), "variance": u.var(0), "unit KL": units, "KL": total, "KL variance": noise}
        parts.append({name: value.cpu().double() for name, value in part.items()})
        done += len(rows)
        advance(done)
    return space.names, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, joint


def _prior_moments(programs: ModelGuide, args: tuple[Any, ...]) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance of each unit under the prior ``(D,)``, or None if the prior differs between data."""
    rows = next(iter_batches(programs, len(args[0]), batch_size=min(len(args[0]), 64))).to(args[0].device)
    z, _ = draw_guide(programs, args, rows, 1)
    own = sum_over_sites(score_model(programs, args, rows, z, with_kl=False).prior)
    moved = {name: value.roll(1, 1) for name, value in z.items()}
    others = sum_over_sites(score_model(programs, args, rows, moved, with_kl=False).prior)
    if not torch.allclose(own.roll(1, 1), others, rtol=1e-4, atol=1e-4, equal_nan=True):
        return None
    u = UnconstrainedLatents(programs, args, rows).draw_prior(-(-PRIOR_DRAWS // len(rows))).flatten(0, 1).cpu().double()
    return u.mean(0), u.var(0)


def _has_normal_units(programs: ModelGuide, args: tuple[Any, ...]) -> bool:
    """Return whether the prior is of one latent site, a product of normal distributions."""
    rows = next(iter_batches(programs, len(args[0]), batch_size=2))
    _, model_trace = run(*programs.bind(args, rows.to(args[0].device)))
    sites = [model_trace.nodes[name]["fn"] for name in programs.latents]
    return len(sites) == 1 and isinstance(unwrapped(sites[0]), torch.distributions.Normal)


def _over_codes(values: Tensor) -> Estimate:
    """Return the mean of values ``(R, T)`` of R codes of T data; values that rounding explains count as zero."""
    draws = len(values)
    values = torch.where(values.abs() < ROUNDING, 0.0, values)
    variances = values.var(0).unsqueeze(0) / draws if draws > 1 else values[:0]
    return Estimate.over_data("I(x; z)", draws, values.mean(0), variances)


def _bounded(below: Estimate, above: Estimate, kl: Estimate, ceiling: float) -> tuple[Estimate, Estimate]:
    """Clamp both bounds of I(x; z) to the limits 0, log M, and the KL, which is at least I.

    An upper bound that exceeds the KL is replaced by it, errors included.
    """
    if below.value is None or above.value is None:
        return below, above
    most = above.value
    if kl.value is not None and most > kl.value:
        above, most = replace(kl, name=above.name), kl.value
    least = max(0.0, min(below.value, ceiling, most))
    return replace(below, value=least), replace(above, value=max(most, least))


def _marginal(kl: Tensor, compared: Information, total: Estimate, below: Estimate, *, same_prior: bool) -> Estimate:
    """Return KL(q(z) || p(z)): the mean KL of all N data minus the information of T of the data."""
    why = None if same_prior else "the prior differs between data, so that q(z) cannot be compared with a single prior"
    why = why or total.why or below.why
    if why is not None:
        return Estimate("marginal KL", below.num_particles, None, None, None, why)
    assert total.value is not None
    assert below.value is not None
    values = compared.below.mean(0)
    covariance = torch.stack([values, kl[compared.rows]]).cov()
    variance = covariance[0, 0] / len(values) + (kl.var() - 2 * covariance[0, 1]) / len(kl)
    noise = [error**2 for error in (total.se_monte_carlo, below.se_monte_carlo) if error is not None]
    return Estimate(
        "marginal KL",
        below.num_particles,
        total.value - below.value,
        variance.clamp(min=0).sqrt().item(),
        math.sqrt(sum(noise)) if below.se_monte_carlo is not None else None,
    )


def _units(
    names: Sequence[str], codes: dict[str, Tensor], prior: tuple[Tensor, Tensor] | None, *, num_draws: int
) -> tuple[Unit, ...]:
    """Return the units, active ones first, then by KL.

    ``activity_i = Var_x(E_{q(z | x)} z_i)``, minus the variance of a mean over S draws

    ``codes`` are from `_codes`; ``prior`` is mean and variance of each unit ``(D,)``, or None.
    """
    means, variance = codes["mean"], codes["variance"].mean(0)
    center = means.mean(0)
    moved = (means - center) ** 2 * len(means) / (len(means) - 1) - codes["variance"] / num_draws  # (N, D)
    activity = moved.mean(0)
    misfit = torch.full_like(activity, math.nan)
    if prior is not None:
        ratio = (activity.clamp(min=0) * (1 - 1 / len(means)) + variance) / prior[1]  # of q(z) over these N data
        misfit = 0.5 * (ratio + (center - prior[0]) ** 2 / prior[1] - 1 - ratio.log())
    columns = {
        "activity": activity,
        "activity_error": moved.std(0) / math.sqrt(len(means)),
        "variance": variance,
        "kl": codes["unit KL"].mean(0),
        "misfit": misfit,
    }
    units = []
    for d, name in enumerate(names):
        numbers = {field: value[d].item() if value[d].isfinite() else None for field, value in columns.items()}
        moves, spread = numbers["activity"], numbers["variance"]
        active = None if moves is None or spread is None else moves > ACTIVE
        verdict = _unit_verdict(numbers["kl"], numbers["misfit"], active=active)
        units.append(Unit(name=name, active=active, verdict=verdict, **numbers))
    return tuple(
        sorted(units, key=lambda unit: (not unit.active, -(unit.activity or 0 if unit.kl is None else unit.kl)))
    )


def _unit_verdict(kl: float | None, misfit: float | None, *, active: bool | None) -> str:
    """Return whether a unit is active, and whether its codes by themselves have the distribution of the prior."""
    if active is None:
        return "unknown: not finite for some data"
    far = misfit is not None and misfit > MAX_FITTING[0]
    if active:
        return "active" if misfit is None else "active, away from the prior" if far else "active, near the prior"
    if far or (kl is not None and kl > MAX_FITTING[0]):
        return "collapsed, away from the prior"
    return "collapsed" if misfit is None and kl is None else "collapsed onto the prior"


def _assess_collapse(units: Sequence[Unit], kl: Estimate, below: Estimate) -> tuple[str, str]:
    """Return the verdict on a collapse by a lower bound of I(x; z), and the reason."""
    if below.value is None or kl.value is None:
        return UNDECIDED, below.why or kl.why or "there is no I(x; z)"
    active = sum(bool(unit.active) for unit in units)
    few = f"{active} of {len(units)} units are active" if active else "no unit is active"
    if below.value <= MAX_COLLAPSED or (not active and below.value <= 2 * (below.se_data or 0.0)):
        return "collapsed", f"I(x; z) is {below.value:.3f} nats and {few}"
    return "not collapsed", f"I(x; z) is at least {below.value:.3f} nats and {few}"


def _assess_prior(kl: Estimate, above: Estimate, marginal: Estimate, units: Sequence[Unit]) -> tuple[str, str]:
    """Return whether the prior fits q(z), and the reason.

    The marginal KL lies between ``kl - above``, as ``above`` bounds I(x; z) from above in the mean, and ``marginal``.
    For ``units`` with a normal prior the sum of their misfits is a lower limit too: with N the normal distribution that
    has the moments of q(z), ``KL(q || p) = KL(q || N) + KL(N || p)``, and correlations add to the second term.
    """
    if marginal.value is None or kl.value is None:
        return UNDECIDED, marginal.why or kl.why or "there is no marginal KL"
    limit = max(MAX_FITTING[0], MAX_FITTING[1] * kl.value)
    if marginal.value <= limit:
        return "fits", f"q(z) is at most {marginal.value:.3f} nats from it"
    by_codes = kl.value - above.value if above.value is not None else 0.0
    by_units = sum(unit.misfit or 0.0 for unit in units) - len(units) / PRIOR_DRAWS  # less the error of prior moments
    by_units = min(by_units, marginal.value)
    span = f"q(z) is {max(by_codes, by_units):.3f} to {marginal.value:.3f} nats from it"
    fits_not = max(by_codes - 2 * (marginal.se_data or 0.0), by_units) > limit
    return ("does not fit" if fits_not else UNDECIDED), span
