"""Conversion between Pyro's layout, with one axis for each plate, and ``(K, B, ...)``: particles first, then data.

A run without an axis of particles to the left of its plates has K = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.distributions import BinaryBernoulli, Elements
from pyrovae.distributions.elements import sum_dtype
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
    return to_float64(log_prob.sum(tuple(range(-event_dims, 0)), dtype=sum_dtype(log_prob)) if event_dims else log_prob)


def per_datum(programs: ModelGuide, value: Tensor, site: Mapping[str, Any]) -> Tensor:
    """Mask a value of a site, and sum it over the plates inside the data plate.

    Args:
        programs: structure of the programs, which says where the data plate is.
        value: log-probability or KL over the site's batch shape, in Pyro's layout.
        site: from a trace.

    Returns:
        ``(K, B)``.

    """
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"], device=value.device)
        value = torch.where(mask, value, torch.zeros_like(value))
    value = value.reshape((1,) * (1 + programs.nesting - value.ndim) + tuple(value.shape))
    value = value.movedim(1 + programs.nesting + programs.dim, 1)  # (K, B, plates inside)
    return value.flatten(2).sum(-1) if value.ndim > 2 else value


def log_probs(programs: ModelGuide, trace: poutine.Trace, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the log-probability of each datum at some sites of a trace, ``(K, B)``, nats."""
    return {name: per_datum(programs, log_prob(trace.nodes[name]), trace.nodes[name]) for name in names}


def closed_forms(
    programs: ModelGuide, names: Iterable[str], model_trace: poutine.Trace, guide_trace: poutine.Trace
) -> dict[str, Tensor]:
    """Return the closed-form KL of each datum at sites that have one.

    Args:
        programs: structure of the programs.
        names: names of the sites.
        model_trace: a run of the model on the draws of the guide.
        guide_trace: the run of the guide. The caller has compared the masks of both.

    Returns:
        For each site ``(K, B)``, nats.

    Raises:
        ValueError: if a KL has no closed form in these runs.

    """
    terms = {}
    for name in names:
        kl, method = closed_form_kl(name, model_trace, guide_trace, masks_agree=True)
        if kl is None:
            raise ValueError(f"the KL of {name!r} had a closed form in the first run, but has none here: {method}")
        terms[name] = per_datum(programs, to_float64(kl), guide_trace.nodes[name])
    return terms


def from_pyro(programs: ModelGuide, name: str, value: Tensor) -> Tensor:
    """Return z of a site, given in Pyro's layout, as ``(K, B, plates inside, event)``.

    Args:
        programs: structure of the programs.
        name: name of the site.
        value: z, or anything else of its shape.

    """
    latent = programs.latents[name]
    missing = 1 + programs.nesting + latent.event_dim - value.ndim
    value = value.reshape((1,) * missing + tuple(value.shape))
    for dim in range(-1, -1 - programs.nesting, -1):
        if dim not in latent.plate_dims:
            value = value.squeeze(1 + programs.nesting + dim)
    return value.movedim(1 + latent.plate_dims.index(programs.dim), 1)


def to_pyro(programs: ModelGuide, name: str, value: Tensor, *, has_particles: bool) -> Tensor:
    """Return z of a site, given as ``(K, B, plates inside, event)``, in Pyro's layout, with or without its first axis.

    Args:
        programs: structure of the programs.
        name: name of the site.
        value: z; K = 1 for a run without an axis of particles.
        has_particles: whether the run has an axis of particles to the left of its plates.

    """
    latent = programs.latents[name]
    value = value.movedim(1, 1 + latent.plate_dims.index(programs.dim))
    for dim in range(-programs.nesting, 0):
        if dim not in latent.plate_dims:
            value = value.unsqueeze(1 + programs.nesting + dim)
    return value if has_particles else value.squeeze(0)


def to_float64(value: Tensor) -> Tensor:
    """Return a tensor in float64, or in float32 on a device without float64."""
    return value.to(sum_dtype(value))


def sum_over_sites(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms of several sites."""
    return torch.stack(tuple(terms.values())).sum(0) if len(terms) > 1 else next(iter(terms.values()))
