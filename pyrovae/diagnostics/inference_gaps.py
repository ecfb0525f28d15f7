"""Amortization gap and approximation gap: the parts of the gap between ELBO and log p(x)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.evidence import particle_terms
from pyrovae.bounds.multi_sample import VARIANCE, iwae, monte_carlo_variances
from pyrovae.diagnostics.refine import DiagonalGaussian, Refit, best_of, further_starts, refine, refit, start
from pyrovae.importance import UnconstrainedLatents, iter_batches, iter_particles, scoring_context
from pyrovae.programs import ModelGuide, Program
from pyrovae.programs.layout import to_float64
from pyrovae.results import Estimate
from pyrovae.results.tightness import Gaps
from pyrovae.runtime.annotations import CheckedFields, NonNegativeInt, PositiveInt, checked, merge_options
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

REFIT = "gain of a refit"  # of the guide to the same data
NUMBERS = ("num_particles", "num_steps", "num_starts", "refit_epochs", "batch_size")  # options that are reported


@dataclass(frozen=True)
class GapOptions(CheckedFields):
    """How the gaps are estimated.

    Attributes:
        bound_label: name of the given bound.
        bound_variances: ``(N,)`` or ``(C, N)``, one or several estimates of the Monte Carlo variances of the given
            bound; the estimate with the largest sum counts; None if they are unknown.
        num_particles: K, fresh draws of each datum from which each bound is estimated.
        num_steps: gradient steps of the refinement.
        num_starts: starts of the refinement for each datum; the best result counts.
        refit_epochs: passes over the data in which the guide's own parameters are fitted to them; 0 skips the refit.
        batch_size: data refined together.
        modules: modules of the programs that cannot be found from the programs.
        show_progress: show a progress bar.

    Raises:
        ValueError: if a number is out of range.

    """

    bound_label: str = "the given bound"
    bound_variances: Tensor | None = None
    num_particles: PositiveInt = 1000
    num_steps: PositiveInt = 300
    num_starts: PositiveInt = 3
    refit_epochs: NonNegativeInt = 50
    batch_size: PositiveInt = 200
    modules: Iterable[nn.Module] = ()
    show_progress: bool = False


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
    guide. The part of it that vanishes where the guide is fitted to these data is the gain of a refit; as far as the
    same refit on training data gains less, it is over-fitting of the guide. The approximation gap is the tightest bound
    minus the ELBO of the diagonal Gaussian.

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
    if bound is not None and bound.shape != (len(x),):
        raise ValueError(
            f"a bound has one value for each of the {len(x)} data, shape ({len(x)},), but received "
            f"{tuple(bound.shape)}; give for instance per_datum['L_5000'] of an evaluation of the same data"
        )
    args = (x, *covariates)
    with scoring_context(model, guide, args, modules=options.modules) as programs, torch.no_grad():
        refitted = refit(
            programs, args, num_epochs=options.refit_epochs, seed=seed, show_progress=options.show_progress
        )
        values, num_weights = _all_bounds(programs, args, refitted, options, seed=seed, tight=bound is None)
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
        notes=_notes(estimates, refitted, history, options, num_weights=num_weights, num_apart=num_apart),
        per_datum={name: value for name, value in values.items() if not name.startswith(VARIANCE)},
    )


def _all_bounds(
    programs: ModelGuide, args: tuple[Any, ...], refitted: Refit, options: GapOptions, *, seed: int, tight: bool
) -> tuple[dict[str, Tensor], int]:
    """Estimate ELBO of the guide, ELBO of a refined Gaussian, and, if tight, a tighter bound, batch by batch.

    Returns:
        Bounds ``(N,)``, their Monte Carlo variances ``(C, N)``, the history of the refinement ``(num_steps, N)`` and
        whether it ended apart from the result of the guide's start ``(N,)``; and the number of weights in the tighter
        bound.

    """
    x, parts, done = args[0], [], 0
    with progress("refining", len(x), show_progress=options.show_progress, unit="data") as advance:
        for number, rows in enumerate(iter_batches(programs, len(x), batch_size=options.batch_size)):
            batch = _BatchBounds(programs, args, rows.to(x.device), seed, number)
            part = batch.values(refitted, options, tight=tight)
            parts.append({name: value.cpu().double() for name, value in part.items()})
            done += len(rows)
            advance(done)
    return {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}, batch.num_weights


class _BatchBounds:
    """Bounds of one batch of data, each from its own random stream."""

    def __init__(self, programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, seed: int, number: int) -> None:
        self.programs, self.args, self.rows, self.seed, self.number = programs, args, rows, seed, number
        self.num_weights = 0  # particles of the tighter bound
        with self.random("space"):
            self.space = UnconstrainedLatents(programs, args, rows)
        if number == 0:
            self.space.check_densities(with_guide=False)

    def random(self, word: str) -> AbstractContextManager[None]:
        """Return the context in which draws come from a stream of this batch."""
        return forked_random(stream_seed(self.seed, f"gaps {word}", self.number), self.rows.device)

    def values(self, refitted: Refit, options: GapOptions, *, tight: bool) -> dict[str, Tensor]:
        """Return the values of `_all_bounds` for this batch."""
        elbo, *drawn = self.guide(options.num_particles)
        with self.random("refine"):
            starts = further_starts(self.space, start(self.space), options.num_starts)
            q, history, apart = best_of(*refine(self.space, starts, num_steps=options.num_steps))
        with self.random("refined"):
            u = q.draw(options.num_particles, drawn[0].dtype)
        log_joint, log_q = self.space.log_joint(u), q.log_prob(to_float64(u))
        result = {"history": history, "apart": apart}
        result |= _estimated("ELBO", elbo, 1) | _estimated("refined", log_joint - log_q, 1)
        if tight:
            mixed = self.mixed(q, (u, log_joint, log_q), *drawn)
            self.num_weights = len(mixed)
            result |= _estimated("bound", mixed, len(mixed))
        if refitted.values:
            with refitted.in_place():
                again, *_ = self.guide(options.num_particles)  # the same draws, so that most noise cancels
            result |= _estimated("refitted", again, 1)
            result[VARIANCE + REFIT] = monte_carlo_variances(again - elbo, 1)
        return result

    def guide(self, num_particles: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw from the guide: the ELBO of each particle ``(K, B)``, u ``(K, B, D)``, log p(x, u) and log q(u | x)."""
        with self.random("guide"):
            particles = list(iter_particles(self.programs, self.args, self.rows, num_particles))
        u = torch.cat([self.space.flatten(block.z) for block in particles])
        log_det = self.space.log_det(u)
        return (
            torch.cat([particle_terms(self.programs, block).elbo for block in particles]),
            u,
            torch.cat([block.log_prior + block.log_likelihood for block in particles]) + log_det,
            torch.cat([block.log_guide for block in particles]) + log_det,
        )

    def mixed(
        self, q: DiagonalGaussian, drawn: tuple[Tensor, ...], u: Tensor, log_joint: Tensor, log_guide: Tensor
    ) -> Tensor:
        """Return log-weights ``(2 K, B)`` of draws of q and of the guide, alternating, under their mixture.

        ``drawn`` are draws of q with their log p(x, u) and log q(u); the others are those of the guide. If the guide
        has no density of a given u, the result is the weights of q alone, ``(K, B)``.

        *Optimally combining sampling techniques for Monte Carlo rendering (Veach, Guibas 1995)*,
        https://doi.org/10.1145/218380.218498
        """
        try:
            guide_of_drawn = self.space.log_guide(drawn[0])
        except ValueError:
            return drawn[1] - drawn[2]
        first = drawn[1] - torch.logaddexp(drawn[2], guide_of_drawn)
        second = log_joint - torch.logaddexp(q.log_prob(to_float64(u)), log_guide)
        return torch.stack([first, second], 1).flatten(0, 1) + math.log(2)  # so each block holds draws of both


