"""Arguments of constructors and functions, checked and converted by their annotations, and records of options."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

LARGEST = 10**15  # largest integer argument; sizes below it are checked against memory
LARGEST_SEED = 2**63 - 1  # of torch's generators
MAX_CHARACTERS = 80  # of a received value in an error
MISMATCH = object()
SYNONYMS = {  # of options, in other packages and earlier versions
    "shown": "show_progress",
    "lr": "learning_rate",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "num_particles": "ks",
    "k": "ks",
    "K": "ks",
}


class ArgumentError(TypeError, ValueError):
    """An argument has another type than its annotation, or lies outside its range."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of a finite number, in the metadata of an annotation such as ``Annotated[float, Range(0, 1)]``.

    Attributes:
        least: smallest value.
        most: largest value; None if there is none.
        exclusive: whether the smallest value itself is excluded.

    """

    least: float
    most: float | None = None
    exclusive: bool = False

    def __contains__(self, value: Any) -> bool:
        above = value > self.least if self.exclusive else value >= self.least
        return bool(above and value <= (sys.float_info.max if self.most is None else self.most))

    def __str__(self) -> str:
        if self.most is not None:
            return f"in {'(' if self.exclusive else '['}{self.least:g}, {self.most:g}]"
        return f"{'>' if self.exclusive else '>='} {self.least:g}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, exclusive=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Shape = tuple[PositiveInt, ...]


def checked(function: F) -> F:
    """Decorate a function: check and convert its arguments by their annotations.

    Integers and numbers of NumPy become Python's, arrays and DataFrames become tensors, an integer becomes a shape of
    one axis, and a module becomes a sequence of one module. Arguments with other annotations are passed on unchecked.
    An object with methods ``model`` and ``guide``, such as a VAE, may stand for these two arguments, or for the model
    alone.

    Raises:
        ArgumentError: in a call, if an argument does not match; the text names function, argument and received value.

    """
    signature = inspect.signature(function)
    roles = [name for name in list(signature.parameters)[:2] if name in ("model", "guide")]
    owner = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if roles and "guide" not in kwargs and not (len(roles) > 1 and callable(args[1] if len(args) > 1 else None)):
            first, *others = args or (kwargs.pop("model", None),)
            has_both = all(callable(getattr(first, name, None)) for name in ("model", "guide"))
            args = (*([getattr(first, name) for name in roles] if has_both else (first,)), *others)
        of_class = type(args[0]).__name__ if function.__name__ == "__init__" else owner
        bound = convert_arguments(function, signature, args, kwargs, owner=of_class)
        return function(*bound.args, **bound.kwargs)

    return typing.cast(F, call)


def convert_arguments(
    function: Callable[..., Any],
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    owner: str,
    convert_values: bool = True,
) -> inspect.BoundArguments:
    """Return the arguments of a call, converted by the annotations of a function unless ``convert_values`` is false.

    Raises:
        ArgumentError: if an argument does not match.
        TypeError: if an argument is missing or unknown; the text names the owner and its arguments.

    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        known = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD and p.name != "self"]
        text = f"{owner}: {error}; its arguments are {', '.join(known)}"
        if known[:2] == ["model", "guide"]:
            text += f"; a VAE may stand for the first two: {owner}(vae, {', '.join(known[2:3])})"
        if known[2:3] == ["data"]:
            text += "; several tensors are one argument, the tuple (x, labels)"
        raise TypeError(text) from None
    hints = _annotations(function) if convert_values else {}
    for name, value in bound.arguments.items():
        if name in hints:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(convert(v, hints[name], name=name, owner=owner) for v in value)
            elif kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = convert(value, hints[name], name=name, owner=owner)
    return bound


class CheckedFields:
    """Base class of dataclasses, frozen or not, whose fields are checked and converted by their annotations."""

    def __post_init__(self) -> None:
        """Convert the fields, and tensors of one number to numbers.

        Raises:
            ArgumentError: if a field does not match.

        """
        record: Any = type(self)
        hints = _annotations(record)
        for name in (field.name for field in dataclasses.fields(record)):
            hint = hints.get(name, Any)
            value = convert(getattr(self, name), hint, name=name, owner=record.__name__)
            if isinstance(value, Tensor) and not value.ndim:
                number = _convert(value.item(), hint)
                value = value if number is MISMATCH else number  # files hold numbers
            object.__setattr__(self, name, value)


