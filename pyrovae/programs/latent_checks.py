"""Checks that guide and model agree about each latent site: measure, support and mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from pyrovae.programs.model_guide import straight_through
from pyrovae.programs.site_checks import (
    LOWER_DIMENSIONAL,
    Site,
    components,
    constraint_name,
    element_constraint,
    is_discrete,
    layers,
    own_attribute,
    unmasked,
    unwrapped,
)

_FULL = {  # distributions with a positive density everywhere on the support that they declare
    dist.Cauchy,
    dist.Exponential,
    dist.Gamma,
    dist.Gumbel,
    dist.Laplace,
    dist.LogNormal,
    dist.Logistic,
    dist.LowRankMultivariateNormal,
    dist.MultivariateNormal,
    dist.Normal,
    dist.StudentT,
}


def require_common_measure(guide_site: Site, model_site: Site) -> None:
    """Check that the guide has a density on the measure of the prior at a latent site.

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
        if getattr(site["fn"], "has_enumerate_support", False) or any(map(is_discrete, parts)):
            raise ValueError(
                f"the latent variable {name!r} is discrete in the {program}, which neither a reparametrized ELBO nor "
                "these estimates handle; sum it out in the model, or relax it in model and guide alike "
                "(pyro.distributions.RelaxedBernoulli)"
            )
    if straight_through(guide_site["fn"]) is not straight_through(model_site["fn"]):
        raise ValueError(
            f"only one of model and guide rounds {name!r} (straight-through), so that they have other values; use the "
            "same class of distribution in both programs"
        )
    drawn, scored = (element_constraint(own_attribute(site["fn"], "support")) for site in (guide_site, model_site))
    if drawn is None or scored is None or any(constraints.is_dependent(support) for support in (drawn, scored)):
        return
    other_measure = type(drawn) is not type(scored) and any(
        isinstance(support, LOWER_DIMENSIONAL) for support in (drawn, scored)
    )
    if other_measure or (type(unwrapped(guide_site["fn"])) in _FULL and _exceeds(drawn, scored)):
        raise ValueError(
            f"the guide draws {name!r} from the support {constraint_name(drawn)}, but the prior has a density on "
            f"{constraint_name(scored)} alone; give both the same support"
        )


def require_common_masks(guide_sites: Mapping[str, Site], model_sites: Mapping[str, Site]) -> None:
    """Check that model and guide mask the same elements of each latent variable.

    Raises:
        ValueError: with the number of elements that are masked in one program only.

    """
    for name, guide_site in guide_sites.items():
        model_site = model_sites[name]
        fns = [fn for site in (guide_site, model_site) for fn in layers(site["fn"])]
        if guide_site["mask"] is model_site["mask"] and not any(isinstance(fn, dist.MaskedDistribution) for fn in fns):
            continue
        shape = torch.broadcast_shapes(guide_site["value"].shape, (*fns[0].batch_shape, *fns[0].event_shape))
        differing = unmasked(guide_site, shape) ^ unmasked(model_site, shape)
        if differing.any():
            raise ValueError(
                f"the latent variable {name!r} is masked in only one of model and guide, for {int(differing.sum())} of "
                f"{differing.numel()} elements, so that prior or guide has no density there; use one mask in both"
            )


def _exceeds(drawn: Any, scored: Any) -> bool:
    """Return whether an interval of draws reaches beyond the interval of the prior."""
    inner, outer = _interval(drawn), _interval(scored)
    if inner is None or outer is None:
        return False
    (low, high), (lowest, highest) = (tuple(map(torch.as_tensor, bounds)) for bounds in (inner, outer))
    try:
        return bool((low < lowest).any() or (high > highest).any())
    except RuntimeError:  # bounds that do not broadcast are left to the check of values
        return False


def _interval(constraint: Any) -> tuple[Any, Any] | None:
    """Return the ends of an interval of real numbers, None for any other constraint."""
    if isinstance(constraint, type(constraints.real)):
        return -math.inf, math.inf
    if isinstance(constraint, (constraints.greater_than, constraints.greater_than_eq)):
        return constraint.lower_bound, math.inf
    if isinstance(constraint, constraints.less_than):
        return -math.inf, constraint.upper_bound
    if isinstance(constraint, (constraints.interval, constraints.half_open_interval)):
        return constraint.lower_bound, constraint.upper_bound
    return None