def _estimated(name: str, log_weights: Tensor, k: int) -> dict[str, Tensor]:
    """Return L_k of log-weights ``(K, B)`` and its Monte Carlo variances, by name."""
    return {name: iwae(log_weights, (k,))[0], VARIANCE + name: monte_carlo_variances(log_weights, k)}


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
        overfitting = step(REFIT, "refitted", "ELBO", values[VARIANCE + REFIT])
    else:
        refitted = Estimate("ELBO of the refitted guide", k, None, None, None, new.why)
        overfitting = Estimate(REFIT, k, None, None, None, new.why)
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
) -> tuple[str, ...]:
    """Return the methods by which the bounds were estimated, and cautions about the numbers, as sentences."""
    k, label, num_data = options.num_particles, estimates["bound"].label, history.shape[1]
    negative = {name: estimates[name].is_below(2) for name in ("amortization", "overfitting", "approximation")}
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
        f"{REFIT.capitalize()}: {sum(value.numel() for value in refitted.values)} parameters of the guide were fitted "
        "to these data. Minus the gain of a refit on as many training data, it is the over-fitting of the guide.": (
            len(refitted.values) > 0
        ),
        f"The {REFIT} is negative: its optimization failed; raise refit_epochs.": negative["overfitting"],
        f"{refitted.num_shared} tensors of parameters that guide and model share were held fixed in that refit.": (
            len(refitted.values) > 0 and refitted.num_shared > 0
        ),
        "The amortization gap is negative: the guide has a wider family than the refined Gaussian, which is diagonal "
        "over the unconstrained latent vector, or num_steps is too small.": negative["amortization"],
        "The bound lies below the refined Gaussian's ELBO, so that it is not the tightest; give a tighter one.": (
            negative["approximation"]
        ),
        f"The refinement was still rising, by {rise:.3f} nats over its last steps; raise num_steps.": (
            rise > max(3 * noise, 0.01 * abs(estimates["total"].value or 0.0))
        ),
    }
    return (method, *(note for note, applies in notes.items() if applies))


def _rise(history: Tensor) -> tuple[float, float]:
    """Return the gain of the refinement ``(num_steps, N)`` over its last steps and the standard error of the gain."""
    means = history.mean(1)
    tenth = len(means) // 10
    if tenth < 2 or not means.isfinite().all():
        return 0.0, 0.0
    middle, end = means[6 * tenth : 7 * tenth], means[-tenth:]
    noise = means[len(means) // 2 :].diff().square().mean().div(2)  # variance of one step without the rise
    return (end.mean() - middle.mean()).item(), math.sqrt(2 * noise.item() / tenth)
