"""Where the gap between ELBO and log p(x) comes from: one encoder for all data, or the shape of its posterior."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.diagnostics.gap_bounds import VARIANCE, GapBounds
from pyrovae.diagnostics.refine import is_diagonal_gaussian
from pyrovae.diagnostics.refit import Refit, refit
from pyrovae.importance import iter_batches, require_tensor, scoring_context
from pyrovae.importance.sampling import check_num_particles
from pyrovae.programs import Program
from pyrovae.results import Estimate
from pyrovae.results.tightness import Gaps
from pyrovae.runtime import memory
from pyrovae.runtime.arguments import require_integer
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress


def gaps(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    bound: Tensor | None = None,
    bound_label: str = "the given bound",
    bound_variances: Tensor | None = None,
    num_particles: int = 1000,
    num_steps: int = 300,
    num_starts: int = 3,
    refit_epochs: int = 50,
    seed: int = 0,
    batch_size: int = 200,
    modules: Iterable[nn.Module] = (),
    show_progress: bool = False,
) -> Gaps:
    """Split the gap between the ELBO and the tightest bound on log p(x) into the steps that it is made of.

    The amortization gap is what the guide loses against a diagonal Gaussian that is found for each datum by itself; the
    part of it that goes away where the guide is fitted to these data is its over-fitting. The approximation gap is what
    the diagonal Gaussian loses against the tightest bound. A refinement that stops early, or ends on a lesser mode of
    the posterior, makes the former too small and the latter too large; so it starts from the guide and, for posteriors
    of several modes, from likely draws of the prior. A bound far below log p(x) makes the latter too small.

    Where no bound is given it is L_2K with K draws of the guide and K of the refined Gaussian, all weighted by
    ``p(x, u) / (q(u | x) / 2 + r(u) / 2)``, which is about as tight as the better of the two with K draws.

    Values, gradients and modes of all parameters are afterwards as before, to the last bit, also after an exception.
    Random streams are forked, batch i having its own.

    *Inference suboptimality in variational autoencoders (Cremer, Li, Duvenaud 2018)*, https://arxiv.org/abs/1801.03558

    Args:
        model: a Pyro program called with ``(x, *covariates)``; see `pyrovae.programs` for the contract.
        guide: another.
        x: ``(B, ...)``, the data.
        covariates: what travels with x along the data plate.
        bound: an estimate of log p(x) from below for each datum ``(B,)``, nats, such as AIS or L_5000.
        bound_label: its name.
        bound_variances: ``(N,)`` or ``(C, N)``, one or several estimates of its Monte Carlo variances, of which the one
            with the largest sum counts; its Monte Carlo error is not known without.
        num_particles: K, fresh draws of each datum from which each bound is estimated.
        num_steps: gradient steps of the refinement.
        num_starts: of the refinement, for each datum; the best counts.
        refit_epochs: over the data, in which the guide's own parameters are fitted to them; 0 leaves this out.
        seed: of all random streams.
        batch_size: data refined together.
        modules: those used by the programs that cannot be found from them.
        show_progress: whether progress is shown.

    Returns:
        The bounds and the steps between them, paired datum by datum.

    Raises:
        ValueError: if a number is out of range, the bound has another shape, there are no data or some are not finite,
            or the pair breaks its contract.

    Example:
        >>> print(gaps(vae.model, vae.guide, x, bound=annealing.per_datum["AIS"], bound_label="AIS"))

    """
    check_num_particles(num_particles)
    require_tensor(x)
    numbers = {"num_steps": num_steps, "num_starts": num_starts, "refit_epochs": refit_epochs, "batch_size": batch_size}
    _check(x, bound, bound_variances, **numbers)
    args, parts, done = (x, *covariates), [], 0
    with scoring_context(model, guide, args, modules=modules) as programs, torch.no_grad():
        per_particle = 16 + 4 * sum(latent.num_elements for latent in programs.latents.values())
        memory.require(
            8.0 * per_particle * num_particles * min(batch_size, len(x)),
            what=f"{num_particles} particles of {min(batch_size, len(x))} data",
            hint="choose fewer, or a smaller batch_size",
            device=x.device,
        )
        new = refit(programs, args, num_epochs=refit_epochs, seed=seed, show_progress=show_progress)
        with progress("refining", len(x), show_progress=show_progress, unit="data") as advance:
            for number, (rows, count) in enumerate(iter_batches(programs, len(x), batch_size=batch_size)):
                batch = GapBounds(programs, args, rows.to(x.device), (seed, number))
                if number == 0:
                    batch.space.tell_of_cut_gradient()
                found = batch.values(
                    new, num_particles=num_particles, num_steps=num_steps, num_starts=num_starts, tight=bound is None
                )
                parts.append({name: value[..., :count].cpu().double() for name, value in found.items()})
                done += count
                advance(done)
        with forked_random(stream_seed(seed, "gaps shape"), x.device):
            diagonal = is_diagonal_gaussian(batch.space)
    values = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
    if bound is not None:
        noise = torch.empty(0, len(x)) if bound_variances is None else bound_variances.reshape(-1, len(x)).cpu()
        values |= {"bound": bound.detach().cpu().double(), VARIANCE + "bound": noise.double()}
    label, inside = ("IWAE", batch.num_weights) if bound is None else (bound_label, 1)
    tightest = Estimate.over_data(label, inside, values["bound"], values[VARIANCE + "bound"])
    estimates = _estimates(values, num_particles, tightest, new)
    methods = _methods(tightest.label, num_particles, num_steps, given=bound is not None, mixed=inside > num_particles)
    history, num_apart = values.pop("history"), int(values.pop("apart").sum())
    return Gaps(
        **estimates,  # type: ignore[arg-type]
        num_data=len(x),
        seed=seed,
        settings={
            "num_particles": num_particles,
            **numbers,
            "device": str(x.device),
            "dtype": str(x.dtype).removeprefix("torch."),
        },
        notes=(*methods, *_notes(estimates, history, new, num_apart=num_apart, num_data=len(x), diagonal=diagonal)),
        per_datum={name: value for name, value in values.items() if not name.startswith(VARIANCE)},
    )


def _estimates(values: dict[str, Tensor], k: int, bound: Estimate, new: Refit) -> dict[str, Estimate]:
    """Return the bounds and the steps between them, by the names of the record's fields."""

    def bound_of(name: str, label: str) -> Estimate:
        return Estimate.over_data(label, k, values[name], values[VARIANCE + name])

    def step(name: str, high: str, low: str, variances: Tensor | None = None) -> Estimate:
        both = [values[VARIANCE + name] for name in (high, low)]
        if variances is None:  # where one is not known, neither is their sum
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


