"""Draws of the guide and their log-probabilities under model and guide.

All log-probabilities are unscaled: plate sizes and the factors of `pyro.poutine.scale`, which serve training, do
not reach a bound. Functions take the structure of the programs from `scoring_context`, the arguments of the programs
with the data first, and the rows ``(B,)`` of the data that they run on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.chunks import FEWEST_ROWS, Chunk, CompiledRuns, chunk_sizes, map_chunks, rows_per_chunk
from pyrovae.programs import ModelGuide, replace_draws, run, run_validated, unmasked
from pyrovae.programs.analytic_kl import CLOSED_FORM
from pyrovae.programs.contract import require_common_masks
from pyrovae.programs.layout import closed_forms, from_pyro, log_probs, sum_over_sites, to_pyro
from pyrovae.results import Particles
from pyrovae.runtime.context import forked_random, stream_seed, validation

Draws = dict[str, Tensor]


@dataclass(frozen=True, repr=False)
class ParticleBatch(Particles):
    """Some particles of some rows: z of each site ``(K, B, ...)`` and log-probabilities ``(K, B)`` in nats.

    Attributes:
        kl: each site's KL: its closed form, ``(1, B)`` or ``(K, B)``, or else log q - log p of each particle.
        observed_sites: observed sites of the first run of the model; empty in later batches.

    """

    kl: Draws
    observed_sites: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Log-probabilities ``(K, B)`` in nats of given z: of each latent site, of all data, and closed-form KL terms."""

    prior: Draws
    likelihood: Tensor
    kl: Draws


