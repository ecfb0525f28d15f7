"""Fingerprint of the values that a model observes, collected while its particles are scored."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrovae.data.loader import FIRST, num_distinct
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.site_checks import unmasked
from pyrovae.results.observed_data import DRAWN, MASKED, OTHER, WHOLE, ObservedData
from pyrovae.runtime.context import forked_random, stream_seed


class ObservedSites(Messenger):
    """Record the observed sites of the first run of a model inside the block."""

    def __init__(self, programs: ModelGuide) -> None:
        super().__init__()
        self.programs = programs
        self.sites: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.programs.observed and msg["name"] not in self.sites:
            self.sites[msg["name"]] = msg.copy()

    def values(self) -> Tensor:
        """Return the values as they are scored: ``(D, B)``, float64 on the CPU, NaN where they are masked.

        D counts the elements inside plates and events of all sites, from left to right. A value that broadcasts over
        its distribution counts several times; a `pyro.factor` has no elements.
        """
        parts = []
        for name in self.programs.observed:
            site = self.sites[name]
            fn, value = site["fn"], site["value"]
            shape = torch.broadcast_shapes(value.shape, (*fn.batch_shape, *fn.event_shape))
            masked = ~unmasked(site, shape)
            value = value.detach().expand(shape).cpu().double() + 0.0  # turns -0.0 into 0.0
            value = value.masked_fill(masked.cpu(), math.nan)
            value = value.movedim(len(shape) - len(fn.event_shape) + self.programs.dim, 0)
            parts.append(value.reshape(len(value), math.prod(value.shape[1:])))  # (B, plates inside, event)
        return torch.cat(parts, 1).T.contiguous()


def observed_values(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, seed: int) -> Tensor:
    """Run the programs once in a random stream, and return the values ``(D, B)`` that the model observes."""
    with forked_random(seed, rows.device), ObservedSites(programs) as sites:
        run(*programs.bind(args, rows))
    return sites.values()


class Observations:
    """Values that a model observes of a data set, batch by batch.

    Each element, such as a pixel, is hashed with its values in all data, and the hashes are sorted, so that neither the
    batches nor the layout of sites count. An element that is masked everywhere is left out.

    Args:
        programs: from `scoring_context`.

    """

    def __init__(self, programs: ModelGuide) -> None:
        self.programs = programs
        self.digests: list[Any] | None = None
        self.scored = torch.zeros(0, dtype=torch.bool)  # elements that some datum does not mask
        self.elements = torch.zeros(0, dtype=torch.float64)  # the first ones, whose distinct values are counted
        self.observed: set[int] = {0}  # positions of the arguments that the model observes
        self.given: dict[str, int] = {}  # elements of the arguments that the model is given
        self.whole = self.in_place = self.fixed = self.same_size = True
        self.num_data = self.num_scored = 0

    def add(self, values: Tensor, args: tuple[Tensor, ...], rows: Tensor) -> None:
        """Add the values of one batch.

        Args:
            values: ``(D, B)``, from `ObservedSites`.
            args: the arguments of the programs, the data first.
            rows: rows of the arguments, at least B; the first B are the values' data.

        """
        if self.digests is None:
            self._read_roles(args, rows)
            self.digests = [hashlib.sha256() for _ in values]
            self.scored = torch.zeros(len(values), dtype=torch.bool)
        self.same_size = self.same_size and len(values) == len(self.digests)
        if not self.same_size:
            return
        for digest, element in zip(self.digests, values.numpy(), strict=True):
            digest.update(element)
        count = values.shape[1]
        taken = (args[i][rows[:count].to(args[i].device)] for i in sorted(self.observed))
        x = torch.cat([argument.reshape(count, -1).cpu().double() for argument in taken], 1).T
        masked = values.isnan()
        in_place = values.shape == x.shape and _equal(values, x.masked_fill(masked, torch.nan))
        if self.num_data == 0 and not (in_place and not masked.any()):  # x itself is not drawn by the model
            self.fixed = _equal(
                values, observed_values(self.programs, args, rows, stream_seed("observed", -1))[:, :count]
            )
        self.in_place &= in_place
        self.whole &= _equal(values, x) or _equal(values.sort(0).values, x.sort(0).values)
        self.scored |= (~masked).any(1)
        self.num_scored += int((~masked).sum())
        self.num_data += count
        if self.programs.base_measure == "Lebesgue" and len(self.elements) < FIRST:
            self.elements = torch.cat([self.elements, values.T[~masked.T]])

    def summary(self) -> ObservedData | None:
        """Return the observed values' name, number and hash; None if all observed sites are `pyro.factor`."""
        if not self.digests:
            return None
        fixed = self.fixed and self.same_size
        digests = [digest for digest, scored in zip(self.digests, self.scored.tolist(), strict=True) if scored]
        return ObservedData(
            DRAWN if not fixed else WHOLE if self.whole else MASKED if self.in_place else OTHER,
            self.num_scored / self.num_data,
            hashlib.sha256(b"".join(sorted(digest.digest() for digest in digests))).hexdigest(),
            sites=tuple(name for name in self.programs.observed if name not in self.programs.factors),
            given=self.given,
            only_data=self.observed == {0},
            num_values=num_distinct(self.elements) if self.same_size else None,
        )

    def _read_roles(self, args: tuple[Tensor, ...], rows: Tensor) -> None:
        if len(args) == 1:
            return
        observed, given = argument_roles(self.programs, args, rows, stream_seed("observed", 0))
        self.observed = observed or {0}
        for i, name in enumerate(_argument_names(self.programs.model, len(args))):
            if i in given:
                self.given[name] = self.given.get(name, 0) + args[i][0].numel()


