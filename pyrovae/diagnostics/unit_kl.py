"""KL of each latent unit, for sites whose KL is a sum over units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.importance.chunks import iter_chunks, rows_per_chunk
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.analytic_kl import CLOSED_FORM, closed_form_kl, kl_by_dimension
from pyrovae.programs.layout import from_pyro, log_prob, per_datum, to_float64

RUNS = 16  # draws of the latent variables, if the KL has no closed form or differs between draws


@dataclass(frozen=True)
class UnitKL:
    """KL(q(z | x) || p(z)) in nats.

    Attributes:
        units: KL of each unit ``(B, D)``, NaN if the KL of its site is not a sum over units.
        total: KL of each datum ``(B,)``.
        total_variance: Monte Carlo variance of the total ``(B,)``, 0 for a closed form.
        why: the reason if some units have no KL.

    """

    units: Tensor
    total: Tensor
    total_variance: Tensor
    why: str | None


def unit_kl(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, *, sizes: Mapping[str, int]) -> UnitKL:
    """Return the KL of some rows ``(B,)``, in closed form where it is valid.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        sizes: number of units of each site.

    """
    exact = len(programs.latents) == 1 and programs.kl[next(iter(programs.latents))] == CLOSED_FORM
    runs = 1 if exact else RUNS
    parts: dict[str, list[Tensor]] = {name: [] for name in programs.latents}
    joint: dict[str, None] = {}
    for chunk in iter_chunks(programs, rows, runs, size=rows_per_chunk(programs, rows.device)):
        model, guide = programs.bind(args, chunk.rows)
        traces = run(chunk.with_plate(programs, model), chunk.with_plate(programs, guide))
        for name, size in sizes.items():
            values = _by_unit(programs, name, *traces, has_particles=chunk.has_particles)
            if values is None or values[0, 0].numel() != size:
                joint[name] = None
                values = _of_site(programs, name, *traces, has_particles=chunk.has_particles)
            parts[name].append(chunk.trim(values))
    joined = {name: torch.cat(values).reshape(runs, len(rows), -1) for name, values in parts.items()}  # (R, B, D or 1)
    total = torch.cat(list(joined.values()), 2).sum(2)  # (R, B)
    units = [
        values.new_full((len(rows), sizes[name]), math.nan) if name in joint else values.mean(0)
        for name, values in joined.items()
    ]
    return UnitKL(
        units=torch.cat(units, 1),
        total=total.mean(0),
        total_variance=total.var(0) / runs if runs > 1 else torch.zeros_like(total[0]),
        why=f"guide or prior of {', '.join(map(repr, joint))} is a joint distribution of its units" if joint else None,
    )


def _by_unit(
    programs: ModelGuide, name: str, guide_trace: poutine.Trace, model_trace: poutine.Trace, *, has_particles: bool
) -> Tensor | None:
    """Return the KL of each unit of a site, ``(K, B, ...)`` or ``(B, ...)``; None if it is not a sum."""
    site = guide_trace.nodes[name]
    values = kl_by_dimension(site, model_trace.nodes[name], closed_form=programs.kl[name] == CLOSED_FORM)
    if values is None:
        return None
    values = to_float64(values).expand(site["value"].shape)
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"], device=values.device)
        mask = mask.reshape(*mask.shape, *(1,) * site["fn"].event_dim)
        values = torch.where(mask, values, torch.zeros_like(values))
    return from_pyro(programs, name, values, has_particles=has_particles)


def _of_site(
    programs: ModelGuide, name: str, guide_trace: poutine.Trace, model_trace: poutine.Trace, *, has_particles: bool
) -> Tensor:
    """Return the KL of a site, or log q - log p of its draw: ``(K, B)`` or without particles ``(B,)``."""
    site = guide_trace.nodes[name]
    values, _ = closed_form_kl(name, model_trace, guide_trace) if programs.kl[name] == CLOSED_FORM else (None, "")
    if values is None:
        terms = [
            per_datum(programs, log_prob(trace.nodes[name]), trace.nodes[name], has_particles=has_particles)
            for trace in (guide_trace, model_trace)
        ]
        return terms[0] - terms[1]
    batch = site["value"].shape[: site["value"].ndim - site["fn"].event_dim]
    return per_datum(programs, to_float64(values).expand(batch), site, has_particles=has_particles)
