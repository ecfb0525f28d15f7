"""The contract of model and guide, checked on their traces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import nn

from pyrovae.data.transforms import BaseMeasure
from pyrovae.programs.analytic_kl import closed_form_kl, latent_sites, observed_sites
from pyrovae.programs.model_guide import Latent, ModelGuide, Program
from pyrovae.programs.site_checks import (
    LOWER_DIMENSIONAL,
    PERIOD,
    UNNORMALIZED,
    Site,
    components,
    constraint_name,
    is_discrete,
    support_of,
    unmasked,
    unwrapped,
)

Sites = Mapping[str, Site]

MAX_NAMES = 8  # sites named in an error

ROUNDED = (dist.RelaxedBernoulliStraightThrough, dist.RelaxedOneHotCategoricalStraightThrough)
MULTINOMIALS = (torch.distributions.Multinomial, dist.DirichletMultinomial)
_POSITIVE = (dist.Exponential, dist.Gamma, dist.LogNormal)
_REAL = (dist.Cauchy, dist.Gumbel, dist.Laplace, dist.Logistic, dist.Normal, dist.StudentT)
_FULL = {*_POSITIVE, *_REAL, dist.LowRankMultivariateNormal, dist.MultivariateNormal}  # a density on all of the support


def read_contract(
    model: Program,
    guide: Program,
    modules: tuple[nn.Module, ...],
    guide_trace: poutine.Trace,
    model_trace: poutine.Trace,
    *,
    plates: set[str],
) -> ModelGuide:
    """Return the structure of model and guide, read off their traces.

    Args:
        model: the generative program.
        guide: the inference program.
        modules: their modules.
        guide_trace: of one run of the guide, log-probabilities computed.
        model_trace: of the model replayed against it.
        plates: names of the plates that may hold the data.

    Raises:
        ValueError: if the programs break the contract; the text says how, and how to mend it.

    """
    guide_sites, model_sites = latent_sites(guide_trace), latent_sites(model_trace)
    observed = observed_sites(model_trace)
    _check_names(guide_sites, model_sites, observed)
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
    factors = tuple(name for name, site in observed.items() if isinstance(site["fn"], dist.Unit))
    discrete = {is_discrete(site["fn"]) for name, site in observed.items() if name not in factors}
    measures: dict[bool | None, BaseMeasure] = {True: "counting", False: "Lebesgue"}
    return ModelGuide(
        model=model,
        guide=guide,
        modules=modules,
        params=_free_params(modules, guide_trace, model_trace),
        plate=plate.name,
        dim=plate.dim,
        full_size=plate.full_size if plate.full_size != plate.size else None,
        nesting=max(-frame.dim for frame in frames),
        latents={
            name: Latent(
                plate_dims=tuple(sorted(frame.dim for frame in site["cond_indep_stack"])),
                event_dim=site["fn"].event_dim,
                num_elements=site["value"].numel() // plate.size,
            )
            for name, site in guide_sites.items()
        },
        observed=tuple(observed),
        observed_in_guide=tuple(observed_sites(guide_trace)),
        num_elements=num_elements,
        num_units=num_elements,
        base_measure=measures.get(discrete.pop()) if len(discrete) == 1 else None,
        factors=factors,
        multinomials=_multinomials(observed, plate.size),
        dimension_size=_dimension_size(site["fn"] for name, site in observed.items() if name not in factors),
        unnormalized=_unnormalized(factors, observed, model_sites),
        kl={name: closed_form_kl(name, model_trace, guide_trace, masks_agree=True)[1] for name in guide_sites},
    )


def autoguide_fault(modules: Iterable[nn.Module]) -> str | None:
    """Return why programs with a guide of `pyro.infer.autoguide` are refused, None if there is no such guide."""
    for module in modules:
        if isinstance(module, AutoGuide):
            return (
                f"{type(module).__name__} has parameters for each datum of the data that it was trained on, so that it "
                "cannot be evaluated on other data, or on some of them; write a guide with an encoder, a network that "
                "computes the parameters of q(z | x) from x"
            )
    return None


def require_common_measure(guide_site: Site, model_site: Site) -> None:
    """Check that guide and prior have densities on the same measure and support.

    Raises:
        ValueError: if one is a point mass, one is discrete, or the guide draws where the prior has no density.

    """
    name = guide_site["name"]
    for program, site in (("guide", guide_site), ("model", model_site)):
        parts = list(components(site["fn"]))
        if any(isinstance(part, dist.Delta) for part in parts):
            raise ValueError(
                f"the latent variable {name!r} is a point (Delta) in the {program}, which has no density, so that no "
                "bound on log p(x) exists; give it a distribution with a density, such as a Normal"
            )
        if any(isinstance(part, ROUNDED) for part in parts):
            raise ValueError(
                f"the latent variable {name!r} is rounded (straight-through) in the {program}, so that the values that "
                "the model sees have no density; relax it without rounding (pyro.distributions.RelaxedBernoulli)"
            )
        if getattr(site["fn"], "has_enumerate_support", False) or any(map(is_discrete, parts)):
            raise ValueError(
                f"the latent variable {name!r} is discrete in the {program}, which neither a reparametrized ELBO nor "
                "these estimates handle; sum it out in the model, or relax it in model and guide alike "
                "(pyro.distributions.RelaxedBernoulli)"
            )
    drawn, scored = support_of(guide_site["fn"]), support_of(model_site["fn"])
    if drawn is None or scored is None:
        return
    other_measure = type(drawn) is not type(scored) and any(
        isinstance(support, LOWER_DIMENSIONAL) for support in (drawn, scored)
    )
    is_full = type(unwrapped(guide_site["fn"])) in _FULL or scored is PERIOD
    if other_measure or (is_full and _exceeds(drawn, scored)):
        raise ValueError(
            f"the guide draws {name!r} from the support {constraint_name(drawn)}, but the prior has a density on "
            f"{constraint_name(scored)} alone; give both the same support"
        )


def require_common_masks(guide_sites: Sites, model_sites: Sites) -> None:
    """Check that model and guide mask the same elements of each latent variable.

    Raises:
        ValueError: with the number of elements that are masked in one program only.

    """
    for name, guide_site in guide_sites.items():
        model_site, fn = model_sites[name], guide_site["fn"]
        shape = torch.broadcast_shapes(guide_site["value"].shape, (*fn.batch_shape, *fn.event_shape))
        differing = unmasked(guide_site, shape) ^ unmasked(model_site, shape)
        if differing.any():
            raise ValueError(
                f"the latent variable {name!r} is masked in only one of model and guide, for {int(differing.sum())} of "
                f"{differing.numel()} elements, so that prior or guide has no density there; use one mask in both"
            )


def _num_elements(site: Site) -> int:
    """Return the number of elements of a site's value, or of the largest parameter of its distribution."""
    parts = [site["value"], *(value for fn in components(site["fn"]) for value in vars(fn).values())]
    return max(part.numel() for part in parts if isinstance(part, torch.Tensor))


