"""The command line's options, read off the signatures and docstrings of what they are handed to."""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import json
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose options can come from a file.

    ``--batch-size`` and ``--batch_size`` are the same. ``--config FILE`` reads options from JSON, which those on the
    command line override; ``--print_config`` writes that JSON.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("usage", f"{kwargs['prog']} [options]")
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=_Formatter, add_help=False)
        self.roles: dict[str, Role] = {}
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
        first, _ = self.parse_known_args([word for word in argv if word not in ("--help", "-h")])
        read = {} if first.config is None else self._read(first.config)
        self._import_parts(vars(first), dict(saved or {}) | read, getattr(first, "allow", []))
        before = dict(saved or {}) | self._checked(read, first.config)
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
        return names - {"help", "config", "print_config", "resume", "allow"}

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

    def _read(self, path: str) -> dict[str, Any]:
        """Return the options that a file holds."""
        try:
            options = json.loads(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"the configuration {path} cannot be read: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"the configuration {path} is not JSON; --print_config shows how it looks") from None
        options = options.get("command", options) if isinstance(options, dict) else options  # config.json of a run
        if not isinstance(options, dict):
            raise ValueError(f"the configuration {path} is not a JSON object; --print_config shows how it looks")
        return options

    def _checked(self, options: dict[str, Any], path: str) -> dict[str, Any]:
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

    def add_part(
        self, role: str, menu: Mapping[str, type], default: str, *, base: type, hidden: Sequence[str] = ()
    ) -> None:
        """Add the menu of a role, and the options of each class in it as ``--role.option``.

        Args:
            role: such as "prior".
            menu: the classes by name.
            default: name of one of them.
            base: what a class of the user's, named by its import path, must derive from.
            hidden: options that are no choice on the command line.

        """
        group = self.add_argument_group(role)
        lines = "".join(f"{name}: {_summary(part)}\n" for name, part in menu.items())
        group.add_argument(
            f"--{role}",
            default=default,
            metavar="CLASS",
            help=f"{lines}or the import path of a class of your own (default: {default})",
        )
        self.roles[role] = Role(dict(menu), base, frozenset(hidden))
        owners: dict[str, list[str]] = {}
        for name, part in menu.items():
            for option in keyword_options(part, hidden):
                owners.setdefault(option, []).append(name)
        for option, names in owners.items():
            self._add_option(role, option, menu[names[0]], names, group)

    def _add_option(self, role: str, option: str, part: type, names: list[str], group: Any) -> None:
        parameter = keyword_options(part)[option]
        text = f"{', '.join(names)}: {_argument_text(part, option)}{_default(parameter.default)}"
        nargs = "+" if _is_list(parameter.annotation) else None
        group.add_argument(
            f"--{role}.{option}", default=None, nargs=nargs, metavar=_metavar(parameter.annotation), help=text
        )

    def _import_parts(self, named: Mapping[str, Any], saved: Mapping[str, Any], allow: Collection[str]) -> None:
        """Import the classes that are named by their import path, and add their options.

        Those of a file or a run folder are imported only from packages that the user allows.
        """
        for role, known in self.roles.items():
            typed = named[role] if named[role] != self.get_default(role) else None
            path = typed or saved.get(role)
            if not isinstance(path, str) or "." not in path or path in known.menu:
                continue
            package = path.partition(".")[0]
            if typed is None and package not in allow:
                raise ValueError(
                    f"the options that were read name --{role} {path}, but nothing outside pyrovae is imported because "
                    f"a file says so; if you trust it, add --allow {package}"
                )
            part = _imported(role, path, known.base)
            known.menu[path] = part
            for option in keyword_options(part, known.hidden):
                if f"--{role}.{option}" not in self._option_string_actions:
                    self._add_option(role, option, part, [path], self)

    def chosen(self, role: str, options: Mapping[str, Any]) -> tuple[type[Any], dict[str, Any]]:
        """Return the class that was chosen for a role, and the options that were given for it.

        Raises:
            ValueError: if there is no such class, or an option belongs to another one or has the wrong type.

        """
        known, name = self.roles[role], options[role]
        if name not in known.menu:
            near = difflib.get_close_matches(name, known.menu, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"there is no {role} {name!r}; {hint}Choose from {', '.join(known.menu)}, or name a class of your own "
                "by its import path, such as package.module.Class"
            )
        part = known.menu[name]
        own = keyword_options(part, known.hidden)
        arguments = {}
        for key, value in options.items():
            option = key.removeprefix(role + ".")
            if option == key or value is None:
                continue
            if option not in own:
                owners = [name for name, part in known.menu.items() if option in keyword_options(part, known.hidden)]
                raise ValueError(f"{name} has no option --{key}; {', '.join(owners)} has")
            hint = own[option].annotation
            try:
                convert = _converter(hint)
                arguments[option] = tuple(map(convert, value)) if isinstance(value, list) else convert(str(value))
            except ValueError:
                raise ValueError(f"--{key} takes {_metavar(hint)}, but received {value!r}") from None
        return part, arguments


@dataclasses.dataclass
class Role:
    """The classes that may take a role, by name; what they derive from; and options that are not offered."""

    menu: dict[str, type]
    base: type
    hidden: frozenset[str]


def classes(room: ModuleType, base: type = object) -> dict[str, type[Any]]:
    """Return the concrete classes that a room exports, by name, where they derive from a base class."""
    found = {name: getattr(room, name) for name in room.__all__}
    return {
        name: part
        for name, part in found.items()
        if inspect.isclass(part) and not inspect.isabstract(part) and issubclass(part, base)
    }


def keyword_options(part: type, hidden: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments of a class that are numbers, words or lists of numbers, by name."""
    parameters = inspect.signature(part, eval_str=True).parameters
    kinds: set[Any] = {inspect.Parameter.KEYWORD_ONLY}
    if dataclasses.is_dataclass(part):
        kinds.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: value
        for name, value in parameters.items()
        if value.kind in kinds and name not in hidden and _base(value.annotation) in _WORDS
    }


def make(part: type[Any], arguments: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    """Make a part from the options that were given and from what its constructor asks for by name.

    Args:
        part: the class.
        arguments: options.
        context: what there is, such as ``latent_dim`` and ``x_shape``.

    """
    wanted = inspect.signature(part).parameters
    return part(**{name: value for name, value in context.items() if name in wanted}, **arguments)


def _imported(role: str, path: str, base: type) -> type:
    """Import a class of the user's; the working directory counts as a place to import from."""
    module, _, name = path.rpartition(".")
    allow_working_directory()
    try:
        part = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--{role} {path} cannot be imported: {error}") from None
    if not (inspect.isclass(part) and issubclass(part, base)) or inspect.isabstract(part):
        raise ValueError(f"--{role} {path} is no {role}: derive the class from {base.__module__}.{base.__qualname__}")
    return part


def allow_working_directory() -> None:
    """Let modules of the working directory be imported, as ``python`` does but an installed command does not."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


_WORDS = (int, float, bool, str)


def _base(hint: Any) -> Any:
    """Return the type of an option, of an item for a list, without None."""
    types = typing.get_args(hint) or (hint,)
    return next((kind for kind in types if kind is not type(None)), None)


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) in (collections.abc.Sequence, list, tuple)


def _converter(hint: Any) -> Callable[[str], Any]:
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


def _metavar(hint: Any) -> str:
    return {int: "N", float: "NUMBER", bool: "true|false"}.get(_base(hint), "NAME")


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

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Wrap each line of a text by itself, what does not fit being indented."""
        lines = [textwrap.wrap(line, width, subsequent_indent="  " * ("\n" in text)) for line in text.splitlines()]
        return [part for line in lines for part in line]
