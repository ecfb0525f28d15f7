"""KL of each latent unit, and mutual information of data and codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance import draw_guide, iter_batches, score_guide, sum_over_sites
from pyrovae.importance.chunks import iter_chunks, rows_per_chunk
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.analytic_kl import CLOSED_FORM, closed_form_kl, kl_by_dimension
from pyrovae.programs.layout import from_pyro, log_prob, per_datum, to_float64

MAX_AGGREGATE = 10_000  # data that q(z) averages over, at most
MAX_DRAWS = 10  # codes of a datum, at most
MAX_DENSITIES = 2**24, 2**20  # values log q(z_n | x_m), at most: for programs that broadcast, and for others
RUN_ELEMENTS = 2**21  # elements of z in one run of the guide
RUNS = 16  # draws of the latent variables, if the KL has no closed form or differs between draws


@dataclass(frozen=True)
class Information:
    """Codes of T data against the posteriors of M, nats.

    Attributes:
        rows: the T data whose codes are taken, ``(T,)``.
        below: ``log q(z | x_n) - log mean_m q(z | x_m)``, ``(R, T)`` for R codes of each datum; at most log M.
        above: the same with n left out of the mean, ``(R, T)``.
        num_aggregate: M.

    """

    rows: Tensor
    below: Tensor
    above: Tensor
    num_aggregate: int


def information(
    programs: ModelGuide,
    args: tuple[Any, ...],
    num_data: int,
    *,
    advance: Callable[[int], object],
) -> Information:
    """Compare codes with the aggregate posterior, with draws from torch's default stream.

    ``I(x; z) = E_n E_{q(z | x_n)} log (q(z | x_n) / q(z))``, ``q(z) = (1 / M) sum_m q(z | x_m)``

    With n among the m, the mean is a lower bound of I(x; z) in expectation; with n left out, an upper bound.

    *On variational bounds of mutual information (Poole, Ozair, van den Oord, Alemi, Tucker 2019)*,
    https://arxiv.org/abs/1905.06922

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        num_data: N, at least 2. If N is large, the M data of q(z) and the T data are drawn at random.
        advance: function called with the number of finished data, out of T.

    """
    size = min(num_data, MAX_AGGREGATE)
    members = torch.randperm(num_data)[:size].sort().values if size < num_data else torch.arange(num_data)
    budget = max(2, MAX_DENSITIES[0 if programs.broadcasts else 1] // size)
    chosen = members if budget >= size else members[torch.randperm(size)[:budget].sort().values]
    num_draws = max(1, min(MAX_DRAWS, budget // len(chosen)))
    elements = sum(latent.num_elements for latent in programs.latents.values())
    batch = max(1, math.isqrt(RUN_ELEMENTS // max(1, elements)))
    below, above, done = [], [], 0
    for positions, count in iter_batches(programs, len(chosen), batch_size=max(1, batch // num_draws)):
        owners = chosen[positions]
        z, log_guide = draw_guide(programs, args, owners.to(args[0].device), num_draws)
        z = {name: value[:, :count].flatten(0, 1) for name, value in z.items()}  # (R * T', ...)
        own = sum_over_sites(log_guide)[:, :count].flatten()
        others = _others(programs, args, members, owners[:count].repeat(num_draws), z, batch)
        below.append((own - others.logaddexp(own) + math.log(size)).unflatten(0, (num_draws, count)))
        above.append((own - others + math.log(size - 1)).unflatten(0, (num_draws, count)))
        done += count
        advance(done)
    return Information(chosen, torch.cat(below, 1).cpu(), torch.cat(above, 1).cpu(), size)


def _others(
    programs: ModelGuide, args: tuple[Any, ...], members: Tensor, owners: Tensor, z: dict[str, Tensor], batch: int
) -> Tensor:
    """Return log sum_m q(z_t | x_m) without the owner of z_t among the m: ``(T,)`` for z of each site ``(T, ...)``."""
    device = args[0].device
    total = torch.full((len(owners),), -math.inf, dtype=torch.float64, device=device)
    for positions, count in iter_batches(programs, len(members), batch_size=batch):
        rows = members[positions]
        many = {name: value.unsqueeze(1).expand(-1, len(rows), *value.shape[1:]) for name, value in z.items()}
        whole = len(owners) * len(rows) if programs.broadcasts else None
        log_guide = sum_over_sites(score_guide(programs, args, rows.to(device), many, chunk_size=whole))[:, :count]
        same = (owners.unsqueeze(1) == rows[:count]).to(device)
        total = total.logaddexp(log_guide.masked_fill(same, -math.inf).logsumexp(1).to(total))
    return total


def unit_kl(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, *, sizes: Mapping[str, int]
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Return the KL(q(z | x) || p(z)) of some rows ``(B,)`` in nats, in closed form where it is valid.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        sizes: number of units of each site.

    Returns:
        The KL of each unit ``(B, D)``, NaN if the KL of its site is not a sum over units; the KL of each datum and its
        Monte Carlo variance ``(B,)``; and the names of the sites whose KL is not a sum.

    """
    exact = len(programs.latents) == 1 and programs.kl[next(iter(programs.latents))] == CLOSED_FORM
    runs = 1 if exact else RUNS
    parts: dict[str, list[Tensor]] = {name: [] for name in programs.latents}
    joint: dict[str, None] = {}
    for chunk in iter_chunks(programs, rows, runs, size=rows_per_chunk(programs, rows.device)):
        model, guide = programs.bind(args, chunk.rows)
        traces = run(chunk.with_plate(programs, model), chunk.with_plate(programs, guide))
        for name, size in sizes.items():
            values = _by_unit(programs, name, *traces)
            if values is None or values[0, 0].numel() != size:
                joint[name] = None
                values = _of_site(programs, name, *traces)
            parts[name].append(chunk.trim(values))
    joined = {name: torch.cat(values).reshape(runs, len(rows), -1) for name, values in parts.items()}  # (R, B, D or 1)
    total = torch.cat(list(joined.values()), 2).sum(2)  # (R, B)
    units = [
        values.new_full((len(rows), sizes[name]), math.nan) if name in joint else values.mean(0)
        for name, values in joined.items()
    ]
    variance = total.var(0) / runs if runs > 1 else torch.zeros_like(total[0])
    return torch.cat(units, 1), total.mean(0), variance, list(joint)


