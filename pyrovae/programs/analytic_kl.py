"""The KL term of one latent site: its closed form, or the reason why it is estimated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import pyro
import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import HalfCauchy, HalfNormal, Independent, TransformedDistribution, kl_divergence

from pyrovae.programs.site_checks import components, unwrapped

CLOSED_FORM = "closed form"
MASKED_DIFFERENTLY = "model and guide are not masked by the same tensor"

_ABSTRACT = (torch.distributions.Distribution, pyro.distributions.Distribution)  # whose log_prob only raises
_LIBRARIES = ("torch.", "pyro.", "pyrovae.")  # whose subclasses keep the density of the class that has a closed form


class Nodes(Protocol):
    """An object with `nodes`, such as a Pyro trace."""

    nodes: Any


def latent_sites(trace: Nodes) -> dict[str, Mapping[str, Any]]:
    """Return the latent sample sites of a trace by name, in the order in which they were drawn."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not draws_rows(site)
    }


def observed_sites(trace: Nodes) -> dict[str, Mapping[str, Any]]:
    """Return the observed sample sites of a trace by name, without `pyro.deterministic`."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic")
    }


def draws_rows(site: Mapping[str, Any]) -> bool:
    """Return whether a site is a plate's draw of its rows."""
    return type(site["fn"]).__name__ == "_Subsample"


def closed_form_kl(
    name: str, model_trace: Nodes, guide_trace: Nodes, *, masks_agree: bool = False
) -> tuple[Tensor | None, str]:
    """Return KL(q || p) of one latent site where a closed form exists and is a term of the ELBO.

    With z the site, ``KL(q(z | ...) || p(z | ...))`` is a term of the ELBO only if the latent variables before z in
    the model were drawn before z in the guide too. Otherwise the value of a later draw would be held fixed in an
    average over z, and the sum of such terms is not the ELBO (nor, in general, a bound).

    The site's scale and `pyro.poutine.mask` are left to the caller.

    Args:
        name: name of the site, latent in the guide.
        model_trace: the model replayed against the guide.
        guide_trace: one run of the guide.
        masks_agree: whether the values of the masks were compared before; otherwise they must be the same tensor.

    Returns:
        The KL over the site's batch shape and `CLOSED_FORM`, or None and the reason.

    """
    guide_latents = list(latent_sites(guide_trace))
    model_latents = [latent for latent in model_trace.nodes if latent in guide_latents]
    before_in_guide = guide_latents[: guide_latents.index(name)]
    late = [other for other in model_latents[: model_latents.index(name)] if other not in before_in_guide]
    if late:
        return None, f"{late[0]!r} comes before {name!r} in the model but not in the guide"
    model_site, guide_site = model_trace.nodes[name], guide_trace.nodes[name]
    if not masks_agree and _masks(guide_site["fn"]) != _masks(
        model_site["fn"]
    ):  # Pyro would take the intersection of the masks
        return None, MASKED_DIFFERENTLY
    if reason := _inherits_wrong_kl(guide_site["fn"]) or _inherits_wrong_kl(model_site["fn"]):
        return None, reason
    try:
        kl = torch.as_tensor(kl_divergence(guide_site["fn"], model_site["fn"]))  # a number where all is masked
        batch_shape = guide_site["fn"].batch_shape
        return kl if kl.shape == batch_shape else kl.expand(batch_shape), CLOSED_FORM
    except NotImplementedError:
        names = " || ".join(_name(site["fn"]) for site in (guide_site, model_site))
        return None, f"no closed form is known for KL({names})"


def kl_by_dimension(
    guide_site: Mapping[str, Any], model_site: Mapping[str, Any], *, closed_form: bool
) -> Tensor | None:
    """Return the KL of a site for each of its dimensions, if it is a sum over them.

    Args:
        guide_site: a latent site of the guide's trace.
        model_site: the same site of the model's.
        closed_form: whether to use the closed form; otherwise log q - log p of the draw is returned.

    Returns:
        ``(*batch, *event)``, nats, or None where guide or prior is a joint distribution of the dimensions.

    """
    q, p = guide_site["fn"], model_site["fn"]
    if q.event_shape or p.event_shape:  # otherwise a draw has one dimension
        for fn in (q, p):
            independent = type(fn).log_prob is Independent.log_prob
            if not independent or fn.reinterpreted_batch_ndims != len(fn.event_shape):
                return None
        q, p = q.base_dist, p.base_dist
    value = guide_site["value"]
    return kl_divergence(q, p) if closed_form else q.log_prob(value) - p.log_prob(value)


def _inherits_wrong_kl(fn: Any) -> str | None:
    """Return why the closed form of a base class or base distribution is not the KL of a distribution, or None."""
    for part in components(fn):
        owners = [cls for cls in type(part).__mro__ if "log_prob" in vars(cls) and cls not in _ABSTRACT]
        if len(owners) > 1 and not owners[0].__module__.startswith(_LIBRARIES):
            return f"{owners[0].__name__} overrides log_prob"
        symmetric = isinstance(part, (HalfCauchy, HalfNormal))  # with KL equal to that of the base distributions
        if isinstance(part, TransformedDistribution) and not symmetric:
            if not all(transform.bijective for transform in part.transforms):
                return f"the transform of {type(part).__name__} is not one-to-one"
    return None


def _masks(fn: Any) -> list[object]:
    """Return the memory addresses of the masks of a distribution; values are not read."""
    masks = [part._mask for part in components(fn) if isinstance(part, MaskedDistribution)]
    return [(mask.data_ptr(), mask.shape, mask.stride()) if isinstance(mask, Tensor) else mask for mask in masks]


def _name(fn: Any) -> str:
    """Return the name of a distribution in an error message."""
    fn = unwrapped(fn)
    name = type(fn).__name__
    if name == "MixtureSameFamily":
        return f"mixture of {_name(fn.component_distribution)}"
    if name == "TransformedDistribution":
        layers = dict.fromkeys(type(transform).__name__ for transform in fn.transforms)
        return f"{_name(fn.base_dist)} transformed by {' and '.join(layers)}"
    return name
