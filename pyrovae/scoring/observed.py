"""The values that a model observes, whatever its sites are called and shaped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrovae.pair import Pair, run
from pyrovae.pair.support import unmasked
from pyrovae.sandbox import forked_random


def observed_values(pair: Pair, args: tuple[Any, ...], rows: Tensor) -> dict[str, Tensor]:
    """Run a model and guide once, and return the values of each observed site.

    Args:
        pair: from `inspected`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.

    Returns:
        By site, values ``(B, D)`` in float64 on the CPU, NaN where they are masked: the elements inside plates and
        events, from left to right. D counts them as they are scored, a value that broadcasts over its distribution
        several times. A `pyro.factor` has no elements.

    """
    _, trace = run(*pair.bind(args, rows))
    parts = {}
    for name in pair.observed:
        site = trace.nodes[name]
        fn, value = site["fn"], site["value"]
        shape = torch.broadcast_shapes(value.shape, (*fn.batch_shape, *fn.event_shape))
        masked = ~unmasked(site, shape)
        value = value.detach().expand(shape).cpu().double() + 0.0  # there is but one zero
        value = value.masked_fill(masked.cpu(), math.nan).movedim(len(shape) - len(fn.event_shape) + pair.dim, 0)
        parts[name] = value.reshape(len(value), math.prod(value.shape[1:]))  # (B, plates inside, event)
    return parts


def sources(pair: Pair, args: tuple[Any, ...], rows: Tensor, observed: Mapping[str, Tensor], seed: int) -> set[int]:
    """Return the positions of the arguments that are observed; the model is given the others.

    An observed site has one source: the first argument that equals its value, or else the first whose rows change the
    value when they are permuted.

    Args:
        pair: from `inspected`.
        args: the arguments of its programs, the data first.
        rows: ``(B,)``, rows of the data.
        observed: the values of each site, as `observed_values` returns them from the stream of the seed.
        seed: of the stream of a run.

    """
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.ndim and len(a) == len(args[0])]
    taken = {i: args[i][rows.to(args[i].device)].reshape(len(rows), -1).cpu().double() for i in tensors}
    waiting = {name: values for name, values in observed.items() if values.numel()}
    found = set()
    for i, argument in taken.items():
        equal = [name for name, values in waiting.items() if _same(values, argument)]
        found |= {i} if equal else set()
        waiting = {name: values for name, values in waiting.items() if name not in equal}
    for i in tensors:
        if not waiting:
            break
        rolled = tuple(a.roll(1, 0) if j == i else a for j, a in enumerate(args))
        try:
            with forked_random(seed, rows.device):
                again = observed_values(pair, rolled, rows)
        except Exception:  # rows that do not belong together may break a program in any way
            continue
        changed = [name for name, values in waiting.items() if not _same(again[name], values)]
        found |= {i} if changed else set()
        waiting = {name: values for name, values in waiting.items() if name not in changed}
    return found


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | a.isnan() | b.isnan()).all())
