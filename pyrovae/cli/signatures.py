"""Command-line options of a class, read from its signature and docstring."""

from __future__ import annotations

import collections.abc
import dataclasses
import importlib
import inspect
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

LISTS = (collections.abc.Sequence, list, tuple)
METAVARS = {int: "N", float: "NUMBER", bool: "true|false", str: "NAME"}  # by type of an option


@dataclasses.dataclass(frozen=True)
class Option:
    """Option for a keyword argument of a constructor, or for a field of a dataclass."""

    base: type  # int, float, bool or str; the type of one item if the option is a list
    is_list: bool
    is_optional: bool  # the word "none" stands for None
    default: Any
    text: str  # help, with the default

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the option for argparse."""
        number = {"nargs": "?", "const": "true"} if self.base is bool else {}  # the option alone means true
        return {"metavar": METAVARS[self.base], **({"nargs": "*"} if self.is_list else number)}

    def converter(self) -> Callable[[str], Any]:
        """Return a function from one word to a value; argparse names the type in its errors."""

        def convert(word: str) -> Any:
            if self.is_optional and word.lower() in ("none", "null"):
                return None
            if self.base is bool:
                if word.lower() not in ("true", "false"):
                    raise ValueError(word)
                return word.lower() == "true"
            value = self.base(word)
            if self.base is float and not math.isfinite(value):  # JSON has no infinity
                raise ValueError(word)
            return value

        convert.__name__ = self.base.__name__
        return convert

    def value(self, name: str, words: Sequence[Any]) -> Any:
        """Return the value for some words; raise a ValueError if their type or number is wrong."""
        try:
            values = tuple(map(self.converter(), map(str, words)))
            if self.is_list:
                return values
            (value,) = values
        except ValueError:
            metavar, received = METAVARS[self.base], " ".join(map(str, words))
            several = f" {metavar} ..." if self.is_list else ""
            raise ValueError(f"--{name} takes {metavar}{several}, but received {received!r}") from None
        return value


def options_of(part: type, hidden: Collection[str] = ()) -> dict[str, Option]:
    """Return the options of a class by name: its keyword-only arguments that are numbers, words or lists of them.

    All fields of a dataclass count. An argument without annotation has the type of its default.
    """
    hints = typing.get_type_hints(part.__init__)  # type: ignore[misc]  # without the metadata of Annotated
    options = {}
    for name, parameter in inspect.signature(part).parameters.items():
        keyword = dataclasses.is_dataclass(part) or parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if keyword and name not in hidden:
            options[name] = _option(part, name, hints.get(name), parameter.default)
    return {name: option for name, option in options.items() if option is not None}


def _option(part: type, name: str, annotation: Any, default: Any) -> Option | None:
    """Return the option for an argument, None if the command line cannot give its type."""
    if annotation is None and default is not inspect.Parameter.empty:
        annotation = type(default)
        if annotation in LISTS:
            annotation = Sequence[type(default[0])] if default else None  # type: ignore[misc]
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        annotation, origin = type(typing.get_args(annotation)[0]), None
    if origin not in (None, typing.Union, types.UnionType, *LISTS):
        return None
    types_ = typing.get_args(annotation) or (annotation,)
    base = next((item for item in types_ if item is not types.NoneType), None)
    if base not in METAVARS:
        return None
    text = f"{_argument_text(part, name)}{default_text(default)}".strip()
    return Option(base, origin in LISTS, types.NoneType in types_, default, text)


def _argument_text(part: type, name: str) -> str:
    """Return the text of a docstring on an argument."""
    pattern = rf"^\s+{name}: (.+?)(?=\n\s+\w+: |\n\s*\n|\Z)"
    match = re.search(pattern, inspect.getdoc(part) or "", re.MULTILINE | re.DOTALL)
    return _one_line(match.group(1)) if match else ""


def default_text(value: object) -> str:
    """Return the default in parentheses; an empty text if there is none."""
    if value is None or value is inspect.Parameter.empty:
        return ""
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value)) or "none"
    return f" (default: {str(value).lower() if isinstance(value, bool) else value})"


def summary(part: type) -> str:
    """Return the first paragraph of a docstring, without markup."""
    return _one_line((inspect.getdoc(part) or "").split("\n\n")[0])


def _one_line(text: str) -> str:
    """Return text of a docstring on one line, percent signs escaped for argparse."""
    return " ".join(text.replace("``", "").split()).rstrip(".").replace("%", "%%")


def classes(room: ModuleType, base: type = object) -> dict[str, type[Any]]:
    """Return the concrete classes that a package exports and that derive from a base class, by name."""
    exported = {name: getattr(room, name) for name in room.__all__}
    return {
        name: part
        for name, part in exported.items()
        if inspect.isclass(part) and not inspect.isabstract(part) and issubclass(part, base)
    }


def make(part: type[Any], arguments: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    """Make a part from its options, and from the values in ``context`` that its constructor has arguments for."""
    accepted = inspect.signature(part).parameters
    return part(**{name: value for name, value in context.items() if name in accepted}, **arguments)


def import_part(role: str, path: str, base: type) -> type:
    """Import a class of the user that derives from ``base``; the working directory is searched too."""
    module, _, name = path.rpartition(".")
    allow_working_directory()
    try:
        part = getattr(importlib.import_module(module), name)
        if inspect.isclass(part):
            options_of(part)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ValueError(f"--{role} {path} cannot be imported: {type(error).__name__}: {error}") from None
    if not (inspect.isclass(part) and issubclass(part, base)):
        home = base.__module__.removesuffix(".base")
        raise ValueError(f"--{role} {path} is not a {role}: derive the class from {home}.{base.__qualname__}")
    return part


def allow_working_directory() -> None:
    """Let modules of the working directory be imported, as ``python`` does but an installed command does not."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
