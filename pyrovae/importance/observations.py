"""The values that a model observes, whatever its sites are called and shaped."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.programs import ModelGuide, run
from pyrovae.programs.site_checks import unmasked
from pyrovae.runtime.context import forked_random


def observed_values(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor) -> dict[str, Tensor]:
    """Run a model and guide once, and return the values of each observed site.

    Args:
        programs: from `scoring_context`.
        args: what its programs are called with, the data first.
        rows: ``(B,)``, rows of the data.

    Returns:
        By site, values ``(B, D)`` in float64 on the CPU, NaN where they are masked: the elements inside plates and
        events, from left to right. D counts them as they are scored, a value that broadcasts over its distribution
        several times. A `pyro.factor` has no elements.

    """
    _, trace = run(*programs.bind(args, rows))
    parts = {}
    for name in programs.observed:
        site = trace.nodes[name]
        fn, value = site["fn"], site["value"]
        shape = torch.broadcast_shapes(value.shape, (*fn.batch_shape, *fn.event_shape))
        masked = ~unmasked(site, shape)
        value = value.detach().expand(shape).cpu().double() + 0.0  # there is but one zero
        value = value.masked_fill(masked.cpu(), math.nan).movedim(len(shape) - len(fn.event_shape) + programs.dim, 0)
        parts[name] = value.reshape(len(value), math.prod(value.shape[1:]))  # (B, plates inside, event)
    return parts


def argument_roles(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, seed: int) -> tuple[set[int], set[int]]:
    """Return the positions of the arguments that the model observes, and of those that it is given.

    An argument is observed if changing it changes an observed value, and given if it then changes the log-probability
    of the same values all the same. Rows are permuted, or values moved where all rows are equal; booleans are masks,
    which are given. What breaks a program is taken as given.

    Args:
        programs: from `scoring_context`.
        args: the arguments of its programs, the data first.
        rows: ``(B,)``, rows of the data.
        seed: of the stream of all runs.

    """
    values, terms = _values_and_terms(programs, args, rows, seed, None)
    observed, given = set(), set()
    for i, argument in enumerate(args):
        if not isinstance(argument, Tensor) or not argument.ndim or len(argument) != len(args[0]):
            continue
        changed = tuple(_changed(a) if j == i else a for j, a in enumerate(args))
        try:
            others, other_terms = _values_and_terms(programs, changed, rows, seed, terms[0])
        except Exception:  # rows that do not belong together may break a program in any way
            given.add(i)
            continue
        if argument.dtype != torch.bool and any(not _same(values[name], others[name]) for name in values):
            observed.add(i)
        elif not _same(terms[1], other_terms[1]):
            given.add(i)
    return observed, given


def _values_and_terms(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, seed: int, guide_trace: poutine.Trace | None
) -> tuple[dict[str, Tensor], tuple[poutine.Trace, Tensor]]:
    """Run the model, on given draws of the guide if there are any, and return observed values and log-probabilities."""
    model, guide = programs.bind(args, rows)
    with forked_random(seed, rows.device):
        guide_trace = poutine.trace(guide).get_trace() if guide_trace is None else guide_trace
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()
    values = {name: trace.nodes[name]["value"] for name in programs.observed if name not in programs.factors}
    return values, (guide_trace, torch.as_tensor(trace.log_prob_sum()))


def _changed(argument: Tensor) -> Tensor:
    """Return an argument with its rows permuted, or with other values where all rows are equal."""
    rolled = argument.roll(1, 0)
    if not _same(rolled, argument):
        return rolled
    return ~argument if argument.dtype == torch.bool else argument * 2 + 1


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | a.isnan() & b.isnan()).all())
