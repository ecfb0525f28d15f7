"""The values that a model observes, whatever its sites are called and shaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyrovae.pair import Pair, run


def observed_values(pair: Pair, args: tuple[Any, ...], rows: Tensor) -> Tensor:
    """Run a pair once, and return what its model observes.

    Args:
        pair: from `inspected`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.

    Returns:
        Values ``(B, D)`` in float64 on the CPU, NaN where they are masked: the elements of each site, inside plates and
        events, from left to right, one site after the other. D counts them as they are scored, a value that broadcasts
        over its distribution several times.

    """
    _, trace = run(*pair.bind(args, rows))
    parts = []
    for name in pair.observed:
        site = trace.nodes[name]
        fn, value = site["fn"], site["value"]
        shape = torch.broadcast_shapes(value.shape, (*fn.batch_shape, *fn.event_shape))
        masked = ~unmasked(site, shape)
        value = value.detach().expand(shape).cpu().double() + 0.0  # there is but one zero
        value = value.masked_fill(masked.cpu(), math.nan).movedim(len(shape) - len(fn.event_shape) + pair.dim, 0)
        parts.append(value.reshape(len(value), -1))  # (B, plates inside, event)
    return torch.cat(parts, 1)


def unmasked(site: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """Return which elements of a site's value, brought to a shape, count by all masks that it is under."""
    value, fn = site["value"], site["fn"]
    masks = [] if site["mask"] is None else [(site["mask"], fn.event_dim)]
    while fn is not None:
        masks += [(fn._mask, fn.event_dim)] if isinstance(fn, MaskedDistribution) else []
        fn = getattr(fn, "base_dist", None)
    kept = torch.ones(torch.Size(shape), dtype=torch.bool, device=value.device)
    for mask, event_dim in masks:
        mask = torch.as_tensor(mask, device=value.device)
        kept &= mask.reshape(*mask.shape, *[1] * event_dim).expand(kept.shape)
    return kept
