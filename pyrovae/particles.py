"""The waist of evaluation: draws from the guide, and their log-probabilities under model and guide.

Every bound and every diagnostic is a function of these numbers. Pyro's ``unscaled`` log-probabilities are used
throughout, so that the size of a plate and `pyro.poutine.scale` factors, which serve training, do not reach a bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae import memory
from pyrovae.kl import CLOSED_FORM, closed_form_kl
from pyrovae.pair import PARTICLE_PLATE, Pair, Program, find_modules, inspect_pair, run
from pyrovae.results import Particles
from pyrovae.sandbox import exact_matmul, forked_random, module_mode, own_store, validation

CHUNK_ELEMENTS = 2**20  # elements of x that the model scores at once: what falls out of the cache costs page faults
BLOCK_ELEMENTS = 2**20  # elements of z that the guide draws at once


def particles(
    model: Program, guide: Program, x: Tensor, *covariates: Any, num_particles: int, modules: Iterable[nn.Module] = ()
) -> Particles:
    """Draw particles from the guide and score them, each by itself and free of plate and scale factors.

    Modules are in evaluation mode meanwhile, and no gradients are kept. Draws come from torch's default stream.

    Args:
        model: a Pyro program called with ``(x, *covariates)``.
        guide: another.
        x: ``(B, ...)``, the data.
        covariates: what travels with x along the data plate.
        num_particles: K, draws per datum.
        modules: those used by the programs that cannot be found from them.

    Returns:
        z of every latent site and log p(z), log p(x | z), log q(z | x), each ``(K, B)`` in nats and float64.

    Raises:
        ValueError: if K is not positive, the pair breaks the contract (see `pyrovae.pair`), or the particles do not
            fit into memory.

    Example:
        >>> record = particles(vae.model, vae.guide, x, num_particles=5000)
        >>> record.log_weights.logsumexp(0) - math.log(5000)  # the IWAE bound of each datum

    """
    check_num_particles(num_particles)
    args = (x, *covariates)
    with scoring(model, guide, args, modules=modules) as pair, torch.no_grad():
        per_particle = 24 + 8 * sum(latent.num_elements for latent in pair.latents.values())
        memory.require(
            float(per_particle) * num_particles * len(x),
            what=f"keeping {num_particles} particles of {len(x)} data",
            cure="ask for fewer, or use evaluate, which keeps none",
            device=x.device,
        )
        parts = []
        for rows, count in walk(pair, len(x), batch_size=len(x)):
            found = list(blocks(pair, args, rows, num_particles))
            parts.append(
                Particles(
                    z={name: torch.cat([block.z[name] for block in found])[:, :count] for name in pair.latents},
                    log_prior=torch.cat([block.log_prior for block in found])[:, :count],
                    log_likelihood=torch.cat([block.log_likelihood for block in found])[:, :count],
                    log_guide=torch.cat([block.log_guide for block in found])[:, :count],
                )
            )
        return Particles.concatenate(parts)


def log_weights(
    model: Program, guide: Program, x: Tensor, *covariates: Any, num_particles: int, modules: Iterable[nn.Module] = ()
) -> Tensor:
    """Return log p(x, z_k) - log q(z_k | x) for draws z_k of the guide: ``(K, B)``, nats, float64.

    The arguments are those of `particles`. The mean over K is the Monte Carlo ELBO, the log-mean-exp the IWAE bound.
    """
    return particles(model, guide, x, *covariates, num_particles=num_particles, modules=modules).log_weights


def log_joint(
    model: Program, x: Tensor, *covariates: Any, z: Tensor | Mapping[str, Tensor], modules: Iterable[nn.Module] = ()
) -> Tensor:
    """Return log p(x, z) for given z, differentiable in z and in the parameters.

    Args:
        model: a Pyro program called with ``(x, *covariates)``, whose plate has the length of x.
        x: ``(B, ...)``, the data.
        covariates: what travels with x along the data plate.
        z: ``(B, ...)`` or ``(K, B, ...)`` for the model's only latent site, or a mapping from site to such tensors.
        modules: those used by the program that cannot be found from it.

    Returns:
        ``(B,)`` or ``(K, B)``, nats.

    Raises:
        ValueError: if sites are missing, or the model breaks the contract (see `pyrovae.pair`).

    """
    args = (x, *covariates)
    prior = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    with scoring(model, prior, args, modules=(*modules, *find_modules(model))) as pair:
        if pair.draws_rows:
            raise ValueError("the model draws rows of the data by itself; write its plate as plate('data', len(x))")
        values = dict(z) if isinstance(z, Mapping) else dict.fromkeys(pair.latents, z)
        if set(values) != set(pair.latents) or (len(values) > 1 and not isinstance(z, Mapping)):
            raise ValueError(f"z must give a value for each of the latent sites {sorted(pair.latents)}, by name")
        with_particles = _have_particles(pair, values, len(x))
        z = values if with_particles else {name: value.unsqueeze(0) for name, value in values.items()}
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad(), forked_random(0, x.device):
            one_particle(pair, args, rows, checked=True)  # refuses data outside the support
        scores = score(pair, args, rows, z)
        total = _total(scores.prior) + scores.likelihood
        return total if with_particles else total[0]


def _have_particles(pair: Pair, z: Mapping[str, Tensor], num_data: int) -> bool:
    """Tell whether z are ``(K, B, ...)``, not ``(B, ...)``; refuse shapes that are neither, or differ in K."""
    shapes = {name: tuple(value.shape) for name, value in z.items()}
    lead = {len(shape) - pair.latents[name].ndim for name, shape in shapes.items()}
    if lead == {0}:
        right = all(shape[0] == num_data for shape in shapes.values())
    else:
        right = lead == {1} and all(shape[1] == num_data for shape in shapes.values())
        right = right and len({shape[0] for shape in shapes.values()}) == 1
    if not right:
        raise ValueError(
            f"z is (B, ...) or (K, B, ...) for B = {num_data} data, alike for all latent sites, but received {shapes}"
        )
    return lead == {1}


def check_num_particles(num_particles: int) -> None:
    """Refuse a K that is not a positive whole number."""
    if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
        raise ValueError(f"the number of particles K is a whole number of at least 1, but received {num_particles!r}")


@contextlib.contextmanager
def scoring(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    modules: Iterable[nn.Module],
    everything: Callable[[], tuple[Any, ...]] | None = None,
) -> Iterator[Pair]:
    """Inspect a pair, and keep the process in the state in which its log-probabilities are right and quick to get.

    The arguments are those of `inspect_pair`.
    """
    modules = (*modules, *find_modules(model, guide))
    with own_store(modules), exact_matmul(), module_mode(modules, training=False):
        pair = inspect_pair(model, guide, args, modules=modules, everything=everything)
        with validation(enabled=False):
            yield pair


def walk(pair: Pair, num_data: int, *, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows ``(B,)`` that cover all data once, and how many of them count: a pair that draws its own rows takes a
    fixed number, so that its last batch is filled up.
    """
    size = pair.num_rows if pair.draws_rows else min(batch_size, pair.max_rows)
    for start in range(0, num_data, size):
        count = min(size, num_data - start)
        rows = torch.arange(start, start + (size if pair.draws_rows else count))
        yield rows % num_data, count


