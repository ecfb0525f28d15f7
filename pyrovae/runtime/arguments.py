"""Records of options that keywords extend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

R = TypeVar("R")

RENAMED = {"shown": "show_progress"}  # former keywords that still work


def merge_options(
    options: R | None, record: type[R], keywords: Mapping[str, Any], *, function: str, also: Iterable[str] = ()
) -> R:
    """Return a record of options in which the keywords of a call replace the record's values.

    ``f(x, options=Options(size=3), seed=1)`` and ``f(x, size=3, seed=1)`` are then the same call.

    Args:
        options: the record given by the caller, or None for the defaults.
        record: its frozen dataclass.
        keywords: the further keywords of the call.
        function: the function's name, for the error.
        also: names of its other options, for the error.

    Raises:
        TypeError: if `options` has another type, or a keyword is not a field of the record.

    Example:
        >>> merge_options(None, Training, {"epochs": 3}, function="fit").epochs
        3

    """
    if options is None:
        options = record()
    elif not isinstance(options, record):
        raise TypeError(f"options of {function} must be of type {record.__name__} or None, but received {options!r}")
    names = [field.name for field in fields(record)]  # type: ignore[arg-type]
    merged = {RENAMED.get(name, name): value for name, value in keywords.items()}
    unknown = [name for name in merged if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*names, *also], 1)
        hint = f"did you mean {near[0]}?" if near else "use one of these"
        raise TypeError(f"{function} has the options {', '.join([*names, *also])}, but received {unknown[0]!r}; {hint}")
    return replace(options, **merged)  # type: ignore[type-var]