def _multinomials(observed: Sites, num_rows: int) -> tuple[tuple[int, int, int], ...]:
    """Return the range of elements of a datum, and the number of categories, of each observed multinomial."""
    ranges, start = [], 0
    for site in observed.values():
        fn, value = site["fn"], site["value"]
        shape = torch.broadcast_shapes(value.shape, (*fn.batch_shape, *fn.event_shape))
        stop = start + shape.numel() // num_rows
        if isinstance(unwrapped(fn), MULTINOMIALS):
            ranges.append((start, stop, shape[-1]))
        start = stop
    return tuple(ranges)


def _dimension_size(distributions: Iterable[Any]) -> int | None:
    """Return the number of observed elements that are one dimension of x, None where it is undefined."""
    sizes: set[int | None] = set()
    for parts in map(list, map(components, distributions)):
        is_multinomial = any(isinstance(part, MULTINOMIALS) for part in parts)
        one_hot = [part.event_shape[-1] for part in parts if isinstance(part, torch.distributions.OneHotCategorical)]
        sizes.add(None if is_multinomial else max(one_hot, default=1))
    return sizes.pop() if len(sizes) == 1 else None


def _exceeds(drawn: Any, scored: Any) -> bool:
    """Return whether the interval of draws reaches beyond the interval of the prior."""
    lowest_drawn, lowest = (torch.as_tensor(getattr(c, "lower_bound", -math.inf)) for c in (drawn, scored))
    highest_drawn, highest = (torch.as_tensor(getattr(c, "upper_bound", math.inf)) for c in (drawn, scored))
    return bool((lowest_drawn < lowest).any() or (highest_drawn > highest).any())