def _by_unit(programs: ModelGuide, name: str, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> Tensor | None:
    """Return the KL of each unit of a site, ``(K, B, ...)``; None if it is not a sum."""
    site = guide_trace.nodes[name]
    values = kl_by_dimension(site, model_trace.nodes[name], closed_form=programs.kl[name] == CLOSED_FORM)
    if values is None:
        return None
    values = to_float64(values).expand(site["value"].shape)
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"], device=values.device)
        mask = mask.reshape(*mask.shape, *(1,) * site["fn"].event_dim)
        values = torch.where(mask, values, torch.zeros_like(values))
    return from_pyro(programs, name, values)


def _of_site(programs: ModelGuide, name: str, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> Tensor:
    """Return the KL of a site, or log q - log p of its draw: ``(K, B)``."""
    site = guide_trace.nodes[name]
    values, _ = (
        closed_form_kl(name, model_trace, guide_trace, masks_agree=True)
        if programs.kl[name] == CLOSED_FORM
        else (None, "")
    )
    if values is None:
        terms = [
            per_datum(programs, log_prob(trace.nodes[name]), trace.nodes[name]) for trace in (guide_trace, model_trace)
        ]
        return terms[0] - terms[1]
    batch = site["value"].shape[: site["value"].ndim - site["fn"].event_dim]
    return per_datum(programs, to_float64(values).expand(batch), site)
