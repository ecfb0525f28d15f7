"""The command line's options, read off the signatures and docstrings of what they are handed to."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from torch import nn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose options can come from a file.

    ``--batch-size`` and ``--batch_size`` are the same. ``--config FILE`` reads options from JSON, which those on the
    command line override; ``--print_config`` writes that JSON.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("usage", f"{kwargs['prog']} [options]")
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=_Formatter, add_help=False)
        general = self.add_argument_group("general")
        general.add_argument("-h", "--help", action="help", help="show this text and stop")
        general.add_argument(
            "--config", metavar="FILE", help="read options from a JSON file; the command line overrides it"
        )
        general.add_argument("--print_config", action="store_true", help="print the options as JSON and stop")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def options(self, argv: Sequence[str], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the options by name; print them and exit if that was asked for.

        Args:
            argv: words of the command line.
            saved: options that hold where neither the command line nor ``--config`` says otherwise.

        Raises:
            ValueError: if an option is unknown (the text names the nearest), or the file cannot be read.

        """
        argv = [_underscored(word) for word in argv]
        first, _ = self.parse_known_args(argv)
        before = dict(saved or {}) | ({} if first.config is None else self._from_file(first.config))
        found, unknown = self.parse_known_args([*self._words(before), *argv])
        if unknown:
            raise ValueError(self._unknown(unknown[0]))
        options = {name: value for name, value in vars(found).items() if name not in ("config", "print_config")}
        if found.print_config:
            sys.stdout.write(json.dumps(self.to_save(options), indent=2) + "\n")
            self.exit(0)
        return options

    def to_save(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a configuration file holds."""
        return {name: value for name, value in options.items() if name in self._saved}

    @property
    def _saved(self) -> set[str]:
        names = {action.dest for action in self._actions if action.option_strings}
        return names - {"help", "config", "print_config", "resume"}

    def _words(self, options: Mapping[str, Any]) -> list[str]:
        """Return options as the words of a command line, so that they are checked as if they had been typed."""
        words: list[str] = []
        for name, value in options.items():
            if self._option_string_actions[f"--{name}"].nargs == 0:  # a switch
                words += [f"--{name}"] if value else []
            elif isinstance(value, list):
                words += [f"--{name}", *map(str, value)] if value else []
            elif value is not None:
                words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
        return [*words, "--config=read"] if words else []  # which ends a list before what is typed begins

    def _from_file(self, path: str) -> dict[str, Any]:
        try:
            options = json.loads(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"the configuration {path} cannot be read: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"the configuration {path} is not JSON; --print_config shows how it looks") from None
        options = options.get("command", options) if isinstance(options, dict) else options  # config.json of a run
        if not isinstance(options, dict):
            raise ValueError(f"the configuration {path} is not a JSON object; --print_config shows how it looks")
        for name in options:
            if name not in self._saved:
                raise ValueError(f"in {path}: {self._unknown('--' + name)}")
        return options

    def _unknown(self, word: str) -> str:
        name = word.split("=")[0]
        if not name.startswith("-"):
            return f"what is {word!r}? Options start with --; see --help"
        near = difflib.get_close_matches(name, list(self._option_string_actions), n=1)
        return f"unknown option {name}" + (f"; did you mean {near[0]}?" if near else "; --help lists them")

    def add_record(self, title: str, record: type) -> None:
        """Add an option for each field of a dataclass, which holds default and help."""
        group = self.add_argument_group(title)
        hints = typing.get_type_hints(record)
        for field in dataclasses.fields(record):
            group.add_argument(
                f"--{field.name}",
                type=_converter(hints[field.name]),
                default=field.default,
                metavar=_metavar(hints[field.name]),
                help=field.metadata["help"] + _default(field.default),
            )

    def add_part(self, role: str, room: ModuleType, default: type[nn.Module]) -> None:
        """Add the menu of a room, and the options of each class in it as ``--role.option``."""
        group = self.add_argument_group(role)
        menu = classes(room)
        lines = "; ".join(f"{name}: {_summary(part)}" for name, part in menu.items())
        group.add_argument(
            f"--{role}",
            choices=list(menu),
            default=default.__name__,
            metavar="CLASS",
            help=f"{lines} (default: {default.__name__})",
        )
        owners: dict[str, list[str]] = {}
        for name, part in menu.items():
            for option in keyword_options(part):
                owners.setdefault(option, []).append(name)
        for option, names in owners.items():
            part = menu[names[0]]
            parameter = keyword_options(part)[option]
            help_text = f"{', '.join(names)}: {_argument_text(part, option)}{_default(parameter.default)}"
            group.add_argument(
                f"--{role}.{option}", default=None, metavar=_metavar(parameter.annotation), help=help_text
            )


def chosen(role: str, room: ModuleType, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a function that makes the chosen part of a room from its positional arguments.

    Raises:
        ValueError: if there is no such part, or an option belongs to another one or has the wrong type.

    """
    menu = classes(room)
    name = options[role]
    if name not in menu:
        raise ValueError(f"there is no {role} {name!r}; choose from {', '.join(menu)}")
    part = menu[name]
    given = {key.removeprefix(role + "."): value for key, value in options.items() if key.startswith(role + ".")}
    arguments = {}
    for option, value in given.items():
        if value is None:
            continue
        if option not in keyword_options(part):
            raise ValueError(f"{name} has no option --{role}.{option}; {', '.join(_owners(menu, option))} has")
        hint = keyword_options(part)[option].annotation
        try:
            arguments[option] = _converter(hint)(str(value))
        except ValueError:
            raise ValueError(f"--{role}.{option} takes {_metavar(hint)}, but received {value!r}") from None
    return lambda *args, **kwargs: part(*args, **arguments, **kwargs)


def classes(room: ModuleType) -> dict[str, type[Any]]:
    """Return the concrete classes that a room exports, by name."""
    found = {name: getattr(room, name) for name in room.__all__}
    return {name: part for name, part in found.items() if inspect.isclass(part) and not inspect.isabstract(part)}


def keyword_options(part: type) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments of a class by name."""
    parameters = inspect.signature(part, eval_str=True).parameters
    return {name: value for name, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY}


def _owners(menu: Mapping[str, type], option: str) -> list[str]:
    return [name for name, part in menu.items() if option in keyword_options(part)]


def _converter(hint: Any) -> Callable[[str], Any]:
    """Return what turns a word into a value of a type."""
    types = typing.get_args(hint) or (hint,)
    base = next(kind for kind in types if kind is not type(None))

    def convert(word: str) -> Any:
        if type(None) in types and word.lower() in ("none", "null"):
            return None
        if base is bool:
            if word.lower() not in ("true", "false"):
                raise ValueError(word)
            return word.lower() == "true"
        return base(word)

    convert.__name__ = base.__name__  # argparse names the type in its error
    return convert


def _metavar(hint: Any) -> str:
    types = typing.get_args(hint) or (hint,)
    base = next(kind for kind in types if kind is not type(None))
    return {int: "N", float: "NUMBER", bool: "true|false"}.get(base, "NAME")


def _default(value: object) -> str:
    return "" if value is None or value is inspect.Parameter.empty else f" (default: {value})"


def _summary(part: type) -> str:
    """Return the first words of a docstring, without markup."""
    first = (inspect.getdoc(part) or "").split("\n\n")[0]
    return " ".join(first.replace("``", "").split()).rstrip(".")


def _argument_text(part: type, name: str) -> str:
    """Return what a docstring says of an argument."""
    found = re.search(rf"^\s+{name}: (.+?)(?=\n\s+\w+: |\n\s*\n|\Z)", inspect.getdoc(part) or "", re.M | re.S)
    return " ".join(found.group(1).split()).rstrip(".") if found else ""


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


class _Formatter(argparse.HelpFormatter):
    """Help of a readable width, options in a column of their own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)
