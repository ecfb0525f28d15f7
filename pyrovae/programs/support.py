"""Supports, measures and masks of sample sites, checked independently of ``validate_args``."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyrovae.programs.model_guide import straight_through

Site = Mapping[str, Any]

UNNORMALIZED = "unnormalized"  # key of a site's `infer` that allows values outside the support
_WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
_COMPONENTS = ("base_dist", "_component_distribution", "component0", "component1")
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
_LOWER_DIMENSIONAL = tuple(
    type(constraint)
    for constraint in (
        constraints.simplex,
        constraints.sphere,
        constraints.corr_cholesky,
        constraints.corr_matrix,
        constraints.lower_cholesky,
        constraints.lower_triangular,
        constraints.positive_definite,
    )
)


class Unnormalized(Messenger):
    """Let a program score values outside the support of its distributions.

    The results are not log-probabilities, and are marked as such: ``evaluate(..., unnormalized=True)`` is
    ``evaluate(Unnormalized()(model), ...)``.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = {**(msg["infer"] or {}), UNNORMALIZED: True}
        msg["fn"] = _unchecked(msg["fn"])


def _unchecked(fn: Any) -> Any:
    """Return a copy of a distribution that does not check its values at any level."""
    if not isinstance(fn, torch.distributions.Distribution):
        return fn
    fn = copy.copy(fn)
    fn._validate_args = False
    for name in _COMPONENTS:
        if name in vars(fn):
            setattr(fn, name, _unchecked(getattr(fn, name)))
    return fn


def require_supported(site: Site) -> None:
    """Refuse a value outside the support of its distribution, unless its log-probability there is -inf.

    A support that is met only up to rounding, such as a simplex, is not checked.

    Raises:
        ValueError: with the number of such elements, the first one, and what to do.

    """
    fn, value = site["fn"], site["value"]
    if not isinstance(fn, torch.distributions.Distribution) or site["infer"].get(UNNORMALIZED):
        return
    support = element_constraint(own_attribute(fn, "support"))
    unknown = support is None or constraints.is_dependent(support) or isinstance(support, _LOWER_DIMENSIONAL)
    if unknown or not isinstance(value, Tensor):
        return
    inside = support.check(value)
    if is_discrete(fn):  # torch looks at the sum of a multinomial only
        whole = value == value.round()
        inside = inside & (whole if inside.ndim == value.ndim else whole.all(-1))
    judged_as_event = inside.ndim < value.ndim
    outside = ~inside & ~(value.isnan().flatten(inside.ndim).any(-1) if judged_as_event else value.isnan())
    if not outside.any():
        return
    if not judged_as_event:
        outside = outside & unmasked(site, torch.broadcast_shapes(outside.shape, (*fn.batch_shape, *fn.event_shape)))
    log_prob = _element_log_prob(fn, value)
    if log_prob is not None and log_prob.shape == outside.shape:  # a density that is zero outside needs no check
        outside = outside & (log_prob != -math.inf)
    if outside.any():
        values = value.expand(outside.shape) if not judged_as_event else value
        first = "" if judged_as_event else f" (the first is {values[outside][0].item():.6g})"
        hint = (
            "their score is not a log-probability, whatever validate_args says; binarize or rescale the data, choose "
            "a distribution for them, or pass unnormalized=True to fit, capture or evaluate for numbers that are not "
            "log-probabilities"
            if site["is_observed"]
            else "give model and guide the same support"
        )
        raise ValueError(
            f"the value at the site {site['name']!r}: {int(outside.sum())} of {outside.numel()} lie outside the "
            f"support {constraint_name(support)} of {distribution_name(fn)}{first}; {hint}"
        )


def require_common_measure(guide_site: Site, model_site: Site) -> None:
    """Refuse a guide that has no density on the measure of the model's prior at a latent site.

    Raises:
        ValueError: if one is a point mass, one is discrete, or the guide draws where the prior has no density.

    """
    name = guide_site["name"]
    for program, site in (("guide", guide_site), ("model", model_site)):
        parts = list(_parts(site["fn"]))
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
        isinstance(support, _LOWER_DIMENSIONAL) for support in (drawn, scored)
    )
    if other_measure or (type(_unwrapped(guide_site["fn"])) in _FULL and _exceeds(drawn, scored)):
        raise ValueError(
            f"the guide draws {name!r} from the support {constraint_name(drawn)}, but the prior has a density on "
            f"{constraint_name(scored)} alone; give both the same support"
        )


