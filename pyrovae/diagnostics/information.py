"""KL of each latent unit, and mutual information of data and codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance import UnconstrainedLatents, draw_guide, iter_batches, score_guide, sum_over_sites
from pyrovae.importance.chunks import Chunk, map_chunks, rows_per_chunk
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.analytic_kl import CLOSED_FORM, kl_by_dimension
from pyrovae.programs.layout import closed_forms, from_pyro, log_probs, to_float64

MAX_AGGREGATE = 10_000  # data that q(z) averages over, at most
MAX_DRAWS = 10  # codes of a datum, at most
MAX_DENSITIES = 2**24, 2**20  # values log q(z_n | x_m), at most: for programs that broadcast, and for others
RUN_ELEMENTS = 2**21  # elements of z in one run of the guide
RUNS = 16  # draws of the latent variables, if the KL has no closed form or differs between draws


@dataclass(frozen=True)
class Information:
    """Codes of T data against the posteriors of M, nats."""

    rows: Tensor  # (T,), the data whose codes are taken
    below: Tensor  # (R, T), log q(z | x_n) - log mean_m q(z | x_m) for R codes of each datum; at most log M
    above: Tensor  # (R, T), the same with n left out of the mean
    num_aggregate: int  # M


def information(programs: ModelGuide, args: tuple[Any, ...], advance: Callable[[int], object]) -> Information:
    """Compare codes with the aggregate posterior, with draws from torch's default stream.

    ``I(x; z) = E_n E_{q(z | x_n)} log (q(z | x_n) / q(z))``, ``q(z) = (1 / M) sum_m q(z | x_m)``

    With n among the m, the mean is a lower bound of I(x; z) in expectation; with n left out, an upper bound. If the
    number of data N is large, the M data of q(z) and the T data are drawn at random.

    *On variational bounds of mutual information (Poole, Ozair, van den Oord, Alemi, Tucker 2019)*,
    https://arxiv.org/abs/1905.06922

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, each ``(N, ...)``, the data first.
        advance: called with the number of finished data, out of T.

    """
    num_data = len(args[0])
    size = min(num_data, MAX_AGGREGATE)
    members = torch.randperm(num_data)[:size].sort().values if size < num_data else torch.arange(num_data)
    budget = max(2, MAX_DENSITIES[0 if programs.broadcasts else 1] // size)
    chosen = members if budget >= size else members[torch.randperm(size)[:budget].sort().values]
    num_draws = max(1, min(MAX_DRAWS, budget // len(chosen)))
    elements = sum(latent.num_elements for latent in programs.latents.values())
    batch = max(1, math.isqrt(RUN_ELEMENTS // max(1, elements)))
    below, above, done = [], [], 0
    for positions in iter_batches(programs, len(chosen), batch_size=max(1, batch // num_draws)):
        owners = chosen[positions]
        z, log_guide = draw_guide(programs, args, owners.to(args[0].device), num_draws)
        z = {name: value.flatten(0, 1) for name, value in z.items()}  # (R * T', ...)
        own = sum_over_sites(log_guide).flatten()
        others = _others(programs, args, members, owners.repeat(num_draws), z, batch)
        below.append((own - others.logaddexp(own) + math.log(size)).unflatten(0, (num_draws, -1)))
        above.append((own - others + math.log(size - 1)).unflatten(0, (num_draws, -1)))
        done += len(owners)
        advance(done)
    return Information(chosen, torch.cat(below, 1).cpu(), torch.cat(above, 1).cpu(), size)


def _others(
    programs: ModelGuide, args: tuple[Any, ...], members: Tensor, owners: Tensor, z: dict[str, Tensor], batch: int
) -> Tensor:
    """Return log sum_m q(z_t | x_m) without the owner of z_t among the m: ``(T,)`` for z of each site ``(T, ...)``."""
    device = args[0].device
    total = torch.full((len(owners),), -math.inf, dtype=torch.float64, device=device)
    for positions in iter_batches(programs, len(members), batch_size=batch):
        rows = members[positions]
        many = {name: value.unsqueeze(1).expand(-1, len(rows), *value.shape[1:]) for name, value in z.items()}
        whole = len(owners) * len(rows) if programs.broadcasts else None
        log_guide = sum_over_sites(score_guide(programs, args, rows.to(device), many, chunk_size=whole))
        same = (owners.unsqueeze(1) == rows).to(device)
        total = total.logaddexp(log_guide.masked_fill(same, -math.inf).logsumexp(1).to(total))
    return total


def unit_kl(space: UnconstrainedLatents) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Return the KL(q(z | x) || p(z)) of the rows of a space in nats, in closed form where it is valid.

    Args:
        space: latent variables of B data.

    Returns:
        The KL of each unit ``(B, D)``, NaN if the KL of its site is not a sum over units; the KL of each datum and its
        Monte Carlo variance ``(B,)``; and the names of the sites whose KL is not a sum.

    """
    programs, rows = space.programs, space.rows
    exact = len(programs.latents) == 1 and programs.kl[next(iter(programs.latents))] == CLOSED_FORM
    num_runs = 1 if exact else RUNS
    joint: dict[str, None] = {}

    def measure(chunk: Chunk) -> list[Tensor]:
        """Return the KL of each unit of each site, or of the whole site as one unit."""
        model, guide = programs.bind(space.args, chunk.rows)
        traces = run(chunk.with_plate(programs, model), chunk.with_plate(programs, guide))
        terms = []
        for name, size in space.sizes.items():
            values = _by_unit(programs, name, *traces)
            if values is None or values.shape[-1] != size:
                joint[name] = None
                values = _of_site(programs, name, *traces).unsqueeze(2)
            terms.append(values)
        return terms

    results = map_chunks(measure, programs, rows, num_runs, size=rows_per_chunk(programs, rows.device))
    total = torch.cat(results, 2).sum(2)  # (R, B)
    units = [
        values.new_full((len(rows), size), math.nan) if name in joint else values.mean(0)
        for (name, size), values in zip(space.sizes.items(), results, strict=True)
    ]
    variance = total.var(0) / num_runs if num_runs > 1 else torch.zeros_like(total[0])
    return torch.cat(units, 1), total.mean(0), variance, list(joint)


def _by_unit(programs: ModelGuide, name: str, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> Tensor | None:
    """Return the KL of each unit of a site, ``(K, B, D)``; None if it is not a sum."""
    site = guide_trace.nodes[name]
    values = kl_by_dimension(site, model_trace.nodes[name], closed_form=programs.kl[name] == CLOSED_FORM)
    if values is None:
        return None
    values = to_float64(values).expand(site["value"].shape)
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"], device=values.device)
        values = torch.where(mask.reshape(*mask.shape, *(1,) * site["fn"].event_dim), values, 0.0)
    values = from_pyro(programs, name, values)
    return values.reshape(*values.shape[:2], -1)


def _of_site(programs: ModelGuide, name: str, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> Tensor:
    """Return the KL of a site, or log q - log p of its draw: ``(K, B)``."""
    if programs.kl[name] == CLOSED_FORM:
        return closed_forms(programs, [name], model_trace, guide_trace)[name]
    log_q, log_p = (log_probs(programs, trace, [name])[name] for trace in (guide_trace, model_trace))
    return log_q - log_p
