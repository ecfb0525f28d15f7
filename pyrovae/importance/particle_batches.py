"""Draws of the guide and their log-probabilities, block by block.

Pyro's ``unscaled`` log-probabilities are used throughout, so that the size of a plate and `pyro.poutine.scale` factors,
which serve training, do not reach a bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.chunks import (
    FEWEST_ROWS,
    Chunk,
    ChunkBuffer,
    chunk_sizes,
    even_chunk_size,
    iter_chunks,
    rows_per_chunk,
)
from pyrovae.importance.compiled_scoring import CompiledRuns
from pyrovae.programs import ModelGuide, Program, run, run_validated
from pyrovae.programs.analytic_kl import CLOSED_FORM, closed_form_kl
from pyrovae.programs.latent_checks import require_common_masks
from pyrovae.programs.layout import from_pyro, log_prob, per_datum, sum_over_sites, to_float64, to_pyro
from pyrovae.programs.site_checks import unmasked
from pyrovae.runtime.context import forked_random, stream_seed, validation


@dataclass(frozen=True)
class ParticleBatch:
    """Some particles of some rows: z of each site ``(K, B, ...)`` and log-probabilities ``(K, B)`` in nats.

    ``kl`` holds each site's KL: its closed form, ``(1, B)`` or ``(K, B)``, or else log q - log p of each particle.
    """

    z: dict[str, Tensor]
    log_prior: Tensor
    log_likelihood: Tensor
    log_guide: Tensor
    kl: dict[str, Tensor]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities ``(K, B)`` in nats of given z: of each latent site, of all data, and closed-form KL terms."""

    prior: dict[str, Tensor]
    likelihood: Tensor
    kl: dict[str, Tensor]


