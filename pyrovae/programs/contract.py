"""The contract itself: what a pair's traces must show, and what is said where they do not."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyrovae.data.transform import BaseMeasure
from pyrovae.programs.analytic_kl import MASKED_DIFFERENTLY, closed_form_kl, latent_sites
from pyrovae.programs.model_guide import Latent, ModelGuide, Program, straight_through
from pyrovae.programs.support import UNNORMALIZED, is_discrete, is_improper, is_point, require_common_masks


def read_contract(
    model: Program,
    guide: Program,
    modules: tuple[nn.Module, ...],
    guide_trace: poutine.Trace,
    model_trace: poutine.Trace,
    *,
    plates: set[str],
    draws_rows: bool,
) -> ModelGuide:
    """Read a pair's structure off its traces, or say how it breaks the contract.

    Args:
        model: the generative program.
        guide: the inference program.
        modules: those they are made of.
        guide_trace: of one run of the guide, log-probabilities computed.
        model_trace: of the model replayed against it.
        plates: names of the plates that may hold the data.
        draws_rows: whether the pair draws its own rows from all data.

    """
    guide_sites, model_sites = latent_sites(guide_trace), latent_sites(model_trace)
    observed = {
        name: site
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic")
    }
    _check_names(guide_sites, model_sites, observed)
    _check_guide(guide_trace)
    require_common_masks(guide_sites, model_sites)
    sites = (*guide_sites.values(), *model_sites.values(), *observed.values())
    plate = _data_plate(sites, plates)
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    for frame in frames:
        if frame.name != plate.name and (frame.size != frame.full_size or not frame.vectorized):
            raise ValueError(
                f"the plate {frame.name!r} inside the data plate {plate.name!r} is subsampled or sequential, so that "
                "log p(x, z) cannot be computed; write it as a vectorized plate of full size"
            )
    num_elements = sum(_num_elements(site) for site in observed.values()) // plate.size
    return ModelGuide(
        model=model,
        guide=guide,
        modules=modules,
        params=_free_params(modules, guide_trace, model_trace),
        plate=plate.name,
        dim=plate.dim,
        num_rows=plate.size,
        plate_size=plate.full_size,
        draws_rows=draws_rows,
        nesting=max(-frame.dim for frame in frames),
        latents={
            name: Latent(
                plate_dims=tuple(sorted(frame.dim for frame in site["cond_indep_stack"])),
                event_dim=site["fn"].event_dim,
                num_elements=site["value"].numel() // plate.size,
                quantize=straight_through(site["fn"]),
            )
            for name, site in guide_sites.items()
        },
        observed=tuple(observed),
        num_elements=num_elements,
        num_units=num_elements,
        base_measure=_base_measure(observed),
        factors=_factors(observed),
        unnormalized=_unnormalized(observed, model_sites),
        kl={name: _kl_method(name, model_trace, guide_trace) for name in guide_sites},
    )


def _num_elements(site: Any) -> int:
    """Return the size of what a site holds: its value, or the largest parameter of its distribution."""
    sizes, inside = [site["value"].numel()], [site["fn"]]
    while inside:
        for held in vars(inside.pop()).values():
            if isinstance(held, torch.distributions.Distribution):
                inside.append(held)
            elif isinstance(held, torch.Tensor):
                sizes.append(held.numel())
    return max(sizes)


def _base_measure(observed: dict[str, Any]) -> BaseMeasure | None:
    """Return the measure on which all observed sites have their density; factors have none."""
    discrete = {is_discrete(site["fn"]) for site in observed.values() if not isinstance(site["fn"], dist.Unit)}
    if discrete == {True}:
        return "counting"
    return "Lebesgue" if discrete == {False} else None


def _factors(observed: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name, site in observed.items() if isinstance(site["fn"], dist.Unit))


def _unnormalized(observed: dict[str, Any], latent: dict[str, Any]) -> str | None:
    """Return the reason why a model is not a normalized distribution, None if it is."""
    factors = _factors(observed)
    allowed = [name for name, site in observed.items() if site["infer"].get(UNNORMALIZED)]
    reasons = [f"pyro.factor {', '.join(map(repr, factors))} in the model"] if factors else []
    reasons += [f"{name!r} observes a point (Delta)" for name, site in observed.items() if is_point(site["fn"])]
    reasons += [f"improper prior of {name!r}" for name, site in latent.items() if is_improper(site["fn"])]
    reasons += ["unnormalized=True allows values outside the support"] if allowed else []
    return "; ".join(reasons) or None


def _kl_method(name: str, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> str:
    if model_trace.nodes[name]["mask"] is not guide_trace.nodes[name]["mask"]:
        return MASKED_DIFFERENTLY
    return closed_form_kl(name, model_trace, guide_trace)[1]


def _free_params(modules: tuple[nn.Module, ...], *traces: poutine.Trace) -> tuple[str, ...]:
    """Return the names of the stored parameters that a pair uses, but for those of its modules."""
    owned = {id(parameter) for module in modules for parameter in module.parameters()}
    names = {name: None for trace in traces for name, site in trace.nodes.items() if site["type"] == "param"}
    stored = dict(pyro.get_param_store().named_parameters())
    return tuple(name for name in names if name in stored and id(stored[name]) not in owned)


def _check_names(guide_sites: dict[str, Any], model_sites: dict[str, Any], observed: dict[str, Any]) -> None:
    if not observed:
        raise ValueError("the model observes nothing; give one of its sample statements obs=x")
    if not guide_sites:
        raise ValueError("the guide samples nothing; sample the model's latent variables in it, under the same names")
    for name in guide_sites:
        if name not in model_sites:
            raise ValueError(
                f"the guide samples {name!r}, which is not a latent variable of the model "
                f"({', '.join(map(repr, model_sites)) or 'it has none'}); use the same names in both"
            )
    for name in model_sites:
        if name not in guide_sites:
            raise ValueError(
                f"the model's latent variable {name!r} is missing in the guide, so that it would be drawn from the "
                "prior and the weights would be wrong; sample it in the guide too"
            )


def _check_guide(trace: poutine.Trace) -> None:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic"):
            raise ValueError(
                f"the guide's site {name!r} is observed (pyro.factor is, too), so that its draws do not have the "
                "density that the guide states; leave it out, or move it into the model"
            )


def _data_plate(sites: tuple[Any, ...], plates: set[str]) -> Any:
    """Return the frame of the plate, one of those that may hold the data, that all sites lie in."""
    stacks = [{frame.name: frame for frame in site["cond_indep_stack"]} for site in sites]
    for name, frame in stacks[0].items():
        if name in plates and all(name in stack for stack in stacks):
            dims = {stack[name].dim for stack in stacks}
            if len(dims) > 1:
                raise ValueError(
                    f"the plate {name!r} has dimensions {sorted(dims)} at different sites; write the same dim= in "
                    "model and guide"
                )
            return frame
    outside = [site["name"] for site, stack in zip(sites, stacks, strict=True) if not stack]
    if outside and len(outside) < len(sites):
        raise ValueError(
            f"the site {outside[0]!r} lies outside the data plate, so that there is no log p(x) of one datum; move it "
            'into the plate, or make a global quantity a parameter (pyro.param, or pyro.factor into "data")'
        )
    names = dict.fromkeys(site["name"] for site in sites)
    raise ValueError(
        f"no plate of the length of the data holds all latent and observed sites ({', '.join(map(repr, names))}); "
        "put them all inside: with pyro.plate('data', len(x)): ..."
    )