def require_common_masks(guide_sites: Mapping[str, Site], model_sites: Mapping[str, Site]) -> None:
    """Refuse a latent variable that is masked in only one of the programs.

    Raises:
        ValueError: with the number of elements that are masked in one program alone.

    """
    for name, guide_site in guide_sites.items():
        model_site = model_sites[name]
        if guide_site["mask"] is model_site["mask"] and not any(
            isinstance(layer, dist.MaskedDistribution)
            for site in (guide_site, model_site)
            for layer in _layers(site["fn"])
        ):
            continue
        guide_fn = guide_site["fn"]
        shape = torch.broadcast_shapes(guide_site["value"].shape, (*guide_fn.batch_shape, *guide_fn.event_shape))
        differing = unmasked(guide_site, shape) ^ unmasked(model_site, shape)
        if differing.any():
            raise ValueError(
                f"the latent variable {name!r} is masked in only one of model and guide, for {int(differing.sum())} of "
                f"{differing.numel()} elements, so that prior or guide has no density there; use one mask in both"
            )


def unmasked(site: Site, shape: Sequence[int]) -> Tensor:
    """Return which elements of a site's value, expanded to a shape, count under all its masks: a boolean tensor."""
    value, fn = site["value"], site["fn"]
    masks = [] if site["mask"] is None else [(site["mask"], fn.event_dim)]
    while fn is not None:
        masks += [(fn._mask, fn.event_dim)] if isinstance(fn, dist.MaskedDistribution) else []
        fn = getattr(fn, "base_dist", None)
    kept = torch.ones(torch.Size(shape), dtype=torch.bool, device=value.device)
    for mask, event_dim in masks:
        mask = torch.as_tensor(mask, device=value.device).bool()
        kept = kept & mask.reshape((*mask.shape, *[1] * event_dim)).expand(kept.shape)
    return kept


def is_discrete(fn: Any) -> bool | None:
    """Return whether a distribution has a discrete support, None if it does not say."""
    with suppress(NotImplementedError):
        return getattr(own_attribute(fn, "support"), "is_discrete", None)
    return None


def is_point(fn: Any) -> bool:
    """Return whether a distribution is a point mass."""
    return any(isinstance(layer, dist.Delta) for layer in _layers(fn))


def is_improper(fn: Any) -> bool:
    """Return whether a distribution has no normalized density."""
    return any(isinstance(layer, dist.ImproperUniform) for layer in _layers(fn))


def own_attribute(fn: Any, name: str, default: Any = None) -> Any:
    """Return an attribute of a distribution, or the default if it is not implemented."""
    try:
        return getattr(fn, name, default)
    except NotImplementedError:
        return default


def element_constraint(constraint: Any) -> Any:
    """Return a constraint on single elements, without the axes over which it is reduced."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def constraint_name(constraint: Any) -> str:
    """Return the name of a constraint, without bounds that are large tensors."""
    many = any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in vars(constraint).values())
    return f"{type(constraint).__name__.removeprefix('_')}(...)" if many else str(constraint)


def distribution_name(fn: Any) -> str:
    """Return the class name of a distribution, without the wrappers of independence and masks."""
    return type(_unwrapped(fn)).__name__


def _unwrapped(fn: Any) -> Any:
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def _parts(fn: Any) -> Iterator[Any]:
    """Yield a distribution and the distributions of its draws, without the choice of a mixture component."""
    yield fn
    for name in _COMPONENTS:
        if isinstance(inner := getattr(fn, name, None), torch.distributions.Distribution):
            yield from _parts(inner)


def _layers(fn: Any) -> list[Any]:
    """Return a distribution and the ones that it wraps, from the outside in."""
    layers = [fn]
    while (inner := getattr(layers[-1], "base_dist", None)) is not None:
        layers.append(inner)
    return layers


def _element_log_prob(fn: Any, value: Tensor) -> Tensor | None:
    """Return the log-probability of each element or event, unchecked; None if it cannot be computed."""
    fn = _unchecked(_unwrapped(fn))
    with suppress(Exception):  # a distribution may compute anything outside its support
        log_prob: Tensor = fn.log_prob(value)
        return log_prob
    return None


def _exceeds(drawn: Any, scored: Any) -> bool:
    """Return whether an interval of draws reaches beyond the interval of the prior."""
    inner, outer = _interval(drawn), _interval(scored)
    if inner is None or outer is None:
        return False
    (low, high), (lowest, highest) = (tuple(map(torch.as_tensor, bounds)) for bounds in (inner, outer))
    try:
        return bool((low < lowest).any() or (high > highest).any())
    except RuntimeError:  # bounds of shapes that do not broadcast are left to the check of values
        return False


def _interval(constraint: Any) -> tuple[Any, Any] | None:
    """Return the ends of an interval of real numbers, None for any other constraint."""
    if isinstance(constraint, type(constraints.real)):
        return -math.inf, math.inf
    low, high = (getattr(constraint, name, None) for name in ("lower_bound", "upper_bound"))
    if isinstance(constraint, (constraints.greater_than, constraints.greater_than_eq)):
        return low, math.inf
    if isinstance(constraint, constraints.less_than):
        return -math.inf, high
    if isinstance(constraint, (constraints.interval, constraints.half_open_interval)):
        return low, high
    return None
