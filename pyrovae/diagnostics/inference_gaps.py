"""Amortization gap and approximation gap: the parts of the gap between ELBO and log p(x)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.bounds.multi_sample import VARIANCE
from pyrovae.diagnostics.gap_bounds import NUMBERS, GapOptions, all_bounds
from pyrovae.diagnostics.refit import Refit, refit
from pyrovae.importance import scoring_context
from pyrovae.programs import Program
from pyrovae.results import Estimate
from pyrovae.results.tightness import Gaps
from pyrovae.runtime.annotations import checked, merge_options


@checked
def gaps(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    bound: Tensor | None = None,
    seed: int = 0,
    options: GapOptions | None = None,
    **keywords: Any,
) -> Gaps:
    """Split the gap between the ELBO and the tightest bound on log p(x) into steps.

    The amortization gap is the ELBO of a diagonal Gaussian that is optimized for each datum, minus the ELBO of the
    guide. The part of it that vanishes where the guide is fitted to these data is over-fitting. The approximation gap
    is the tightest bound minus the ELBO of the diagonal Gaussian.

    A refinement that stops early, or ends on a lesser mode of the posterior, makes the amortization gap too small and
    the approximation gap too large. Therefore it starts from the guide and, for posteriors with several modes, from
    likely draws of the prior. A bound far below log p(x) makes the approximation gap too small.

    Where no bound is given it is L_2K with K draws of the guide and K of the refined Gaussian, all weighted by
    ``p(x, u) / (q(u | x) / 2 + r(u) / 2)``, which is about as tight as the better of the two with K draws.

    Values, gradients and modes of all parameters are restored afterwards, to the last bit, also after an exception.
    Random streams are forked; each batch has its own.

    *Inference suboptimality in variational autoencoders (Cremer, Li, Duvenaud 2018)*, https://arxiv.org/abs/1801.03558

    Args:
        model: a Pyro program called with ``(x, *covariates)``; see `pyrovae.programs` for the contract.
        guide: another.
        x: ``(N, ...)``, the data.
        covariates: tensors that travel with x along the data plate.
        bound: a lower estimate of log p(x) of each datum ``(N,)``, nats, such as AIS or L_5000.
        seed: seed of all random streams.
        options: numbers of draws and steps, and the other fields of `GapOptions`.
        keywords: fields of `GapOptions`, which override ``options``.

    Returns:
        The bounds and the steps between them, paired datum by datum.

    Raises:
        ValueError: if a number is out of range, the bound has another shape, the data are empty or not finite, or the
            programs break their contract.
        TypeError: if a keyword is not an option.

    Example:
        >>> print(gaps(vae.model, vae.guide, x, bound=annealing.per_datum["AIS"], bound_label="AIS"))

    """
    options = merge_options(options, GapOptions, keywords, function="gaps")
    _check_bound(len(x), bound, options.bound_variances)
    args = (x, *covariates)
    with scoring_context(model, guide, args, modules=options.modules) as programs, torch.no_grad():
        refitted = refit(
            programs, args, num_epochs=options.refit_epochs, seed=seed, show_progress=options.show_progress
        )
        values, num_weights, diagonal = all_bounds(programs, args, refitted, options, seed=seed, tight=bound is None)
    history, num_apart = values.pop("history"), int(values.pop("apart").sum())
    label, k = "IWAE", num_weights
    if bound is not None:
        noise = torch.empty(0, len(x)) if options.bound_variances is None else options.bound_variances
        values["bound"] = bound.detach().cpu().double()
        values[VARIANCE + "bound"] = noise.reshape(-1, len(x)).cpu().double()
        label, k = options.bound_label, 1
    tightest = Estimate.over_data(label, k, values["bound"], values[VARIANCE + "bound"])
    estimates = _estimates(values, options.num_particles, tightest, refitted)
    settings = {name: getattr(options, name) for name in NUMBERS}
    return Gaps(
        **estimates,  # type: ignore[arg-type]
        num_data=len(x),
        seed=seed,
        settings=settings | {"device": str(x.device), "dtype": str(x.dtype).removeprefix("torch.")},
        notes=_notes(
            estimates, refitted, history, options, num_weights=num_weights, num_apart=num_apart, diagonal=diagonal
        ),
        per_datum={name: value for name, value in values.items() if not name.startswith(VARIANCE)},
    )


def _estimates(values: dict[str, Tensor], k: int, bound: Estimate, new: Refit) -> dict[str, Estimate]:
    """Return the bounds and the steps between them, by the names of the record's fields."""

    def bound_of(name: str, label: str) -> Estimate:
        return Estimate.over_data(label, k, values[name], values[VARIANCE + name])

    def step(name: str, high: str, low: str, variances: Tensor | None = None) -> Estimate:
        both = [values[VARIANCE + name] for name in (high, low)]
        if variances is None:  # unknown if one of the two is unknown
            variances = both[0] + both[1] if all(map(len, both)) else both[0].new_empty(0, len(values[high]))
        return Estimate.over_data(name, k, values[high] - values[low], variances)

    if new.values:
        refitted = bound_of("refitted", "ELBO of the refitted guide")
        overfitting = step("over-fitting", "refitted", "ELBO", values[VARIANCE + "over-fitting"])
    else:
        refitted = Estimate("ELBO of the refitted guide", k, None, None, None, new.why)
        overfitting = Estimate("over-fitting", k, None, None, None, new.why)
    return {
        "elbo": bound_of("ELBO", "ELBO of the guide"),
        "refitted": refitted,
        "refined": bound_of("refined", "ELBO of the refined Gaussian"),
        "bound": bound,
        "amortization": step("amortization gap", "refined", "ELBO"),
        "overfitting": overfitting,
        "approximation": step("approximation gap", "bound", "refined"),
        "total": step("total gap", "bound", "ELBO"),
    }


