"""Fingerprint of the values that a model observes, collected while its particles are scored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.data.loader import FIRST, num_distinct
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.data_use import DataUse, equal, find_data_use
from pyrovae.programs.site_checks import unmasked
from pyrovae.results.observed_data import DRAWN, MADE, MASKED, PART, TOTAL, WHOLE, ObservedData
from pyrovae.runtime.context import forked_random, stream_seed


def observed_values(programs: ModelGuide, sites: Mapping[str, Any]) -> Tensor:
    """Return the values of observed sites as they are scored: ``(D, B)``, float64 on the CPU, NaN where masked.

    D counts the elements inside plates and events of all sites, from left to right. A value that broadcasts over its
    distribution counts several times; a `pyro.factor` has no elements.
    """
    parts = []
    for name in programs.observed:
        fn, value = sites[name]["fn"], sites[name]["value"]
        shape = torch.broadcast_shapes(value.shape, (*fn.batch_shape, *fn.event_shape))
        masked = ~unmasked(sites[name], shape)
        value = value.detach().expand(shape).cpu().double() + 0.0  # turns -0.0 into 0.0
        value = value.masked_fill(masked.cpu(), math.nan)
        value = value.movedim(len(shape) - len(fn.event_shape) + programs.dim, 0)
        parts.append(value.reshape(len(value), math.prod(value.shape[1:])))  # (B, plates inside, event)
    return torch.cat(parts, 1).T.contiguous()


class Observations:
    """Values that a model observes of a data set, batch by batch.

    Each element, such as a pixel, is hashed with its values in all data, and the hashes are sorted, so that neither the
    batches nor the layout of sites count. An element that is masked everywhere is left out.

    Args:
        programs: from `scoring_context`.

    """

    def __init__(self, programs: ModelGuide) -> None:
        self.programs = programs
        self.sites = tuple(name for name in programs.observed if name not in programs.factors)
        self.digests: list[Any] | None = None
        self.scored = torch.zeros(0, dtype=torch.bool)  # elements that some datum does not mask
        self.elements = torch.zeros(0, dtype=torch.float64)  # the first ones, whose distinct values are counted
        self.use = DataUse()
        self.given: dict[str, int] = {}  # elements of the arguments that the model is given
        self.whole = self.part = self.in_place = self.fixed = self.same_size = True
        self.typical_totals: dict[int, Tensor] = {}  # sums of the counts of each multinomial, a median
        self.num_data = self.num_scored = 0

    def run(
        self, args: tuple[Tensor, ...], rows: Tensor, seed: int, guide_trace: poutine.Trace | None = None
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Return the trace of the guide, or the given one, and of the model replayed against it, in a random stream."""
        with forked_random(seed, rows.device):
            return run(*self.programs.bind(args, rows), guide_trace)

    def add(self, values: Tensor, args: tuple[Tensor, ...], rows: Tensor) -> None:
        """Add the values of one batch.

        Args:
            values: ``(D, B)``, from `observed_values`.
            args: the arguments of the programs, the data first.
            rows: ``(B,)``, rows of the arguments.

        """
        if self.digests is None:
            self.use = find_data_use(self.programs, args, rows)
            self.given |= self.use.given
            self.digests = [hashlib.sha256() for _ in values]
            self.scored = torch.zeros(len(values), dtype=torch.bool)
        self.same_size = self.same_size and len(values) == len(self.digests)
        if not self.same_size:
            return
        for digest, element in zip(self.digests, values.numpy(), strict=True):
            digest.update(element)
        count = values.shape[1]
        taken = (args[i][rows.to(args[i].device)] for i in self.use.observed)
        x = torch.cat([argument.reshape(count, -1).cpu().double() for argument in taken], 1).T
        masked = values.isnan()
        in_place = values.shape == x.shape and equal(values, x.masked_fill(masked, torch.nan))
        if self.num_data == 0 and not (in_place and not masked.any()):  # x itself is not drawn by the model
            _, model_trace = self.run(args, rows, stream_seed("observed", -1))
            self.fixed = equal(values, observed_values(self.programs, model_trace.nodes))
        self.in_place &= in_place
        self.whole &= equal(values, x) or equal(values.sort(0).values, x.sort(0).values)
        if not (self.whole or self.in_place):
            scored_rows, given_rows = ({row.tobytes() for row in rows.numpy()} for rows in (values, x + 0.0))
            self.part &= scored_rows <= given_rows or given_rows <= scored_rows
        self.scored |= (~masked).any(1)
        self.num_scored += int((~masked).sum())
        self._read_totals(values)
        self.num_data += count
        if self.programs.base_measure == "Lebesgue" and len(self.elements) < FIRST:
            self.elements = torch.cat([self.elements, values.T[~masked.T]])

    def summary(self) -> ObservedData | None:
        """Return the observed values' name, number and hash; None if all observed sites are `pyro.factor`."""
        if not self.digests:
            return None
        fixed = self.fixed and self.same_size
        digests = [digest for digest, scored in zip(self.digests, self.scored.tolist(), strict=True) if scored]
        kinds = {WHOLE: self.whole, MASKED: self.in_place, PART: self.part}
        return ObservedData(
            next((what for what, holds in kinds.items() if holds), MADE) if fixed else DRAWN,
            self.num_scored / self.num_data,
            hashlib.sha256(b"".join(sorted(digest.digest() for digest in digests))).hexdigest(),
            sites=self.sites,
            given=self.given,
            only_data=self.use.observed == (0,),
            num_values=num_distinct(self.elements) if self.same_size else None,
            fault=self.use.fault,
        )

    def _read_totals(self, values: Tensor) -> None:
        """Record the total of a multinomial as given if it differs between data and is not observed itself.

        torch normalizes a multinomial over the counts of one total, the sum of the observed counts.
        """
        for start, stop, num_categories in self.programs.multinomials:
            totals = values[start:stop].unflatten(0, (-1, num_categories)).sum(1)  # (plates inside, B)
            typical = self.typical_totals.setdefault(start, totals.nanmedian(1, keepdim=True).values)
            vary = ((totals - typical).abs() > 0).any(1)  # False where NaN marks a mask
            observed = (totals.unsqueeze(1) == values).all(2).any(1)
            if (vary & ~observed).any():
                self.given[TOTAL] = 1
