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
import types
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
            ValueError: if an option is unknown (the text names the nearest) or the chosen part does not have it, or a
                file cannot be read.

        """
        if not self.roles and {"--help", "-h"} & set(argv):  # which needs no RUN
            self.print_help()
            self.exit()
        typed = self.typed(argv)
        read = {} if typed["config"] is None else self._read(typed["config"])
        before = dict(saved or {}) | read
        self._import_parts(typed, before)
        self._check_names(read, typed["config"])
        self._check_names(saved or {}, "the run")
        found, unknown = self.parse_known_args([*self._words(before), *map(_underscored, argv)])
        if unknown:
            raise ValueError(self._unknown(unknown[0]))
        options = {name: value for name, value in vars(found).items() if name not in ("config", "print_config")}
        for role in self.roles:
            self.chosen(role, options)
        if found.print_config:
            sys.stdout.write(json.dumps(self.to_save(options), indent=2) + "\n")
            self.exit(0)
        return options

    def typed(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return what the command line itself says, before files and runs are read; None for a role not named."""
        words = [word for word in map(_underscored, argv) if word not in ("--help", "-h")]
        found, _ = self.parse_known_args(words, argparse.Namespace(**dict.fromkeys(self.roles)))
        return vars(found)

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
                if not isinstance(value, bool):
                    raise ValueError(f"--{name} is true or false, but received {value!r}")
                words += [f"--{name}"] if value else []
            elif isinstance(value, list):
                words += [f"--{name}", *map(str, value)]
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

    def _check_names(self, options: Mapping[str, Any], where: str) -> None:
        """Refuse options that there are not, or that only the command line may give."""
        for name in options:
            if name not in self._saved:
                known = f"--{name}" in self._option_string_actions
                said = f"--{name} is given on the command line only" if known else self._unknown("--" + name)
                raise ValueError(f"in {where}: {said}")

    def _unknown(self, word: str) -> str:
        name = word.split("=")[0]
        if not name.startswith("-"):
            return f"what is {word!r}? Options start with --; see --help"
        known = list(self._option_string_actions)
        near = [option for option in known if option.partition(".")[2] == name[2:]]  # the name without its role
        near = near or difflib.get_close_matches(name, known, n=1)
        return f"unknown option {name}" + (f"; did you mean {' or '.join(near)}?" if near else "; --help lists them")

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
        self.roles[role] = Role(dict(menu), base, frozenset(hidden), group)
        self._add_options(role, menu)

    def _add_options(self, role: str, parts: Mapping[str, type]) -> None:
        """Add the options of classes; help has a line for each meaning and default that an option has."""
        meanings: dict[str, dict[str, list[str]]] = {}
        for name, part in parts.items():
            for option, parameter in keyword_options(part, self.roles[role].hidden).items():
                text = f"{_argument_text(part, option)}{_default(parameter.default)}".strip()
                meanings.setdefault(option, {}).setdefault(text, []).append(name)
        for option, texts in meanings.items():
            lines = "\n".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
            known = self._option_string_actions.get(f"--{role}.{option}")
            if known is not None:  # a class of the menu has it too
                known.help = f"{lines}\n{known.help}"
                continue
            first = keyword_options(parts[next(iter(texts.values()))[0]])[option].annotation
            self.roles[role].group.add_argument(
                f"--{role}.{option}",
                default=None,
                nargs="*" if _is_list(first) else None,
                metavar=_metavar(first),
                help=lines,
            )

    def _import_parts(self, typed: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Import the classes that are named by their import path, and add their options.

        Those of a file or a run folder are imported only from pyrovae and from packages that the user allows.
        """
        for role, known in self.roles.items():
            path = typed[role] or saved.get(role)
            if not isinstance(path, str) or "." not in path or path in known.menu:
                continue
            package = path.partition(".")[0]
            if typed[role] is None and package not in ("pyrovae", *typed["allow"]):
                raise ValueError(
                    f"the options that were read name --{role} {path}, but nothing outside pyrovae is imported because "
                    f"a file says so; if you trust it, add --allow {package}"
                )
            part = _imported(role, path, known.base)
            known.menu[path] = part
            action = self._option_string_actions[f"--{role}"]
            action.help = f"{path}: {_summary(part)}\n{action.help}"
            self._add_options(role, {path: part})

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
                raise ValueError(f"{name} has no option --{key}, which is one of {', '.join(owners)}")
            arguments[option] = _value(key, own[option].annotation, value if isinstance(value, list) else [value])
        return part, arguments


@dataclasses.dataclass
class Role:
    """The classes that may take a role, by name; their base; options that are not offered; and their place in help."""

    menu: dict[str, type]
    base: type
    hidden: frozenset[str]
    group: Any


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


def _imported(role: str, path: str, base: type) -> type:
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


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) in _LISTS


def _value(name: str, hint: Any, words: Sequence[Any]) -> Any:
    """Return the value of an option for its words.

    Raises:
        ValueError: if they are of another type, or more than one where it takes one.

    """
    try:
        values = tuple(map(_converter(hint), map(str, words)))
        if _is_list(hint):
            return values
        (value,) = values
    except ValueError:
        received = " ".join(map(str, words))
        several = f" {_metavar(hint)} ..." if _is_list(hint) else ""
        raise ValueError(f"--{name} takes {_metavar(hint)}{several}, but received {received!r}") from None
    return value


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
    if value is None or value is inspect.Parameter.empty:
        return ""
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value)) or "none"
    return f" (default: {str(value).lower() if isinstance(value, bool) else value})"


def _summary(part: type) -> str:
    """Return the first words of a docstring, without markup."""
    first = (inspect.getdoc(part) or "").split("\n\n")[0]
    return _plain(first)


def _argument_text(part: type, name: str) -> str:
    """Return what a docstring says of an argument."""
    found = re.search(rf"^\s+{name}: (.+?)(?=\n\s+\w+: |\n\s*\n|\Z)", inspect.getdoc(part) or "", re.M | re.S)
    return _plain(found.group(1)) if found else ""


def _plain(text: str) -> str:
    """Return text of a docstring on one line, as argparse takes it."""
    return " ".join(text.replace("``", "").split()).rstrip(".").replace("%", "%%")


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
