"""State of the process while model and guide are scored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from pyrovae.data.loader import Loader
from pyrovae.programs import ModelGuide, Program, find_modules, inspect_programs
from pyrovae.runtime.context import frozen_unremarked, full_precision, module_mode, own_store, validation


def require_tensor(x: object) -> None:
    """Validate the data tensor.

    Raises:
        TypeError: if x is not a tensor.
        ValueError: if it is empty, or holds values that are not finite.

    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x is a tensor (B, ...), but received {type(x).__name__}; of a split of a data set give split.fixed()"
        )
    Loader(x)


def find_low_precision(modules: Iterable[nn.Module], args: Iterable[Tensor]) -> str | None:
    """Return a description of the first tensor of modules or arguments with fewer bits than float32, or None."""
    given = ((f"argument {number} of the programs", value) for number, value in enumerate(args))
    for name, value in (*_named_tensors(modules), *given):
        if value.is_floating_point() and value.dtype.itemsize < 4:
            return f"{name} is {value.dtype}, in which a log-probability may be off by a nat"
    return None


@contextlib.contextmanager
def scoring_context(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    modules: Iterable[nn.Module],
    all_data: Callable[[], tuple[Any, ...]] | None = None,
) -> Iterator[ModelGuide]:
    """Inspect model and guide, and keep the process in the state in which they are scored.

    Modules are in evaluation mode, matrix products in full precision, and checks are off. The arguments are the same as
    for `inspect_programs`.
    """
    require_tensor(args[0])
    modules = (*modules, *find_modules(model, guide))
    _require_finite(modules)
    with own_store(modules), full_precision(), module_mode(modules, training=False):
        programs = inspect_programs(model, guide, args, modules=modules, all_data=all_data, nan_counts=True)
        _require_finite(programs.modules)
        with validation(enabled=False), frozen_unremarked(), module_mode(programs.all_modules, training=False):
            yield programs


def _named_tensors(modules: Iterable[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers of modules, with their names in error messages."""
    for module in modules:
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            yield f"{name} of {type(module).__name__}", value


def _require_finite(modules: Iterable[nn.Module]) -> None:
    for name, value in _named_tensors(modules):
        if bad := int((~value.isfinite()).sum()):
            raise ValueError(
                f"{bad} of {value.numel()} values of {name} are NaN or infinite, so that nothing can be computed from "
                "them; load weights from before training went wrong"
            )