@dataclass(frozen=True)
class Block:
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


def blocks(
    pair: Pair, args: tuple[Any, ...], rows: Tensor, num_particles: int, *, chunk_size: int | None = None
) -> Iterator[Block]:
    """Yield the particles of some rows block by block; the draws do not depend on the chunks in which they are scored.

    Args:
        pair: from `scoring`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.
        num_particles: K.
        chunk_size: rows that the model scores at once, a datum with K particles counting K.

    """
    elements = max(1, len(rows) * sum(latent.num_elements for latent in pair.latents.values()))
    size = max(1, BLOCK_ELEMENTS // elements)
    first = next(iter(pair.latents))
    checked = one_particle(pair, args, rows, checked=True)
    first_kl = {first: checked.kl[first]} if pair.kl[first] == CLOSED_FORM else {}  # the same for every particle
    for start in range(0, num_particles, size):
        z, log_guide = draw(pair, args, rows, min(size, num_particles - start))
        scores = score(pair, args, rows, z, chunk_size=chunk_size)
        estimated = {name: log_guide[name] - scores.prior[name] for name in pair.latents}
        yield Block(
            z=z,
            log_prior=_total(scores.prior),
            log_likelihood=scores.likelihood,
            log_guide=_total(log_guide),
            kl=estimated | scores.kl | first_kl,
        )


def draw(
    pair: Pair, args: tuple[Any, ...], rows: Tensor, num_particles: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run the guide on some rows ``(B,)``: return z ``(K, B, ...)`` and log q(z | x) ``(K, B)``, both by site."""
    z: dict[str, list[Tensor]] = {name: [] for name in pair.latents}
    log_guide: dict[str, list[Tensor]] = {name: [] for name in pair.latents}
    for piece in _pieces(pair, rows, num_particles, size=num_particles * len(rows)):
        _, guide = pair.bind(args, piece.rows)
        trace = poutine.trace(piece.plated(pair, guide)).get_trace()
        for name in pair.latents:
            site = trace.nodes[name]
            z[name].append(piece.cut(_from_pyro(pair, name, site["value"], lead=piece.lead)))
            log_guide[name].append(piece.cut(_per_datum(pair, _log_prob(site), site, lead=piece.lead)))
    shape = (num_particles, len(rows))
    joined = {name: torch.cat(parts) for name, parts in z.items()}
    return (
        {name: value if pair.broadcasts else value.unflatten(0, shape) for name, value in joined.items()},
        {name: torch.cat(parts).reshape(shape) for name, parts in log_guide.items()},
    )


def score(
    pair: Pair, args: tuple[Any, ...], rows: Tensor, z: Mapping[str, Tensor], *, chunk_size: int | None = None
) -> Scores:
    """Run the model on some rows ``(B,)`` with given z ``(K, B, ...)``, chunk by chunk."""
    num_particles = len(next(iter(z.values())))
    size = chunk_size or min(4096, max(64, CHUNK_ELEMENTS // max(1, pair.num_elements)))
    later = [name for name in list(pair.latents)[1:] if pair.kl[name] == CLOSED_FORM]
    prior: dict[str, list[Tensor]] = {name: [] for name in pair.latents}
    kl: dict[str, list[Tensor]] = {name: [] for name in later}
    likelihood: list[Tensor] = []
    values = dict(z) if pair.broadcasts else {name: value.flatten(0, 1) for name, value in z.items()}
    for piece in _pieces(pair, rows, num_particles, size=size):
        model, guide = pair.bind(args, piece.rows)
        data = {name: _to_pyro(pair, name, piece.take(value), lead=piece.lead) for name, value in values.items()}
        trace = poutine.trace(piece.plated(pair, poutine.condition(model, data=data))).get_trace()
        terms = {
            name: piece.cut(_per_datum(pair, _log_prob(site), site, lead=piece.lead))
            for name, site in trace.nodes.items()
            if name in pair.latents or name in pair.observed
        }
        likelihood.append(_total({name: terms[name] for name in pair.observed}))
        for name in pair.latents:
            prior[name].append(terms[name])
        if later:
            replayed = poutine.trace(_replaying(piece.plated(pair, guide), data)).get_trace()
            for name in later:
                value, _ = closed_form_kl(name, trace, replayed)
                site = replayed.nodes[name]
                kl[name].append(piece.cut(_per_datum(pair, _wide(value), site, lead=piece.lead)))
    shape = (num_particles, len(rows))
    return Scores(
        prior={name: torch.cat(parts).reshape(shape) for name, parts in prior.items()},
        likelihood=torch.cat(likelihood).reshape(shape),
        kl={name: torch.cat(parts).reshape(shape) for name, parts in kl.items()},
    )


def one_particle(pair: Pair, args: tuple[Any, ...], rows: Tensor, *, checked: bool) -> Block:
    """Run the pair once on some rows, without an axis of particles: a block of K = 1.

    Args:
        pair: from `scoring`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.
        checked: whether Pyro checks shapes and supports, so that data outside the support are refused.

    """
    with validation(enabled=checked):
        guide_trace, model_trace = run(*pair.bind(args, rows))

        def terms(trace: poutine.Trace, names: Iterable[str]) -> dict[str, Tensor]:
            sites = {name: trace.nodes[name] for name in names}
            return {name: _per_datum(pair, _log_prob(site), site, lead=0).unsqueeze(0) for name, site in sites.items()}

        likelihood = _total(terms(model_trace, pair.observed))
    log_prior, log_guide = terms(model_trace, pair.latents), terms(guide_trace, pair.latents)
    kl = {name: log_guide[name] - log_prior[name] for name in pair.latents}
    for name in pair.latents:
        if pair.kl[name] == CLOSED_FORM:
            value, _ = closed_form_kl(name, model_trace, guide_trace)
            kl[name] = _per_datum(pair, _wide(value), guide_trace.nodes[name], lead=0).unsqueeze(0)
    return Block(
        z={
            name: _from_pyro(pair, name, guide_trace.nodes[name]["value"], lead=0).unsqueeze(0) for name in pair.latents
        },
        log_prior=_total(log_prior),
        log_likelihood=likelihood,
        log_guide=_total(log_guide),
        kl=kl,
    )


@dataclass(frozen=True)
class _Piece:
    """One run of a program: on K particles of some rows, or on rows that already repeat the data (``lead`` 0)."""

    rows: Tensor
    start: int
    count: int
    lead: int

    def plated(self, pair: Pair, program: Program) -> Program:
        return pyro.plate(PARTICLE_PLATE, self.count, dim=-1 - pair.nesting)(program) if self.lead else program

    def take(self, value: Tensor) -> Tensor:
        """Return this piece's part of ``(K, B, ...)`` or ``(K * B, ...)``, filled up to the length of the run."""
        part = value[self.start : self.start + self.count]
        missing = 0 if self.lead else len(self.rows) - self.count
        return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part

    def cut(self, result: Tensor) -> Tensor:
        """Return what counts of a result of this piece's run."""
        return result[: self.count]


def _pieces(pair: Pair, rows: Tensor, num_particles: int, *, size: int) -> Iterator[_Piece]:
    """Yield the runs that cover all particles of some rows, each on about ``size`` rows at most."""
    if pair.broadcasts:
        per_run = max(1, size // len(rows))
        for start in range(0, num_particles, per_run):
            yield _Piece(rows, start, min(per_run, num_particles - start), lead=1)
        return
    repeated = rows.repeat(num_particles)
    limit = pair.num_rows if pair.draws_rows else min(size, pair.max_rows)
    for start in range(0, len(repeated), limit):
        part = repeated[start : start + limit]
        filled = torch.cat([part, part[:1].expand(limit - len(part))]) if pair.draws_rows else part
        yield _Piece(filled, start, len(part), lead=0)


def _replaying(guide: Program, data: Mapping[str, Tensor]) -> Program:
    """Return the guide with its draws replaced, its sites still latent."""
    trace = poutine.Trace()
    for name, value in data.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={}, fn=None)
    return poutine.replay(guide, trace=trace)


def _log_prob(site: Mapping[str, Any]) -> Tensor:
    """Return the unscaled log-probability of a site over its batch shape, summed over the event in float64."""
    fn, event_dims = site["fn"], 0
    while type(fn).log_prob is torch.distributions.Independent.log_prob:
        event_dims += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    log_prob = fn.log_prob(site["value"])
    return _wide(log_prob.sum(tuple(range(-event_dims, 0)), dtype=_widest(log_prob)) if event_dims else log_prob)


def _per_datum(pair: Pair, value: Tensor, site: Mapping[str, Any], *, lead: int) -> Tensor:
    """Mask a value over a site's batch shape and sum it over inner plates: ``(K, B)`` or, without lead, ``(B,)``."""
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"], device=value.device)
        value = torch.where(mask, value, torch.zeros_like(value))
    value = value.reshape((1,) * (lead + pair.nesting - value.ndim) + tuple(value.shape))
    value = value.movedim(lead + pair.nesting + pair.dim, lead)  # (K, B, plates inside) or (B, plates inside)
    return value.flatten(lead + 1).sum(-1) if value.ndim > lead + 1 else value


def _from_pyro(pair: Pair, name: str, value: Tensor, *, lead: int) -> Tensor:
    """Bring z from Pyro's layout, in which a plate owns an axis, to ``(K, B, plates inside, event)``."""
    latent = pair.latents[name]
    missing = lead + pair.nesting + latent.event_dim - value.ndim
    value = value.reshape((1,) * missing + tuple(value.shape))
    for dim in range(-1, -1 - pair.nesting, -1):
        if dim not in latent.plate_dims:
            value = value.squeeze(lead + pair.nesting + dim)
    return value.movedim(lead + latent.plate_dims.index(pair.dim), lead)


def _to_pyro(pair: Pair, name: str, value: Tensor, *, lead: int) -> Tensor:
    """Bring z from ``(K, B, plates inside, event)`` to Pyro's layout."""
    latent = pair.latents[name]
    value = value.movedim(lead, lead + latent.plate_dims.index(pair.dim))
    for dim in range(-pair.nesting, 0):
        if dim not in latent.plate_dims:
            value = value.unsqueeze(lead + pair.nesting + dim)
    return value


def _widest(value: Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64


def _wide(value: Tensor | None) -> Tensor:
    assert value is not None  # noqa: S101 (a site without closed form is never asked for one)
    return value.to(_widest(value))


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(tuple(terms.values())).sum(0) if len(terms) > 1 else next(iter(terms.values()))
