"""What the model of an evaluation observes of all its data."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.data.loader import FIRST, num_distinct
from pyrovae.importance import argument_roles, observed_values
from pyrovae.programs import ModelGuide
from pyrovae.results.observed_data import DRAWN, MASKED, OTHER, WHOLE, ObservedData
from pyrovae.runtime.context import forked_random, stream_seed

Batches = Iterator[tuple[Tensor, int, tuple[Any, ...]]]


def fingerprint_observed(programs: ModelGuide, batches: Batches) -> ObservedData | None:
    """Run a pair once on all data, and say what its model observes.

    Each element, such as a pixel, is hashed with its values in all data, and the hashes are sorted, so that neither the
    batches nor the layout of sites count. An element that is masked everywhere is left out. The first batch is run
    twice, to see whether the model draws what it observes.

    Args:
        programs: from `scoring_context`.
        batches: rows ``(B,)``, how many of them count, and the arguments that they are rows of.

    Returns:
        What is observed; None where it cannot be told, all of it being `pyro.factor`.

    """
    digests: list[Any] = []
    observed, conditions = {0}, set[int]()
    given: dict[str, int] = {}
    elements = torch.zeros(0, dtype=torch.float64)
    names = tuple(name for name in programs.observed if name not in programs.factors)
    scored = torch.zeros(0, dtype=torch.bool)
    whole = in_place = fixed = True
    num_data = num_scored = 0
    for number, (rows, count, args) in enumerate(batches):
        sites = _values(programs, args, rows, number)
        values = torch.cat(tuple(sites.values()), 1)[:count]
        if number == 0:
            if len(args) > 1:
                observed, conditions = argument_roles(programs, args, rows, stream_seed("observed", number))
                observed = observed or {0}
            for i, argument_name in enumerate(_names(programs, len(args))):
                if i in conditions:
                    given[argument_name] = given.get(argument_name, 0) + args[i][0].numel()
            digests = [hashlib.sha256() for _ in range(values.shape[1])]
            scored = torch.zeros(values.shape[1], dtype=torch.bool)
            again = torch.cat(tuple(_values(programs, args, rows, -1).values()), 1)
            fixed = _equal(values, again[:count])
        if values.shape[1] != len(digests):
            return ObservedData(DRAWN, num_scored / num_data, _joined(digests), names, given, observed == {0})
        for digest, column in zip(digests, values.T.contiguous().numpy(), strict=True):
            digest.update(column)
        taken = (args[i][rows[:count].to(args[i].device)] for i in sorted(observed))
        x = torch.cat([argument.reshape(count, -1).cpu().double() for argument in taken], 1)
        masked = values.isnan()
        in_place &= values.shape == x.shape and _equal(values, x.masked_fill(masked, torch.nan))
        whole &= _equal(values, x) or _equal(values.sort(1).values, x.sort(1).values)
        scored |= (~masked).any(0)
        num_scored += int((~masked).sum())
        num_data += count
        if programs.base_measure == "Lebesgue" and len(elements) < FIRST:
            elements = torch.cat([elements, values[~masked]])
    if not digests:
        return None
    what = WHOLE if whole else MASKED if in_place else OTHER
    kept = [digest for digest, counts in zip(digests, scored.tolist(), strict=True) if counts]
    return ObservedData(
        what if fixed else DRAWN,
        num_scored / num_data,
        _joined(kept),
        sites=names,
        given=given,
        only_data=observed == {0},
        num_values=num_distinct(elements),
    )


def _names(programs: ModelGuide, num: int) -> list[str]:
    """Return the names of the first positional arguments of the model, ``c`` for those that it does not name."""
    try:
        model = programs.model
        while isinstance(model, functools.partial) and model.args and callable(model.args[-1]):  # a handler of Pyro's
            model = model.args[-1]
        model = model.forward if isinstance(model, nn.Module) else model
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):  # a program may be any callable
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*named, *["c"] * num][:num]


def _values(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, number: int) -> dict[str, Tensor]:
    with forked_random(stream_seed("observed", number), rows.device):
        return observed_values(programs, args, rows)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _joined(digests: list[Any]) -> str:
    return hashlib.sha256(b"".join(sorted(digest.digest() for digest in digests))).hexdigest()
