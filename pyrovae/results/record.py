"""Records as plain values that JSON holds, and back."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

from torch import Tensor

R = TypeVar("R")

PER_DATUM = "per_datum"


def to_plain(record: Any) -> dict[str, Any]:
    """Return the fields of a record, records inside it too, without the values per datum."""
    return {
        field.name: _plain(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if field.name != PER_DATUM
    }


def from_plain(kind: type[R], plain: Any, per_datum: dict[str, Tensor] | None = None) -> R:
    """Return the record of a class that `to_plain` made plain.

    Args:
        kind: a frozen dataclass; its annotations tell what its fields are.
        plain: what `to_plain` returned, or JSON made of it. A field with a default may be missing: an earlier version
            may have written it.
        per_datum: what `tensors_of` returned.

    Raises:
        ValueError: if other fields are missing, or some are unknown.

    """
    hints = _hints(kind)  # type: ignore[arg-type]
    fields = [field for field in dataclasses.fields(kind) if field.name != PER_DATUM]  # type: ignore[arg-type]
    required = (dataclasses.MISSING, dataclasses.MISSING)
    late = {field.name for field in fields if (field.default, field.default_factory) != required}
    found = set(plain) if isinstance(plain, dict) else set()
    names = {field.name for field in fields} - (late - found)
    if not isinstance(plain, dict) or found != names:
        differing = ", ".join(sorted(names ^ found))
        raise ValueError(
            f"this is not the {kind.__name__} that this version of pyrovae writes: it differs in {differing}"
        )
    tensors = per_datum or {}
    values = {
        name: _value(
            hints[name], value, {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if _inside(k, name)}
        )
        for name, value in plain.items()
    }
    if PER_DATUM in hints:
        values[PER_DATUM] = {name: value for name, value in tensors.items() if "/" not in name}
    return kind(**values)


def tensors_of(record: Any) -> dict[str, Tensor]:
    """Return the values per datum of a record and of those inside it, by name, such as ``annealing/AIS``."""
    found = dict(getattr(record, PER_DATUM, {}))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}/{name}": tensor for name, tensor in tensors_of(value).items()}
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _value(hint: Any, value: Any, tensors: dict[str, Tensor]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _value(kinds[0], value, tensors) if len(kinds) == 1 else value
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        return tuple(_value(kind, item, tensors) for kind, item in zip(kinds, value, strict=True))
    if origin is dict:
        return {key: _value(arguments[1], item, tensors) for key, item in value.items()}
    return from_plain(hint, value, tensors) if dataclasses.is_dataclass(hint) else value  # type: ignore[arg-type]


def _inside(name: str, field: str) -> bool:
    return name.startswith(f"{field}/")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
