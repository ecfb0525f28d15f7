"""The state in which pairs are scored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from pyrovae.data.batches import Rows
from pyrovae.pair import Pair, Program, find_modules, inspect_pair
from pyrovae.sandbox import exact_matmul, module_mode, own_store, validation


@contextlib.contextmanager
def inspected(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    modules: Iterable[nn.Module],
    everything: Callable[[], tuple[Any, ...]] | None = None,
) -> Iterator[Pair]:
    """Inspect a pair, and keep the process in the state in which its log-probabilities are right and quick to get.

    The arguments are those of `inspect_pair`.
    """
    Rows(args[0])  # refuses what are no data
    modules = (*modules, *find_modules(model, guide))
    with own_store(modules), exact_matmul(), module_mode(modules, training=False):
        pair = inspect_pair(model, guide, args, modules=modules, everything=everything)
        with validation(enabled=False):
            yield pair