def _methods(label: str, num_particles: int, num_steps: int, *, given: bool, mixed: bool) -> list[str]:
    """Return how the bounds were found."""
    notes = [f"The refined Gaussian: {num_steps} steps from the moments of the guide's draws, then fresh draws."]
    if mixed and not given:
        notes.append(
            f"{label} takes {num_particles} draws of the guide and as many of the refined Gaussian; the approximation "
            "gap is too small by what it lacks of log p(x)."
        )
    elif not given:
        notes.append(f"{label} takes draws of the refined Gaussian: the guide has no density of a given z.")
    return notes


def _notes(
    found: dict[str, Estimate], history: Tensor, new: Refit, *, num_apart: int, num_data: int, diagonal: bool | None
) -> list[str]:
    """Return what should be known when the numbers are read."""
    notes = []
    if num_apart:
        notes.append(
            f"For {num_apart} of {num_data} data the best Gaussian was reached from a draw of the prior, and lies "
            "apart from the one reached from the guide: their posterior has several modes, or num_steps is too small."
        )
    if new.values:
        notes.append(
            f"Over-fitting: {sum(value.numel() for value in new.values)} parameters of the guide were fitted to these "
            "data. Subtract what the same refit gains on training data: the rest is over-fitting."
        )
    if new.values and _below_zero(found["overfitting"]):
        notes.append(
            "The over-fitting is negative: the refit ended with a lower ELBO than it began with. Its optimization "
            "failed, and the number says nothing of over-fitting; raise refit_epochs."
        )
    if new.values and new.num_shared:
        notes.append(f"{new.num_shared} tensors of parameters that guide and model share were held in that refit.")
    if diagonal is False:
        negative = ", as it is here" if _below_zero(found["amortization"]) else ""
        notes.append(
            "The guide is not a diagonal Gaussian over the unconstrained latent vector: what its wider family gains "
            f"counts in the amortization gap with a minus, so that it can be negative{negative}."
        )
    elif _below_zero(found["amortization"]):
        notes.append(
            "The refinement did not get as far as the guide is: the amortization gap is negative; raise num_steps."
        )
    if _below_zero(found["approximation"]):
        notes.append(
            "The bound lies below the refined Gaussian's ELBO, so that it is not the tightest; give a tighter one."
        )
    rise, noise = _rise(history)
    if rise > max(3 * noise, 0.01 * abs(found["total"].value or 0.0)):
        notes.append(f"The refinement was still rising, by {rise:.3f} nats over its last steps; raise num_steps.")
    return notes


def _below_zero(step: Estimate) -> bool:
    """Tell whether a step is negative beyond its standard errors."""
    noise = max(step.se_monte_carlo or 0.0, step.se_data or 0.0)
    return step.value is not None and step.value < -2 * noise


def _rise(history: Tensor) -> tuple[float, float]:
    """Return what the refinement ``(num_steps, N)`` gained towards its end, and the noise of that."""
    means = history.mean(1)
    tenth = len(means) // 10
    if tenth < 2 or not means.isfinite().all():
        return 0.0, 0.0
    middle, end = means[6 * tenth : 7 * tenth], means[-tenth:]
    noise = means[len(means) // 2 :].diff().square().mean().div(2)  # of one step, without what it rises by
    return (end.mean() - middle.mean()).item(), math.sqrt(2 * noise.item() / tenth)


def _check(x: Tensor, bound: Tensor | None, variances: Tensor | None, **numbers: int) -> None:
    for name, value in numbers.items():
        require_integer(value, name=name, least=0 if name == "refit_epochs" else 1)
    if bound is not None and (not isinstance(bound, Tensor) or tuple(bound.shape) != (len(x),)):
        received = tuple(bound.shape) if isinstance(bound, Tensor) else type(bound).__name__
        raise ValueError(
            f"a bound has one value for each of the {len(x)} data, shape ({len(x)},), but received {received}; give "
            "for instance per_datum['L_5000'] of an evaluation of the same data"
        )
    if variances is not None and (bound is None or tuple(variances.shape[-1:]) != (len(x),)):
        raise ValueError(
            f"bound_variances are those of the bound, one for each of the {len(x)} data, but received "
            f"{tuple(variances.shape)}{' and no bound' if bound is None else ''}; give per_datum['AIS'] and "
            "per_datum['AIS variance'] of an annealing of the same data"
        )