def _unnormalized(factors: tuple[str, ...], observed: Sites, latent: Sites) -> str | None:
    """Return why the model is not a normalized distribution, or None."""

    def names(sites: Sites, kind: type) -> list[str]:
        return [name for name, site in sites.items() if any(isinstance(fn, kind) for fn in components(site["fn"]))]

    reasons = [f"pyro.factor {', '.join(map(repr, factors))} in the model"] if factors else []
    reasons += [f"{name!r} observes a point (Delta)" for name in names(observed, dist.Delta)]
    reasons += [f"improper prior of {name!r}" for name in names(latent, dist.ImproperUniform)]
    if any(site["infer"].get(UNNORMALIZED) for site in observed.values()):
        reasons.append("unnormalized=True allows values outside the support")
    return "; ".join(reasons) or None


def _free_params(modules: tuple[nn.Module, ...], *traces: poutine.Trace) -> tuple[str, ...]:
    """Return the names of the stored parameters that the programs use outside their modules."""
    owned = {id(parameter) for module in modules for parameter in module.parameters()}
    names = {name: None for trace in traces for name, site in trace.nodes.items() if site["type"] == "param"}
    stored = dict(pyro.get_param_store().named_parameters())
    return tuple(name for name in names if name in stored and id(stored[name]) not in owned)


def _check_names(guide_sites: Sites, model_sites: Sites, observed: Sites) -> None:
    if not observed:
        raise ValueError("the model, the first of the two programs, observes nothing; give it a sample statement obs=x")
    if not guide_sites:
        raise ValueError("the guide samples nothing; sample the model's latent variables in it, under the same names")
    for name in guide_sites:
        if name not in model_sites:
            raise ValueError(
                f"the guide samples {name!r}, which is not a latent variable of the model ({_list(model_sites)}), so "
                "that the density of the model's variables would be an integral over it; sample the model's variables "
                "alone, under their names (EasyGuide.group does not)"
            )
    for name in model_sites:
        if name not in guide_sites:
            raise ValueError(
                f"the model's latent variable {name!r} is missing in the guide, so that it would be drawn from the "
                "prior and the weights would be wrong; sample it in the guide too"
            )


def _data_plate(sites: tuple[Any, ...], plates: set[str]) -> Any:
    """Return the frame of the plate that holds all sites, among the plates that may hold the data."""
    stacks = [{frame.name: frame for frame in site["cond_indep_stack"]} for site in sites]
    for name, frame in stacks[0].items():
        if name in plates and all(name in stack for stack in stacks):
            dims, sizes = ({getattr(stack[name], part) for stack in stacks} for part in ("dim", "full_size"))
            if len(dims) > 1:
                raise ValueError(
                    f"the plate {name!r} has dimensions {sorted(dims)} at different sites; write the same dim= in "
                    "model and guide"
                )
            if len(sizes) > 1:  # Pyro would scale the log-probabilities of one program alone
                raise ValueError(
                    f"the plate {name!r} has {' and '.join(map(str, sorted(sizes)))} rows in model and guide, which "
                    f"were run on {frame.size} data; write pyro.plate({name!r}, len(x)) in both, or in both the same N "
                    "with subsample_size=len(x)"
                )
            return frame
    data_plates = [next((name for name in stack if name in plates), None) for stack in stacks]
    first, other = data_plates[0], next((name for name in data_plates if name not in (None, data_plates[0])), None)
    if first and other:
        raise ValueError(
            f"the data plate is {first!r} at the site {sites[0]['name']!r} and {other!r} at another; give it one name "
            "in model and guide"
        )
    sequential = next((f.name for stack in stacks for f in stack.values() if not f.vectorized), None)
    if sequential:
        raise ValueError(
            f"the plate {sequential!r} is sequential, so that its sites have other names for each datum; write it "
            f"vectorized: with pyro.plate({sequential!r}, len(x)): ..."
        )
    outside = [site["name"] for site, stack in zip(sites, stacks, strict=True) if not stack]
    if outside and len(outside) < len(sites):
        raise ValueError(
            f"the site {outside[0]!r} lies outside the data plate, so that there is no log p(x) of one datum; move it "
            'into the plate, or make a global quantity a parameter (pyro.param, or pyro.factor into "data")'
        )
    raise ValueError(
        "no plate of the length of the data holds all latent and observed sites "
        f"({_list(dict.fromkeys(site['name'] for site in sites))}); put them all inside: "
        "with pyro.plate('data', len(x)): ..."
    )


def _list(names: Iterable[str]) -> str:
    """Return names in quotes, the first few of many."""
    names = [repr(name) for name in names]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (", ".join(names[:MAX_NAMES]) or "it has none") + more