def convert(value: object, hint: Any, *, name: str, owner: str) -> Any:
    """Return one argument, converted by its annotation.

    Raises:
        ArgumentError: if it does not match.

    """
    converted = _convert(value, hint)
    largest = LARGEST_SEED if name.rpartition(".")[2] == "seed" else LARGEST  # of records: training.seed
    values = converted if isinstance(converted, tuple) else (converted,)
    exceeds = any(isinstance(item, int) and abs(item) > largest for item in values)
    if converted is not MISMATCH and not exceeds:
        return converted
    expected = f"at most {largest:,}" if exceeds else _describe(hint)
    raise ArgumentError(f"`{name}` of {owner} must be {expected}, got {_received(value)}{_advice(value, hint)}")


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
        ArgumentError: if the value of a keyword does not match its annotation.

    Example:
        >>> merge_options(None, Training, {"epochs": 3}, function="fit").epochs
        3

    """
    if options is None:
        options = record()
    elif not isinstance(options, record):
        raise TypeError(f"options of {function} must be of type {record.__name__} or None, but received {options!r}")
    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    unknown = [name for name in keywords if name not in names]
    if unknown:
        near = [name for name in (SYNONYMS.get(unknown[0]),) if name in (*names, *also)]
        near = near or difflib.get_close_matches(unknown[0], [*names, *also], 1)
        hint = f"did you mean {near[0]}?" if near else "use one of these"
        raise TypeError(f"{function} has the options {', '.join([*names, *also])}, but received {unknown[0]!r}; {hint}")
    try:
        return dataclasses.replace(options, **keywords)  # type: ignore[type-var]
    except ArgumentError as error:
        raise ArgumentError(str(error).replace(f" of {record.__name__} ", f" of {function} ")) from None


@functools.cache
def _annotations(function: Any) -> dict[str, Any]:
    """Return the evaluated annotations of a function or dataclass; empty if a name cannot be resolved."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return {}
    return {name: hint for name, hint in hints.items() if name != "return"}


