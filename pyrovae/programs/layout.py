"""Conversion between Pyro's layout, with one axis for each plate, and ``(K, B, ...)``: particles first, then data.

``has_particles`` is whether a run has an axis of particles to the left of its plates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.distributions import BinaryBernoulli, Elements
from pyrovae.distributions.normal import normal_log_prob_sum
from pyrovae.programs.analytic_kl import closed_form_kl
from pyrovae.programs.model_guide import ModelGuide


def log_prob(site: Mapping[str, Any]) -> Tensor:
    """Return the unscaled log-probability of a site over its batch shape, summed over the event in float64."""
    fn, event_dims = site["fn"], 0
    while isinstance(fn, Elements) or type(fn).log_prob is torch.distributions.Independent.log_prob:
        if isinstance(fn, Elements):
            fn.check(site["value"])
        event_dims += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    if event_dims and not torch.is_grad_enabled():
        if type(fn) is dist.Normal:
            if fn._validate_args:
                fn._validate_sample(site["value"])
            return normal_log_prob_sum(fn.loc, fn.scale, site["value"], event_dims)
        if isinstance(fn, BinaryBernoulli):
            return fn.log_prob_sum(site["value"], event_dims)
    log_prob = fn.log_prob(site["value"])
    return to_float64(log_prob.sum(tuple(range(-event_dims, 0)), dtype=_widest(log_prob)) if event_dims else log_prob)


def per_datum(programs: ModelGuide, value: Tensor, site: Mapping[str, Any], *, has_particles: bool = False) -> Tensor:
    """Mask a value over a site's batch shape and sum it over inner plates.

    Returns:
        ``(K, B)``, or ``(B,)`` without particles.

    """
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"], device=value.device)
        value = torch.where(mask, value, torch.zeros_like(value))
    lead = int(has_particles)
    value = value.reshape((1,) * (lead + programs.nesting - value.ndim) + tuple(value.shape))
    value = value.movedim(lead + programs.nesting + programs.dim, lead)  # (K, B, plates inside) or (B, plates inside)
    return value.flatten(lead + 1).sum(-1) if value.ndim > lead + 1 else value


def log_probs(
    programs: ModelGuide, trace: poutine.Trace, names: Iterable[str], *, has_particles: bool = False
) -> dict[str, Tensor]:
    """Return the log-probability of each datum at some sites of a trace, ``(K, B)`` or ``(B,)``, nats."""
    sites = {name: trace.nodes[name] for name in names}
    return {
        name: per_datum(programs, log_prob(site), site, has_particles=has_particles) for name, site in sites.items()
    }


def closed_forms(
    programs: ModelGuide,
    names: Iterable[str],
    model_trace: poutine.Trace,
    guide_trace: poutine.Trace,
    *,
    has_particles: bool = False,
) -> dict[str, Tensor]:
    """Return the closed-form KL of each datum at sites that have one, ``(K, B)`` or ``(B,)``, nats.

    The caller has compared the masks of model and guide.
    """
    terms = {}
    for name in names:
        kl, method = closed_form_kl(name, model_trace, guide_trace, masks_agree=True)
        if kl is None:
            raise ValueError(f"the KL of {name!r} had a closed form in the first run, but has none here: {method}")
        terms[name] = per_datum(programs, to_float64(kl), guide_trace.nodes[name], has_particles=has_particles)
    return terms


def from_pyro(programs: ModelGuide, name: str, value: Tensor, *, has_particles: bool = False) -> Tensor:
    """Return z of a site, given in Pyro's layout, as ``(K, B, plates inside, event)`` or ``(B, ...)``."""
    latent, lead = programs.latents[name], int(has_particles)
    value = getattr(value, "_unquantize", value)  # z of a straight-through distribution before rounding
    missing = lead + programs.nesting + latent.event_dim - value.ndim
    value = value.reshape((1,) * missing + tuple(value.shape))
    for dim in range(-1, -1 - programs.nesting, -1):
        if dim not in latent.plate_dims:
            value = value.squeeze(lead + programs.nesting + dim)
    return value.movedim(lead + latent.plate_dims.index(programs.dim), lead)


def to_pyro(programs: ModelGuide, name: str, value: Tensor, *, has_particles: bool = False) -> Tensor:
    """Return z of a site, given as ``(K, B, plates inside, event)`` or ``(B, ...)``, in Pyro's layout."""
    latent, lead = programs.latents[name], int(has_particles)
    value = value.movedim(lead, lead + latent.plate_dims.index(programs.dim))
    for dim in range(-programs.nesting, 0):
        if dim not in latent.plate_dims:
            value = value.unsqueeze(lead + programs.nesting + dim)
    return value if latent.quantize is None else latent.quantize.apply(value)


def to_float64(value: Tensor) -> Tensor:
    """Return a tensor in float64, or in float32 on a device without float64."""
    return value.to(_widest(value))


def sum_over_sites(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms of several sites."""
    return torch.stack(tuple(terms.values())).sum(0) if len(terms) > 1 else next(iter(terms.values()))


def _widest(value: Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64
