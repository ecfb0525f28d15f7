"""What signatures and docstrings say of the classes that the command line offers."""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any


def classes(room: ModuleType, base: type = object) -> dict[str, type[Any]]:
    """Return the concrete classes that a room exports, by name, where they derive from a base class."""
    found = {name: getattr(room, name) for name in room.__all__}
    return {
        name: part
        for name, part in found.items()
        if inspect.isclass(part) and not inspect.isabstract(part) and issubclass(part, base)
    }


def keyword_options(part: type, hidden: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments of a class that are numbers, words or lists of them, by name.

    An argument without annotation is of the type of its default.
    """
    parameters = inspect.signature(part, eval_str=True).parameters
    kinds: set[Any] = {inspect.Parameter.KEYWORD_ONLY}
    if dataclasses.is_dataclass(part):
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    offered = {name: value for name, value in parameters.items() if value.kind in kinds and name not in hidden}
    typed = {name: value.replace(annotation=_hint(value)) for name, value in offered.items()}
    return {name: value for name, value in typed.items() if _base(value.annotation) in _WORDS}


def make(part: type[Any], arguments: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    """Make a part from the options that were given and from what its constructor asks for by name.

    Args:
        part: the class.
        arguments: options.
        context: what there is, such as ``latent_dim`` and ``x_shape``.

    """
    wanted = inspect.signature(part).parameters
    return part(**{name: value for name, value in context.items() if name in wanted}, **arguments)


def imported(role: str, path: str, base: type) -> type:
    """Import a class of the user's; the working directory counts as a place to import from."""
    module, _, name = path.rpartition(".")
    allow_working_directory()
    try:
        part = getattr(importlib.import_module(module), name)
        if inspect.isclass(part):
            keyword_options(part)
    except (Exception, SystemExit) as error:  # whatever a module of the user's does
        raise ValueError(f"--{role} {path} cannot be imported: {type(error).__name__}: {error}") from None
    if not (inspect.isclass(part) and issubclass(part, base)):
        home = base.__module__.removesuffix(".base")
        raise ValueError(f"--{role} {path} is no {role}: derive the class from {home}.{base.__qualname__}")
    stated = {name for kind in base.__mro__ for name, hint in _annotations(kind).items() if "ClassVar" in str(hint)}
    missing = sorted(
        {name for name in stated if not hasattr(part, name)} | set(getattr(part, "__abstractmethods__", ()))
    )
    if missing:
        raise ValueError(
            f"--{role} {path} lacks {', '.join(missing)}; help({base.__qualname__}) says what it must have"
        )
    return part


def _annotations(kind: type) -> Mapping[str, Any]:
    return inspect.get_annotations(kind)


def allow_working_directory() -> None:
    """Let modules of the working directory be imported, as ``python`` does but an installed command does not."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


_WORDS = (int, float, bool, str)


def _hint(parameter: inspect.Parameter) -> Any:
    """Return the annotation of an argument, or what its default implies."""
    default = parameter.default
    if parameter.annotation is not inspect.Parameter.empty or default is inspect.Parameter.empty:
        return parameter.annotation
    if isinstance(default, (list, tuple)):
        return Sequence[type(default[0])] if default else None  # type: ignore[misc]
    return type(default)


def _base(hint: Any) -> Any:
    """Return the type of an option, of an item for a list, without None."""
    if typing.get_origin(hint) not in (None, typing.Union, types.UnionType, *_LISTS):
        return None
    kinds = typing.get_args(hint) or (hint,)
    return next((kind for kind in kinds if kind is not type(None)), None)


_LISTS = (collections.abc.Sequence, list, tuple)


def is_list(hint: Any) -> bool:
    """Tell whether an option takes several words."""
    return typing.get_origin(hint) in _LISTS


def value_of(name: str, hint: Any, words: Sequence[Any]) -> Any:
    """Return the value of an option for its words.

    Raises:
        ValueError: if they are of another type, or more than one where it takes one.

    """
    try:
        values = tuple(map(converter(hint), map(str, words)))
        if is_list(hint):
            return values
        (value,) = values
    except ValueError:
        received = " ".join(map(str, words))
        several = f" {metavar_of(hint)} ..." if is_list(hint) else ""
        raise ValueError(f"--{name} takes {metavar_of(hint)}{several}, but received {received!r}") from None
    return value


def converter(hint: Any) -> Callable[[str], Any]:
    """Return what turns a word into a value of a type."""
    base, optional = _base(hint), type(None) in typing.get_args(hint)

    def convert(word: str) -> Any:
        if optional and word.lower() in ("none", "null"):
            return None
        if base is bool:
            if word.lower() not in ("true", "false"):
                raise ValueError(word)
            return word.lower() == "true"
        return base(word)

    convert.__name__ = base.__name__  # argparse names the type in its error
    return convert


def metavar_of(hint: Any) -> str:
    """Return what stands for the value of an option in help."""
    return {int: "N", float: "NUMBER", bool: "true|false"}.get(_base(hint), "NAME")


def default_text(value: object) -> str:
    """Return a default in words, nothing where there is none."""
    if value is None or value is inspect.Parameter.empty:
        return ""
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value)) or "none"
    return f" (default: {str(value).lower() if isinstance(value, bool) else value})"


def summary(part: type) -> str:
    """Return the first words of a docstring, without markup."""
    first = (inspect.getdoc(part) or "").split("\n\n")[0]
    return _plain(first)


def argument_text(part: type, name: str) -> str:
    """Return what a docstring says of an argument."""
    found = re.search(rf"^\s+{name}: (.+?)(?=\n\s+\w+: |\n\s*\n|\Z)", inspect.getdoc(part) or "", re.M | re.S)
    return _plain(found.group(1)) if found else ""


def _plain(text: str) -> str:
    """Return text of a docstring on one line, as argparse takes it."""
    return " ".join(text.replace("``", "").split()).rstrip(".").replace("%", "%%")