def _notes(
    estimates: dict[str, Estimate],
    refitted: Refit,
    history: Tensor,
    options: GapOptions,
    *,
    num_weights: int,
    num_apart: int,
    diagonal: bool | None,
) -> tuple[str, ...]:
    """Return the methods by which the bounds were estimated, and cautions about the numbers, as sentences."""
    k, label, num_data = options.num_particles, estimates["bound"].label, history.shape[1]
    negative = {name: _below_zero(estimates[name]) for name in ("amortization", "overfitting", "approximation")}
    rise, noise = _rise(history)
    method = f"The refined Gaussian: {options.num_steps} steps from the moments of the guide's draws, then fresh draws."
    notes = {  # sentences, and whether they apply
        f"{label} takes {k} draws of the guide and as many of the refined Gaussian; the approximation gap is "
        "too small by the distance of this bound from log p(x).": num_weights > k,
        f"{label} takes draws of the refined Gaussian: the guide has no density of a given z.": num_weights == k,
        f"For {num_apart} of {num_data} data the best Gaussian was reached from a draw of the prior, and lies "
        "apart from the one reached from the guide: their posterior has several modes, or num_steps is too small.": (
            num_apart > 0
        ),
        f"Over-fitting: {sum(value.numel() for value in refitted.values)} parameters of the guide were fitted to these "
        "data. Subtract the gain of the same refit on training data: the remainder is over-fitting.": (
            len(refitted.values) > 0
        ),
        "The over-fitting is negative: the refit ended with a lower ELBO than it began with. Its optimization "
        "failed, and the number does not measure over-fitting; raise refit_epochs.": negative["overfitting"],
        f"{refitted.num_shared} tensors of parameters that guide and model share were held fixed in that refit.": (
            len(refitted.values) > 0 and refitted.num_shared > 0
        ),
        "The guide is not a diagonal Gaussian over the unconstrained latent vector: the gain of its wider family "
        "counts in the amortization gap with a minus, so that the gap can be negative"
        f"{', as it is here' if negative['amortization'] else ''}.": diagonal is False,
        "The refinement did not reach the guide's ELBO: the amortization gap is negative; raise num_steps.": (
            diagonal is not False and negative["amortization"]
        ),
        "The bound lies below the refined Gaussian's ELBO, so that it is not the tightest; give a tighter one.": (
            negative["approximation"]
        ),
        f"The refinement was still rising, by {rise:.3f} nats over its last steps; raise num_steps.": (
            rise > max(3 * noise, 0.01 * abs(estimates["total"].value or 0.0))
        ),
    }
    return (method, *(note for note, applies in notes.items() if applies))


def _below_zero(step: Estimate) -> bool:
    """Return whether a step is negative beyond its standard errors."""
    noise = max(step.se_monte_carlo or 0.0, step.se_data or 0.0)
    return step.value is not None and step.value < -2 * noise


def _rise(history: Tensor) -> tuple[float, float]:
    """Return the gain of the refinement ``(num_steps, N)`` over its last steps and the standard error of the gain."""
    means = history.mean(1)
    tenth = len(means) // 10
    if tenth < 2 or not means.isfinite().all():
        return 0.0, 0.0
    middle, end = means[6 * tenth : 7 * tenth], means[-tenth:]
    noise = means[len(means) // 2 :].diff().square().mean().div(2)  # variance of one step without the rise
    return (end.mean() - middle.mean()).item(), math.sqrt(2 * noise.item() / tenth)


def _check_bound(num_data: int, bound: Tensor | None, variances: Tensor | None) -> None:
    """Check the shapes of a given bound and its variances."""
    if bound is not None and (not isinstance(bound, Tensor) or tuple(bound.shape) != (num_data,)):
        received = tuple(bound.shape) if isinstance(bound, Tensor) else type(bound).__name__
        raise ValueError(
            f"a bound has one value for each of the {num_data} data, shape ({num_data},), but received {received}; "
            "give for instance per_datum['L_5000'] of an evaluation of the same data"
        )
    if variances is not None and (bound is None or tuple(variances.shape[-1:]) != (num_data,)):
        raise ValueError(
            f"bound_variances belong to the bound, one for each of the {num_data} data, but received "
            f"{tuple(variances.shape)}{' and no bound' if bound is None else ''}; give both of the same annealing"
        )
