"""Records as plain JSON values, and back: one check of all files by the annotations of a record."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from pyrovae.runtime.annotations import convert

R = TypeVar("R")

LARGEST_JSON = 2**28  # bytes of a JSON file
TransformDescription = typing.TypedDict("TransformDescription", {"class": str})  # and the fields of the transform

PER_DATUM = "per_datum"  # field of the tensors, which are not part of the JSON
LEFT_OUT = (PER_DATUM, "priors")  # fields of tensors and modules
RETIRED = {"from_prior", "jackknife", "why_unavailable"}  # fields of older files, which are ignored


def to_plain(record: Any) -> dict[str, Any]:
    """Return the fields of a record and of the records in it as plain values, without the values per datum."""
    return dataclasses.asdict(record, dict_factory=_without_tensors)


def parse_json(cls: type[R], content: bytes | str, *, source: str) -> R:
    """Return the record in a JSON file, as `from_plain` does; ``cls`` may be a TypedDict or another annotation.

    Raises:
        ValueError: if the content is not strict JSON of at most 256 MiB, or differs from the annotations; the text
            names the file and the key.

    """
    try:
        if len(content) > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON:,} bytes")
        plain = json.loads(content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} must be JSON, but {error}") from None
    return typing.cast(R, _from_plain(cls, plain, {}, "", source))


def from_plain(cls: type[R], plain: Any, per_datum: dict[str, Tensor] | None = None, *, source: str = "") -> R:
    """Return a record from plain values.

    Args:
        cls: a frozen dataclass, whose annotations give the types of the fields.
        plain: the result of `to_plain`, or JSON made of it. A field with a default may be missing: records of earlier
            versions lack it.
        per_datum: the result of `tensors_of`.
        source: name of the file, for errors.

    Raises:
        ValueError: if other fields are missing or unknown, or a value does not match its annotation; the text names
            the file and the key.

    """
    return typing.cast(R, _from_plain(cls, plain, per_datum or {}, "", source or cls.__name__))


def _record(cls: type[R], plain: Any, tensors: Mapping[str, Tensor], where: str, source: str) -> R:
    fields = [field for field in dataclasses.fields(cls) if field.name not in LEFT_OUT]  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    required = {field.name for field in fields if field.default is missing and field.default_factory is missing}
    content = convert(plain, dict, name=where or "content", owner=source)
    plain = {name: value for name, value in content.items() if name not in RETIRED}
    names = set(plain)
    wrong = (names - {field.name for field in fields}) | (required - names)
    if wrong:
        raise ValueError(
            f"this is not the {cls.__name__} that this version of pyrovae writes: it differs in "
            f"{', '.join(sorted(map(str, wrong)))}"
        )
    hints = _hints(cls)  # type: ignore[arg-type]
    values = {}
    for name, value in plain.items():
        inner = {key.removeprefix(f"{name}/"): v for key, v in tensors.items() if key.startswith(f"{name}/")}
        values[name] = _from_plain(hints[name], value, inner, f"{where}.{name}".lstrip("."), source)
    if PER_DATUM in hints:
        values[PER_DATUM] = {k: v for k, v in tensors.items() if "/" not in k or k.partition("/")[0] not in hints}
    return cls(**values)


def tensors_of(record: Any) -> dict[str, Tensor]:
    """Return the values per datum of a record and of the records in it, by name, such as ``annealing/AIS``."""
    tensors = dict(getattr(record, PER_DATUM, {}))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            tensors |= {f"{field.name}/{name}": tensor for name, tensor in tensors_of(value).items()}
    return tensors


def _finite(number: str) -> float:
    """Return a finite number of JSON."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"it holds {number}")
    return value


def _without_tensors(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in LEFT_OUT}


def _from_plain(hint: Any, value: Any, tensors: Mapping[str, Tensor], where: str, source: str) -> Any:
    """Return a value converted by an annotation; the key is named ``where`` in errors."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)

    def inner(item_hint: Any, item: Any, key: object) -> Any:
        return _from_plain(item_hint, item, tensors, f"{where}.{key}".lstrip("."), source)

    if origin in (typing.Union, types.UnionType):
        classes = [argument for argument in arguments if argument is not type(None)]
        if len(classes) == 1:
            return None if value is None else _from_plain(classes[0], value, tensors, where, source)
    elif dataclasses.is_dataclass(hint):
        return _record(hint, value, tensors, where, source)  # type: ignore[arg-type]
    elif origin in (tuple, list):
        items = convert(value, list | tuple, name=where, owner=source)
        many = origin is list or arguments[-1] is Ellipsis
        if not many and len(items) != len(arguments):
            raise ValueError(f"`{where}` of {source} must have {len(arguments)} items, got {len(items)}")
        hints = [arguments[0]] * len(items) if many else arguments
        return origin(map(inner, hints, items, range(len(items))))
    elif origin is dict or typing.is_typeddict(hint):
        items = convert(value, dict, name=where or "content", owner=source)
        if origin is dict:
            return {inner(arguments[0], key, key): inner(arguments[1], item, key) for key, item in items.items()}
        for key in sorted(hint.__required_keys__ - items.keys())[:1]:
            raise ValueError(f"{source} lacks the key {f'{where}.{key}'.lstrip('.')!r}")
        return {key: inner(_hints(hint).get(key, Any), item, key) for key, item in items.items()}
    return convert(value, hint, name=where or "content", owner=source)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)
