"""The command line's options: typed, from a file or from a run, and the classes that they choose."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import textwrap
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from pyrovae.cli.signatures import (
    argument_text,
    converter,
    default_text,
    imported,
    is_list,
    keyword_options,
    metavar_of,
    summary,
    value_of,
)
from pyrovae.cli.terminal import print_error, print_text


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
        print_error(f"{self.prog}: error: {message}\n")
        self.exit(2)

    def print_help(self, file: object = None) -> None:
        """Print the help."""
        print_text(self.format_help())

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
        given = self._values(saved or {}, "the run") | self._values(read, typed["config"])
        given = {name: value for name, value in given.items() if value is not None}  # null stands for the default
        found, unknown = self.parse_known_args([*map(_underscored, argv)], argparse.Namespace(**given))
        if unknown:
            raise ValueError(self._unknown(unknown[0]))
        options = {name: value for name, value in vars(found).items() if name not in ("config", "print_config")}
        for role in self.roles:
            self.chosen(role, options)
        if found.print_config:
            print_text(json.dumps(self.to_save(options), indent=2) + "\n")
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
        return names - {"help", "config", "print_config", "resume", "allow", "overwrite"}

    def _values(self, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the options of a file or a run, checked and converted as argparse does with those that are typed.

        They never become words of a command line: a value that looks like an option is still a value.
        """
        self._check_names(options, where)
        return {name: value if value is None else self._value(name, value, where) for name, value in options.items()}

    def _value(self, name: str, value: object, where: str) -> Any:
        action = self._option_string_actions[f"--{name}"]
        if action.nargs == 0:  # a switch
            if not isinstance(value, bool):
                raise ValueError(f"in {where}: --{name} is true or false, but received {value!r}")
            return value
        words = value if isinstance(value, list) else [value]
        plain = all(isinstance(word, (str, int, float)) for word in words)
        texts = [str(word).lower() if isinstance(word, bool) else str(word) for word in words]
        several, least, convert = action.nargs in ("+", "*"), action.nargs != "*", cast(Any, action.type or str)
        with suppress(ValueError):
            values = [convert(text) for text in texts]
            allowed = action.choices is None or set(values) <= set(action.choices)
            if plain and allowed and len(values) >= least and (several or len(values) == 1):
                return values if several else values[0]
        takes = f"is one of {', '.join(action.choices)}" if action.choices else f"takes {action.metavar}"
        received = repr(" ".join(texts)) if plain and texts else repr(value)
        raise ValueError(f"in {where}: --{name} {takes}{' ...' if several else ''}, but received {received}")

    def _read(self, path: str) -> dict[str, Any]:
        """Return the options that a file holds."""
        try:
            options = json.loads(Path(path).read_text())
        except OSError as error:
            raise ValueError(f"the configuration {path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError):
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
                type=converter(hints[field.name]),
                default=field.default,
                metavar=metavar_of(hints[field.name]),
                help=field.metadata["help"] + default_text(field.default),
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
        lines = "".join(f"{name}: {summary(part)}\n" for name, part in menu.items())
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
                text = f"{argument_text(part, option)}{default_text(parameter.default)}".strip()
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
                nargs="*" if is_list(first) else None,
                metavar=metavar_of(first),
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
            part = imported(role, path, known.base)
            known.menu[path] = part
            action = self._option_string_actions[f"--{role}"]
            action.help = f"{path}: {summary(part)}\n{action.help}"
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
            arguments[option] = value_of(key, own[option].annotation, value if isinstance(value, list) else [value])
        return part, arguments


@dataclasses.dataclass
class Role:
    """The classes that may take a role, by name; their base; options that are not offered; and their place in help."""

    menu: dict[str, type]
    base: type
    hidden: frozenset[str]
    group: Any


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
