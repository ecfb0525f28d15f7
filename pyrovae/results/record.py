"""Records as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

from torch import Tensor

R = TypeVar("R")

PER_DATUM = "per_datum"  # field of the tensors, which are not part of the JSON


def to_plain(record: Any) -> dict[str, Any]:
    """Return the fields of a record and of the records in it as plain values, without the values per datum."""
    return dataclasses.asdict(record, dict_factory=_without_tensors)


def from_plain(cls: type[R], plain: Any, per_datum: dict[str, Tensor] | None = None) -> R:
    """Return a record from plain values.

    Args:
        cls: a frozen dataclass, whose annotations give the types of the fields.
        plain: the result of `to_plain`, or JSON made of it. A field with a default may be missing: records of earlier
            versions lack it.
        per_datum: the result of `tensors_of`.

    Raises:
        ValueError: if other fields are missing or unknown.

    """
    fields = [field for field in dataclasses.fields(cls) if field.name != PER_DATUM]  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    names = set(plain) if isinstance(plain, dict) else set()
    wrong = (names - {field.name for field in fields}) | (required - names)
    if wrong or not isinstance(plain, dict):
        raise ValueError(
            f"this is not the {cls.__name__} that this version of pyrovae writes: it differs in "
            f"{', '.join(sorted(wrong))}"
        )
    hints, tensors = _hints(cls), per_datum or {}  # type: ignore[arg-type]
    values = {}
    for name, value in plain.items():
        inner = {key.removeprefix(f"{name}/"): v for key, v in tensors.items() if key.startswith(f"{name}/")}
        values[name] = _from_plain(hints[name], value, inner)
    if PER_DATUM in hints:
        values[PER_DATUM] = {name: value for name, value in tensors.items() if "/" not in name}
    return cls(**values)


def tensors_of(record: Any) -> dict[str, Tensor]:
    """Return the values per datum of a record and of the records in it, by name, such as ``annealing/AIS``."""
    tensors = dict(getattr(record, PER_DATUM, {}))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            tensors |= {f"{field.name}/{name}": tensor for name, tensor in tensors_of(value).items()}
    return tensors


def _without_tensors(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name != PER_DATUM}


def _from_plain(hint: Any, value: Any, tensors: dict[str, Tensor]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        classes = [argument for argument in arguments if argument is not type(None)]
        return value if value is None or len(classes) > 1 else _from_plain(classes[0], value, tensors)
    if origin is tuple:
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_from_plain(item_hint, item, tensors) for item_hint, item in zip(hints, value, strict=True))
    if origin is dict:
        return {key: _from_plain(arguments[1], item, tensors) for key, item in value.items()}
    return from_plain(hint, value, tensors) if dataclasses.is_dataclass(hint) else value  # type: ignore[arg-type]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