def argument_roles(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, seed: int) -> tuple[set[int], set[int]]:
    """Return the positions of the arguments that the model observes, and of those that it is given.

    An argument is observed if a change of it changes an observed value, and given if the change alters only the
    log-probability. Rows are permuted, or values changed where all rows are equal; booleans are masks, which are given.
    An argument whose change makes the programs fail is given.

    Args:
        programs: from `scoring_context`.
        args: the arguments of its programs, the data first.
        rows: ``(B,)``, rows of the data.
        seed: seed of the random stream of all runs.

    """
    guide_trace, model_trace = _traces(programs, args, rows, seed, None)
    observed, given = set(), set()
    for i, argument in enumerate(args):
        if not isinstance(argument, Tensor) or not argument.ndim or len(argument) != len(args[0]):
            continue
        changed = tuple(_changed(a) if j == i else a for j, a in enumerate(args))
        try:
            _, trace = _traces(programs, changed, rows, seed, guide_trace)
            other_log_prob = torch.as_tensor(trace.log_prob_sum())
        except Exception:  # rows that do not belong together may make a program raise anything
            given.add(i)
            continue
        values, other_values = (_values_by_site(programs, t.nodes) for t in (model_trace, trace))
        if argument.dtype != torch.bool and any(not _equal(values[name], other_values[name]) for name in values):
            observed.add(i)
        elif not _equal(torch.as_tensor(model_trace.log_prob_sum()), other_log_prob):
            given.add(i)
    return observed, given


def _traces(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, seed: int, guide_trace: poutine.Trace | None
) -> tuple[poutine.Trace, poutine.Trace]:
    """Return the traces of a run of the guide, or the given one, and of the model replayed against it."""
    model, guide = programs.bind(args, rows)
    with forked_random(seed, rows.device):
        guide_trace = poutine.trace(guide).get_trace() if guide_trace is None else guide_trace
        return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()


def _values_by_site(programs: ModelGuide, nodes: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: nodes[name]["value"] for name in programs.observed if name not in programs.factors}


def _changed(argument: Tensor) -> Tensor:
    """Return an argument with its rows permuted, or with other values where all rows are equal."""
    rolled = argument.roll(1, 0)
    if not _equal(rolled, argument):
        return rolled
    return ~argument if argument.dtype == torch.bool else argument * 2 + 1


def _argument_names(model: Any, num: int) -> list[str]:
    """Return the names of the first positional arguments of a model, ``c`` for arguments without a name."""
    try:
        while isinstance(model, functools.partial) and model.args and callable(model.args[-1]):  # a handler of Pyro's
            model = model.args[-1]
        model = model.forward if isinstance(model, nn.Module) else model
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):  # a program may be any callable
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*names, *["c"] * num][:num]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