def iter_particles(
    programs: ModelGuide,
    args: tuple[Any, ...],
    rows: Tensor,
    num_particles: int,
    *,
    chunk_size: int | None = None,
    compiled: CompiledRuns | None = None,
    checked: bool = True,
) -> Iterator[ParticleBatch]:
    """Yield the particles of some rows in batches; the draws do not depend on the chunks in which they are scored.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        num_particles: K, the number of particles in all batches together.
        chunk_size: rows that the model scores at once; see `score_model`.
        compiled: runs of the compiled model, None for eager runs.
        checked: whether shapes, supports and masks are checked by a run with one particle.

    Yields:
        Batches ``(K', B)``; the sum of the K' is K.

    """
    sizes, elements = chunk_sizes(rows.device), sum(latent.num_elements for latent in programs.latents.values())
    drawn_rows = sizes.drawn_rows if programs.broadcasts else sizes.rows  # the guide's networks run on each
    size = max(1, min(sizes.drawn // max(1, elements), drawn_rows) // max(1, len(rows)))
    first = next(iter(programs.latents))
    one = score_one_particle(programs, args, rows, checked=checked)
    first_kl = {first: one.kl[first]} if programs.kl[first] == CLOSED_FORM else {}  # the same for every particle
    if compiled is not None:
        chunk_size = chunk_size or rows_per_chunk(programs, rows.device, compiled=True)
    for start in range(0, num_particles, size):
        z, log_guide = draw_guide(programs, args, rows, min(size, num_particles - start))
        scores = score_model(programs, args, rows, z, chunk_size=chunk_size, compiled=compiled)
        estimated = {name: log_guide[name] - scores.prior[name] for name in programs.latents}
        yield ParticleBatch(
            z=z,
            log_prior=sum_over_sites(scores.prior),
            log_likelihood=scores.likelihood,
            log_guide=sum_over_sites(log_guide),
            kl=estimated | scores.kl | first_kl,
            observed_sites=one.observed_sites if start == 0 else {},
        )


def score_one_particle(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, *, checked: bool, nan_counts: bool = True
) -> ParticleBatch:
    """Run guide and model once on some rows, without an axis of particles, and return a batch of K = 1.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        checked: whether shapes, supports and masks are checked, so that data outside the support are refused.
        nan_counts: whether these checks let NaN pass.

    """

    def attempt() -> tuple[poutine.Trace, poutine.Trace, Tensor]:
        guide_trace, model_trace = run(*programs.bind(args, rows))
        if checked:
            _require_masks(programs, args, rows, guide_trace, model_trace)
        return guide_trace, model_trace, sum_over_sites(log_probs(programs, model_trace, programs.observed))

    if checked:
        guide_trace, model_trace, log_likelihood = run_validated(attempt, rows.device, nan_counts=nan_counts)
    else:
        with validation(enabled=False):
            guide_trace, model_trace, log_likelihood = attempt()
    log_prior, log_guide = (log_probs(programs, trace, programs.latents) for trace in (model_trace, guide_trace))
    exact = [name for name in programs.latents if programs.kl[name] == CLOSED_FORM]
    kl = {name: log_guide[name] - log_prior[name] for name in programs.latents}
    kl |= closed_forms(programs, exact, model_trace, guide_trace)
    return ParticleBatch(
        z=_values(programs, guide_trace),
        log_prior=sum_over_sites(log_prior),
        log_likelihood=log_likelihood,
        log_guide=sum_over_sites(log_guide),
        kl=kl,
        observed_sites={name: model_trace.nodes[name] for name in programs.observed},
    )


def _require_masks(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> None:
    """Check that both programs mask the same latent variables, and that the model does not depend on masked ones.

    Raises:
        ValueError: with the number of elements or data.

    """
    drawn, scored = ({name: trace.nodes[name] for name in programs.latents} for trace in (guide_trace, model_trace))
    require_common_masks(drawn, scored)
    others = {}
    with forked_random(stream_seed("masked"), rows.device):
        for name, site in drawn.items():
            visible = unmasked(site, site["value"].shape)
            if not visible.all():
                others[name] = torch.where(visible, site["value"], site["fn"].sample().expand(visible.shape))
        if not others:
            return
        model, _ = programs.bind(args, rows)
        values = {name: site["value"] for name, site in drawn.items()} | others
        again = poutine.trace(poutine.condition(model, data=values)).get_trace()
    names = (*programs.latents, *programs.observed)
    before, after = (sum_over_sites(log_probs(programs, trace, names)) for trace in (model_trace, again))
    differing = ~torch.isclose(before, after, rtol=1e-4, atol=1e-4, equal_nan=True)
    if differing.any():
        raise ValueError(
            f"the latent variables {', '.join(map(repr, others))} are masked, but the model depends on them for "
            f"{int(differing.sum())} of {len(rows)} data: they have no prior there; mask what depends on them too"
        )


def draw_guide(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, num_particles: int
) -> tuple[Draws, dict[str, Tensor]]:
    """Run the guide on some rows ``(B,)``: return z ``(K, B, ...)`` and log q(z | x) ``(K, B)``, both by site."""

    def draw(chunk: Chunk) -> list[Tensor]:
        _, guide = programs.bind(args, chunk.rows)
        trace = poutine.trace(chunk.with_plate(programs, guide)).get_trace()
        terms = log_probs(programs, trace, programs.latents)
        return [*_values(programs, trace).values(), *terms.values()]

    results = iter(map_chunks(draw, programs, rows, num_particles, size=num_particles * len(rows)))
    z = {name: next(results) for name in programs.latents}
    return z, {name: next(results) for name in programs.latents}


def draw_prior(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, num_particles: int) -> Draws:
    """Draw z from the prior.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first; the prior may depend on them.
        rows: ``(B,)``, rows of the data.
        num_particles: K.

    Returns:
        z of each latent site, ``(K, B, ...)``.

    """

    def draw(chunk: Chunk) -> list[Tensor]:
        model, _ = programs.bind(args, chunk.rows)
        trace = poutine.trace(chunk.with_plate(programs, model)).get_trace()
        return list(_values(programs, trace).values())

    results = map_chunks(draw, programs, rows, num_particles, size=num_particles * len(rows))
    return dict(zip(programs.latents, results, strict=True))


def score_model(
    programs: ModelGuide,
    args: tuple[Any, ...],
    rows: Tensor,
    z: Mapping[str, Tensor],
    *,
    chunk_size: int | None = None,
    with_kl: bool = True,
    compiled: CompiledRuns | None = None,
) -> Scores:
    """Run the model on some rows ``(B,)`` with given z ``(K, B, ...)``, chunk by chunk.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        z: for each latent site ``(K, B, ...)``.
        chunk_size: rows that the model scores at once, a datum with K particles counting K; if None chosen by the
            device, and halved where they do not fit into its memory, down to one particle of all rows.
        with_kl: whether closed-form KL terms of the sites after the first are computed too.
        compiled: runs of the compiled model, None for eager runs; all arguments are tensors then.

    """
    later = [name for name in list(programs.latents)[1:] if with_kl and programs.kl[name] == CLOSED_FORM]

    def score(chunk: Chunk) -> Sequence[Tensor]:
        plates = chunk.has_particles

        def score_tensors(*inputs: Any) -> list[Tensor]:
            """Return log-probabilities of each latent site and of all data, and later KLs."""
            own, (chosen, *given) = inputs[: len(args)], inputs[len(args) :]
            model, guide = programs.bind(own, chosen)
            draws = {n: to_pyro(programs, n, value, has_particles=plates) for n, value in zip(z, given, strict=True)}
            trace = poutine.trace(chunk.with_plate(programs, poutine.condition(model, data=draws))).get_trace()
            names = [name for name in trace.nodes if name in programs.latents or name in programs.observed]
            terms = log_probs(programs, trace, names)
            likelihood = sum_over_sites({name: terms[name] for name in programs.observed})
            kl: Draws = {}
            if later:
                guide_trace = poutine.trace(replace_draws(chunk.with_plate(programs, guide), draws)).get_trace()
                kl = closed_forms(programs, later, trace, guide_trace)
            return [*(terms[name] for name in programs.latents), likelihood, *kl.values()]

        inputs = (*args, chunk.rows, *map(chunk.slice, z.values()))
        return score_tensors(*inputs) if compiled is None else compiled(score_tensors, inputs)

    size = chunk_size or rows_per_chunk(programs, rows.device)
    fewest = max(FEWEST_ROWS, len(rows)) if programs.broadcasts else FEWEST_ROWS
    while True:
        try:
            results = iter(map_chunks(score, programs, rows, len(next(iter(z.values()))), size=size))
            break
        except torch.OutOfMemoryError:
            if chunk_size is not None or size <= fewest:
                raise
            size //= 2
    return Scores(
        prior={name: next(results) for name in programs.latents},
        likelihood=next(results),
        kl={name: next(results) for name in later},
    )


def score_guide(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, z: Mapping[str, Tensor], *, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """Return log q(z | x) of given z.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        z: for each latent site ``(K, B, ...)``.
        chunk_size: rows that the guide scores at once, a datum with K particles counting K; None for a size by the
            device.

    Returns:
        For each latent site ``(K, B)``, nats.

    Raises:
        ValueError: if the guide cannot compute the density of a z that it did not draw.

    """

    def score(chunk: Chunk) -> list[Tensor]:
        _, guide = programs.bind(args, chunk.rows)
        plates = chunk.has_particles
        draws = {n: to_pyro(programs, n, chunk.slice(value), has_particles=plates) for n, value in z.items()}
        try:
            trace = poutine.trace(replace_draws(chunk.with_plate(programs, guide), draws)).get_trace()
            return list(log_probs(programs, trace, programs.latents).values())
        except (NotImplementedError, KeyError) as error:
            raise ValueError(
                f"the guide has no density of a z that it did not draw ({type(error).__name__}: {error}); write the "
                "guide with a transform that has an inverse"
            ) from error

    size = chunk_size or rows_per_chunk(programs, rows.device)
    results = map_chunks(score, programs, rows, len(next(iter(z.values()))), size=size)
    return dict(zip(programs.latents, results, strict=True))


def _values(programs: ModelGuide, trace: poutine.Trace) -> Draws:
    """Return z ``(K, B, ...)`` of each latent site of a trace."""
    return {name: from_pyro(programs, name, trace.nodes[name]["value"]) for name in programs.latents}