def _convert(value: Any, hint: Any) -> Any:
    """Return a value converted by an annotation, or `MISMATCH`."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        converted = _convert(value, parameters[0])
        ranges = (item for item in hint.__metadata__ if isinstance(item, Range))
        return converted if converted is MISMATCH or all(converted in item for item in ranges) else MISMATCH
    if origin in (typing.Union, types.UnionType):
        if any(
            option not in _SCALARS and isinstance(option, type) and isinstance(value, option) for option in parameters
        ):
            return value
        converted = (_convert(value, option) for option in parameters)
        return next((result for result in converted if result is not MISMATCH), MISMATCH)
    if hint in _SCALARS:
        return _SCALARS[hint](value)
    if hint is Tensor:
        return _to_tensor(value)
    if origin is typing.Literal:
        return value if any(type(value) is type(item) and value == item for item in parameters) else MISMATCH
    if origin is type:
        return value if isinstance(value, type) and issubclass(value, parameters[0]) else MISMATCH
    if origin is collections.abc.Callable:
        is_module_class = isinstance(value, type) and issubclass(value, nn.Module)
        return value if callable(value) and not is_module_class else MISMATCH
    if origin is collections.abc.Collection and parameters == (str,) and isinstance(value, str):
        return (value,)
    if origin in (collections.abc.Sequence, collections.abc.Iterable, tuple) and parameters:
        return _convert_elements(value, origin, parameters)
    if hint is Path:
        return Path(value) if isinstance(value, os.PathLike) else MISMATCH
    kind = origin or hint
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return value if isinstance(value, kind) else MISMATCH
    return value


def _convert_elements(value: Any, origin: Any, parameters: tuple[Any, ...]) -> Any:
    """Return a sequence with converted elements, or `MISMATCH`. Iterators of an iterable are returned unchanged."""
    element = parameters[0]
    is_integer = element is int or typing.get_args(element)[:1] == (int,)
    if is_integer and (number := _convert(value, element)) is not MISMATCH:
        return (number,)
    if element is nn.Module and isinstance(value, nn.Module):
        return (value,)
    if isinstance(value, (str, bytes)) or not isinstance(value, collections.abc.Iterable):
        return MISMATCH
    if isinstance(value, collections.abc.Iterator) and origin is collections.abc.Iterable:
        return value
    if origin is tuple and (not isinstance(value, tuple) and not is_integer):
        return MISMATCH
    if len(parameters) > 1 and parameters[1] is not Ellipsis:
        return value
    converted = tuple(_convert(item, element) for item in value)
    return MISMATCH if any(item is MISMATCH for item in converted) else converted


def _to_tensor(value: Any) -> Any:
    """Return a tensor, array, DataFrame or split of data as a tensor, or `MISMATCH`."""
    if isinstance(value, Tensor):
        return value
    if callable(getattr(value, "fixed", None)) and not value.given:  # a split of data without covariates
        return value.fixed()
    if hasattr(value, "to_numpy"):  # a DataFrame or Series; pandas stores numbers as float64
        try:
            numbers = np.array(value.to_numpy(dtype=np.float64), order="C")
            return torch.from_numpy(numbers).to(torch.get_default_dtype())
        except (TypeError, ValueError):
            return MISMATCH
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    return MISMATCH


def _to_integer(value: Any) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return MISMATCH
    try:
        return operator.index(value)
    except TypeError:
        return MISMATCH


def _to_number(value: Any) -> Any:
    if isinstance(value, Tensor) and not value.ndim:
        return value  # its value may change from step to step
    if isinstance(value, (bool, np.bool_, str)) or not hasattr(value, "__float__") or getattr(value, "ndim", 0) > 0:
        return MISMATCH
    number = value if isinstance(value, (int, float)) else float(value)
    return MISMATCH if number != number else number  # NaN; math.isnan overflows for large integers


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    Any: lambda value: value,
    object: lambda value: value,
    bool: lambda value: bool(value) if isinstance(value, (bool, np.bool_)) else MISMATCH,
    int: _to_integer,
    float: _to_number,
    str: lambda value: str(value) if isinstance(value, (str, torch.device)) else MISMATCH,
    types.NoneType: lambda value: None if value is None else MISMATCH,
}


def _describe(hint: Any) -> str:
    """Return a description of the values that an annotation allows."""
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        text = _describe(parameters[0])
        for item in (item for item in hint.__metadata__ if isinstance(item, Range)):
            text = f"{text.replace('a number', 'a finite number') if item.most is None else text} {item}"
        return text
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_describe, parameters)))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, parameters))}"
    if origin is type:
        return f"a class derived from {parameters[0].__name__}"
    if origin in (collections.abc.Sequence, collections.abc.Iterable, tuple) and parameters:
        if parameters[0] is Tensor:
            return "a tuple of tensors"
        text = _describe(parameters[0])
        plural = re.sub("^an? (integer|number|finite number)", r"\1s", text)
        return f"several: {text}" if plural == text else plural
    name = getattr(origin or hint, "__name__", str(hint))
    return _NAMES.get(origin or hint) or f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    types.NoneType: "None",
    Tensor: "a tensor or an array of numbers",
    collections.abc.Callable: "a function",
    collections.abc.Mapping: "a dictionary",
}


def _advice(value: Any, hint: Any) -> str:
    """Return the end of an error: a remedy for the value, or the texts in the annotation's metadata."""
    if isinstance(value, type):
        return f"; give an object, {value.__name__}(...)"
    if _NAMES[Tensor] in _describe(hint) and callable(getattr(value, "with_covariates", None)):  # data or a split
        return (
            "; give one split, data.train or data.test"
            if hasattr(value, "test")
            else "; give split.fixed() and split.covariates"
        )
    if _is_list_of_tensors(value) and "a tuple of tensors" in _describe(hint):
        return "; give a tuple, (x, labels)"
    if isinstance(value, tuple) and hint == Tensor:
        return "; give its tensors one after the other"
    hints, texts = [hint], ""
    while hints:
        hint = hints.pop()
        texts += "".join(f"; {text}" for text in getattr(hint, "__metadata__", ()) if isinstance(text, str))
        hints += [part for part in typing.get_args(hint) if part is not hint]
    return texts


def _received(value: Any) -> str:
    """Return a short description of a value."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_received, value))}{',' if len(value) == 1 else ''})"
    if _is_list_of_tensors(value):
        return f"a list of {len(value)} {type(value[0]).__name__}s"
    text = object.__repr__(value)[1:].split(" object")[0]
    if isinstance(value, (bool, int, float, str, list, dict, type(None))):
        text = " ".join(repr(value).split())
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, (Tensor, np.ndarray)) for item in value)