def iter_particles(
    programs: ModelGuide,
    args: tuple[Any, ...],
    rows: Tensor,
    num_particles: int,
    *,
    chunk_size: int | None = None,
    compiled: CompiledRuns | None = None,
) -> Iterator[ParticleBatch]:
    """Yield the particles of some rows block by block; the draws do not depend on the chunks in which they are scored.

    Args:
        programs: from `scoring_context`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.
        num_particles: K.
        chunk_size: rows that the model scores at once, a datum with K particles counting K.
        compiled: runs of the compiled model, None for eager runs; all arguments are tensors then.

    """
    sizes, elements = chunk_sizes(rows.device), sum(latent.num_elements for latent in programs.latents.values())
    drawn_rows = sizes.drawn_rows if programs.broadcasts else sizes.rows  # the guide's networks run on each
    size = max(1, min(sizes.drawn // max(1, elements), drawn_rows) // max(1, len(rows)))
    first = next(iter(programs.latents))
    checked = score_one_particle(programs, args, rows, checked=True)
    first_kl = {first: checked.kl[first]} if programs.kl[first] == CLOSED_FORM else {}  # the same for every particle
    if compiled is not None:
        limit = chunk_size or rows_per_chunk(programs, rows.device, compiled=True)
        chunk_size = even_chunk_size(programs, rows, min(size, num_particles), size=limit)
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
        )


def score_one_particle(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, *, checked: bool, nan_counts: bool = True
) -> ParticleBatch:
    """Run the pair once on some rows, without an axis of particles: a block of K = 1.

    Args:
        programs: from `scoring_context`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.
        checked: whether shapes, supports and masks are checked, so that data outside the support are refused.
        nan_counts: whether these checks let NaN pass.

    """

    def terms(trace: poutine.Trace, names: Iterable[str]) -> dict[str, Tensor]:
        sites = {name: trace.nodes[name] for name in names}
        return {name: per_datum(programs, log_prob(site), site).unsqueeze(0) for name, site in sites.items()}

    def likelihood() -> tuple[poutine.Trace, poutine.Trace, Tensor]:
        guide_trace, model_trace = run(*programs.bind(args, rows))
        if checked:
            _require_masks(programs, args, rows, guide_trace, model_trace)
        return guide_trace, model_trace, sum_over_sites(terms(model_trace, programs.observed))

    if checked:
        found = run_validated(likelihood, rows.device, nan_counts=nan_counts)
    else:
        with validation(enabled=False):
            found = likelihood()
    guide_trace, model_trace, log_likelihood = found
    log_prior, log_guide = terms(model_trace, programs.latents), terms(guide_trace, programs.latents)
    kl = {name: log_guide[name] - log_prior[name] for name in programs.latents}
    for name in programs.latents:
        if programs.kl[name] == CLOSED_FORM:
            value, _ = closed_form_kl(name, model_trace, guide_trace)
            kl[name] = per_datum(programs, to_float64(torch.as_tensor(value)), guide_trace.nodes[name]).unsqueeze(0)
    return ParticleBatch(
        z={name: from_pyro(programs, name, guide_trace.nodes[name]["value"]).unsqueeze(0) for name in programs.latents},
        log_prior=sum_over_sites(log_prior),
        log_likelihood=log_likelihood,
        log_guide=sum_over_sites(log_guide),
        kl=kl,
    )


def _require_masks(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, guide_trace: poutine.Trace, model_trace: poutine.Trace
) -> None:
    """Refuse latent variables that are masked in one program alone, or masked while the model depends on them.

    Raises:
        ValueError: with the number of elements or data.

    """
    drawn, scored = ({name: trace.nodes[name] for name in programs.latents} for trace in (guide_trace, model_trace))
    require_common_masks(drawn, scored)
    others = {}
    with forked_random(stream_seed("masked"), rows.device):
        for name, site in drawn.items():
            kept = unmasked(site, site["value"].shape)
            if not kept.all():
                others[name] = torch.where(kept, site["value"], site["fn"].sample().expand(kept.shape))
        if not others:
            return
        model, _ = programs.bind(args, rows)
        values = {name: site["value"] for name, site in drawn.items()} | others
        again = poutine.trace(poutine.condition(model, data=values)).get_trace()
    names = (*programs.latents, *programs.observed)
    before, after = (
        sum_over_sites({name: per_datum(programs, log_prob(trace.nodes[name]), trace.nodes[name]) for name in names})
        for trace in (model_trace, again)
    )
    differing = ~torch.isclose(before, after, rtol=1e-4, atol=1e-4, equal_nan=True)
    if differing.any():
        raise ValueError(
            f"the latent variables {', '.join(map(repr, others))} are masked, but the model depends on them for "
            f"{int(differing.sum())} of {len(differing)} data: they have no prior there; mask what depends on them too"
        )


def draw_guide(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, num_particles: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run the guide on some rows ``(B,)``: return z ``(K, B, ...)`` and log q(z | x) ``(K, B)``, both by site."""
    z: dict[str, list[Tensor]] = {name: [] for name in programs.latents}
    log_guide: dict[str, list[Tensor]] = {name: [] for name in programs.latents}
    for chunk in iter_chunks(programs, rows, num_particles, size=num_particles * len(rows)):
        _, guide = programs.bind(args, chunk.rows)
        trace = poutine.trace(chunk.with_plate(programs, guide)).get_trace()
        for name in programs.latents:
            site = trace.nodes[name]
            z[name].append(chunk.trim(from_pyro(programs, name, site["value"], has_particles=chunk.has_particles)))
            log_guide[name].append(
                chunk.trim(per_datum(programs, log_prob(site), site, has_particles=chunk.has_particles))
            )
    shape = (num_particles, len(rows))
    joined = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in z.items()}
    return (
        {name: value if programs.broadcasts else value.unflatten(0, shape) for name, value in joined.items()},
        {name: torch.cat(parts).reshape(shape) for name, parts in log_guide.items()},
    )


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
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.
        z: for each latent site ``(K, B, ...)``.
        chunk_size: rows that the model scores at once, a datum with K particles counting K; by default what suits the
            device, and half as many where that does not fit into its memory, down to one particle of all rows.
        with_kl: whether closed-form KL terms of the sites after the first are found too.
        compiled: runs of the compiled model, None for eager runs; all arguments are tensors then.

    """
    later = [name for name in list(programs.latents)[1:] if with_kl and programs.kl[name] == CLOSED_FORM]
    size = chunk_size or rows_per_chunk(programs, rows.device)
    fewest = max(FEWEST_ROWS, len(rows)) if programs.broadcasts else FEWEST_ROWS
    while True:
        try:
            return _in_pieces(programs, args, rows, z, size=size, later=later, compiled=compiled)
        except torch.OutOfMemoryError:
            if chunk_size is not None or size <= fewest:
                raise
            size //= 2


def _in_pieces(
    programs: ModelGuide,
    args: tuple[Any, ...],
    rows: Tensor,
    z: Mapping[str, Tensor],
    *,
    size: int,
    later: Sequence[str],
    compiled: CompiledRuns | None,
) -> Scores:
    """Run the model on so many rows at once; the rest is said in `score`."""
    num_particles = len(next(iter(z.values())))
    values = dict(z) if programs.broadcasts else {name: value.flatten(0, 1) for name, value in z.items()}
    found = ChunkBuffer(num_particles, len(rows))
    for chunk in iter_chunks(programs, rows, num_particles, size=size, alike=compiled is not None):

        def scored(*inputs: Any, chunk: Chunk = chunk) -> list[Tensor]:
            own, (rows, *given) = inputs[: len(args)], inputs[len(args) :]
            return _scored(programs, own, rows, dict(zip(values, given, strict=True)), chunk=chunk, later=later)

        inputs = (*args, chunk.rows, *(chunk.slice(value) for value in values.values()))
        found.add(chunk, scored(*inputs) if compiled is None else compiled(scored, inputs))
    joined = iter(found.joined())
    return Scores(
        prior={name: next(joined) for name in programs.latents},
        likelihood=next(joined),
        kl={name: next(joined) for name in later},
    )


def _scored(
    programs: ModelGuide,
    args: tuple[Any, ...],
    rows: Tensor,
    z: Mapping[str, Tensor],
    *,
    chunk: Chunk,
    later: Sequence[str],
) -> list[Tensor]:
    """Return what one run of the model with given z finds: the log-probability of each latent site and of all data, and
    the closed-form KL of each of the later sites.
    """
    model, guide = programs.bind(args, rows)
    data = {name: to_pyro(programs, name, value, has_particles=chunk.has_particles) for name, value in z.items()}
    trace = poutine.trace(chunk.with_plate(programs, poutine.condition(model, data=data))).get_trace()
    terms = {
        name: per_datum(programs, log_prob(site), site, has_particles=chunk.has_particles)
        for name, site in trace.nodes.items()
        if name in programs.latents or name in programs.observed
    }
    kl = []
    if later:
        replayed = poutine.trace(_replaying(chunk.with_plate(programs, guide), data)).get_trace()
        for name in later:
            value, _ = closed_form_kl(name, trace, replayed)
            kl.append(
                per_datum(
                    programs,
                    to_float64(torch.as_tensor(value)),
                    replayed.nodes[name],
                    has_particles=chunk.has_particles,
                )
            )
    return [
        *(terms[name] for name in programs.latents),
        sum_over_sites({name: terms[name] for name in programs.observed}),
        *kl,
    ]


def score_guide(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, z: Mapping[str, Tensor], *, chunk_size: int | None = None
) -> dict[str, Tensor]:
    """Return log q(z | x) ``(K, B)`` of each site for given z ``(K, B, ...)`` of some rows ``(B,)``, chunk by chunk."""
    num_particles = len(next(iter(z.values())))
    log_guide: dict[str, list[Tensor]] = {name: [] for name in programs.latents}
    values = dict(z) if programs.broadcasts else {name: value.flatten(0, 1) for name, value in z.items()}
    for chunk in iter_chunks(programs, rows, num_particles, size=chunk_size or rows_per_chunk(programs, rows.device)):
        _, guide = programs.bind(args, chunk.rows)
        data = {
            name: to_pyro(programs, name, chunk.slice(value), has_particles=chunk.has_particles)
            for name, value in values.items()
        }
        try:
            trace = poutine.trace(_replaying(chunk.with_plate(programs, guide), data)).get_trace()
            log_probs = {name: log_prob(trace.nodes[name]) for name in programs.latents}
        except (NotImplementedError, KeyError) as error:
            raise ValueError(
                f"the guide has no density of a z that it did not draw ({type(error).__name__}: {error}); start AIS "
                "from the prior, or write the guide with a transform that has an inverse"
            ) from error
        for name in programs.latents:
            site = trace.nodes[name]
            log_guide[name].append(
                chunk.trim(per_datum(programs, log_probs[name], site, has_particles=chunk.has_particles))
            )
    shape = (num_particles, len(rows))
    return {name: torch.cat(parts).reshape(shape) for name, parts in log_guide.items()}


def _replaying(guide: Program, data: Mapping[str, Tensor]) -> Program:
    """Return the guide with its draws replaced, its sites still latent."""
    trace = poutine.Trace()
    for name, value in data.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={}, fn=None)
    return poutine.replay(guide, trace=trace)
