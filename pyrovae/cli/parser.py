"""Argument parser whose options also come from a file or a run, and choose classes."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from pyrovae.cli.signatures import Option, default_text, import_part, options_of, summary
from pyrovae.cli.terminal import print_error, print_text

NOT_SAVED = {"help", "config", "print_config", "resume", "allow", "overwrite"}  # options of the command line only


@dataclasses.dataclass
class Role:
    """Classes for a role in the model, such as "prior", and the group of their options."""

    menu: dict[str, type]  # by name
    base: type  # from which a class of the user must derive
    hidden: frozenset[str]  # arguments of constructors that are not offered as options
    group: Any


class Parser(argparse.ArgumentParser):
    """An argument parser with errors of one line, and with options from a JSON file.

    ``--batch-size`` and ``--batch_size`` are the same. ``--config FILE`` reads options from JSON, which the command
    line overrides; ``--print_config`` writes that JSON.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("usage", f"{kwargs['prog']} [options]")
        super().__init__(**kwargs, allow_abbrev=False, formatter_class=_Formatter, add_help=False)
        self.roles: dict[str, Role] = {}
        general = self.add_argument_group("general")
        general.add_argument("-h", "--help", action="help", help="show this text and stop")
        self.add(general, "config", "read options from a JSON file; the command line overrides it", metavar="FILE")
        self.add(general, "print_config", "print the options as JSON and stop", action="store_true")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        print_error(f"{self.prog}: error: {message}\n")
        self.exit(2)

    def print_help(self, file: object = None) -> None:
        """Print the help."""
        print_text(self.format_help())

    def add(self, group: Any, name: str, text: str, *, default: Any = None, **settings: Any) -> None:
        """Add an option to a group; the help ends with the default, and an integer as default sets the type too."""
        if "action" not in settings:
            settings.setdefault("type", int if isinstance(default, int) else None)
            if "choices" not in settings:
                settings.setdefault("metavar", "N" if settings["type"] is int else "NAME")
        group.add_argument(f"--{name}", default=default, help=text + default_text(default), **settings)

    def add_record(self, title: str, record: type) -> None:
        """Add an option for each field of a dataclass, with the docstring's text as help."""
        group = self.add_argument_group(title)
        for name, option in options_of(record).items():
            settings = option.settings | {"default": option.default, "help": option.text}
            group.add_argument(f"--{name}", type=option.converter(), **settings)

    def add_part(
        self, role: str, menu: Mapping[str, type], default: str, *, base: type, hidden: Sequence[str] = ()
    ) -> None:
        """Add the menu of a role such as "prior", and the options of its classes as ``--role.option``.

        A class of the user, named by its import path, must derive from ``base``. The ``hidden`` arguments of
        constructors are not offered as options.
        """
        group = self.add_argument_group(role)
        lines = "".join(f"{name}: {summary(part)}\n" for name, part in menu.items())
        text = f"{lines}or the import path of a class of your own (default: {default})"
        group.add_argument(f"--{role}", default=default, metavar="CLASS", help=text)
        self.roles[role] = Role(dict(menu), base, frozenset(hidden), group)
        self._add_options(role, menu)

    def _add_options(self, role: str, parts: Mapping[str, type]) -> None:
        """Add the options of classes; the help of an option has one line for each meaning."""
        owners: dict[str, dict[str, list[str]]] = {}  # names of classes by option and meaning
        first: dict[str, Option] = {}
        for name, part in parts.items():
            for key, option in options_of(part, self.roles[role].hidden).items():
                owners.setdefault(key, {}).setdefault(option.text, []).append(name)
                first.setdefault(key, option)
        for key, meanings in owners.items():
            lines = "\n".join(f"{', '.join(names)}: {text}" for text, names in meanings.items())
            known = self._option_string_actions.get(f"--{role}.{key}")
            if known is not None:  # a class of the menu has the option too
                known.help = f"{lines}\n{known.help}"
                continue
            settings = first[key].settings | {"help": lines}
            self.roles[role].group.add_argument(f"--{role}.{key}", **settings)

    def options(self, argv: Sequence[str], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the options by name; print them and exit if ``--print_config`` is given.

        The command line overrides the file of ``--config``, which overrides the ``saved`` options of a run.
        """
        if not self.roles and {"--help", "-h"} & set(argv):  # help needs no RUN
            self.print_help()
            self.exit()
        typed, saved = self.typed(argv), saved or {}
        read = {} if typed["config"] is None else _read_config(typed["config"])
        self._import_parts(typed, {**saved, **read})
        given = self._check_values(saved, "the run") | self._check_values(read, typed["config"])
        given = {name: value for name, value in given.items() if value is not None}  # null stands for the default
        namespace, unknown = self.parse_known_args([*map(_underscored, argv)], argparse.Namespace(**given))
        if unknown:
            raise ValueError(self._unknown(unknown[0]))
        options = {name: value for name, value in vars(namespace).items() if name not in ("config", "print_config")}
        for role in self.roles:
            self.chosen(role, options)
        if namespace.print_config:
            print_text(json.dumps(self.to_save(options), indent=2) + "\n")
            self.exit(0)
        return options

    def typed(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the options of the command line alone, before files and runs are read; None for a role not named."""
        words = [word for word in map(_underscored, argv) if word not in ("--help", "-h")]
        namespace, _ = self.parse_known_args(words, argparse.Namespace(**dict.fromkeys(self.roles)))
        return vars(namespace)

    def values(self, argv: Sequence[str]) -> dict[str, dict[str, list[str]]]:
        """Return the values that are typed for each option, by their text, as words of a command line.

        Each word is a value; if the option takes a list, the words of each of its occurrences are one value.
        """
        typed: dict[str, list[list[str]]] = {}
        name = None
        for word in map(_underscored, argv):
            if word.startswith("--"):
                name, equals, first = word.partition("=")
                typed.setdefault(name, []).append([first] if equals else [])
            elif name is None:
                raise ValueError(self._unknown(word))
            else:
                typed[name][-1].append(word)
        for role in self.roles:
            for path in itertools.chain(*typed.get(f"--{role}", [])):
                self._import_parts(dict.fromkeys(self.roles) | {role: path}, {})
        values: dict[str, dict[str, list[str]]] = {}
        for name, occurrences in typed.items():
            action = self._option_string_actions.get(name)
            if action is None:
                raise ValueError(self._unknown(name))
            takes_list = action.nargs in ("*", "+")
            texts = occurrences if takes_list else [[word] for word in itertools.chain(*occurrences)] or [[]]
            values[name] = {
                " ".join(words): [name, *words] if takes_list else ["=".join([name, *words])] for words in texts
            }
        return values

    def to_save(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a configuration file may hold."""
        savable = {action.dest for action in self._actions if action.option_strings} - NOT_SAVED
        return {name: value for name, value in options.items() if name in savable}

    def chosen(self, role: str, options: Mapping[str, Any]) -> tuple[type[Any], dict[str, Any]]:
        """Return the class that was chosen for a role, and its options that were given."""
        known, name = self.roles[role], options[role]
        if name not in known.menu:
            near = difflib.get_close_matches(name, known.menu, n=1)
            hint = f"did you mean {near[0]}? Choose" if near else "choose"
            raise ValueError(
                f"there is no {role} {name!r}; {hint} from {', '.join(known.menu)}, or name a class of your own "
                "by its import path, such as package.module.Class"
            )
        part = known.menu[name]
        own = options_of(part, known.hidden)
        arguments = {}
        for key, value in options.items():
            option = key.removeprefix(role + ".")
            if option == key or value is None:
                continue
            if option not in own:
                owners = [name for name, part in known.menu.items() if option in options_of(part, known.hidden)]
                raise ValueError(f"{name} has no option --{key}, which is one of {', '.join(owners)}")
            arguments[option] = own[option].value(key, value if isinstance(value, list) else [value])
        return part, arguments

    def _import_parts(self, typed: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
        """Import the classes that are named by their import path, and add their options.

        Classes that a file or a run names are imported only from pyrovae and from packages that the user allows.
        """
        for role, known in self.roles.items():
            path = typed[role] or saved.get(role)
            if not isinstance(path, str) or "." not in path or path in known.menu:
                continue
            package = path.partition(".")[0]
            if typed[role] is None and package not in ("pyrovae", *typed["allow"]):
                raise ValueError(
                    f"the options that were read name --{role} {path}, but a file may import nothing from outside "
                    f"pyrovae; if you trust it, add --allow {package}"
                )
            part = import_part(role, path, known.base)
            known.menu[path] = part
            action = self._option_string_actions[f"--{role}"]
            action.help = f"{path}: {summary(part)}\n{action.help}"
            self._add_options(role, {path: part})

    def _check_values(self, options: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return the options of a file or a run, converted as argparse converts words.

        They never become words of a command line: a value that looks like an option is still a value.
        """
        savable = self.to_save(options)
        for name in options:
            if name not in savable:
                known = f"--{name}" in self._option_string_actions
                reason = f"--{name} is given on the command line only" if known else self._unknown("--" + name)
                raise ValueError(f"in {source}: {reason}")
        return {name: value if value is None else self._value(name, value, source) for name, value in options.items()}

    def _value(self, name: str, value: object, source: str) -> Any:
        """Return one value, converted and checked against the choices."""
        action = self._option_string_actions[f"--{name}"]
        if action.nargs == 0 and isinstance(value, bool):  # a switch
            return value
        words = value if isinstance(value, list) else [value]
        several, least, convert = action.nargs in ("+", "*"), action.nargs != "*", cast(Any, action.type or str)
        if action.nargs != 0 and all(isinstance(word, (str, int, float)) for word in words):
            with suppress(ValueError):
                values = [convert(str(word).lower() if isinstance(word, bool) else str(word)) for word in words]
                allowed = action.choices is None or set(values) <= set(action.choices)
                if allowed and len(values) >= least and (several or len(values) == 1):
                    return values if several else values[0]
        choices = ("true", "false") if action.nargs == 0 else action.choices
        takes = f"is one of {', '.join(choices)}" if choices else f"takes {action.metavar}{' ...' if several else ''}"
        raise ValueError(f"in {source}: --{name} {takes}, but received {value!r}")

    def _unknown(self, word: str) -> str:
        """Return the error for a word that is not an option, with the nearest options."""
        name = word.split("=")[0]
        if not name.startswith("-"):
            return f"unknown argument {word!r}; options start with --, see --help"
        known = list(self._option_string_actions)
        near = [option for option in known if option.partition(".")[2] == name[2:]]  # the name without its role
        near = near or difflib.get_close_matches(name, known, n=1)
        return f"unknown option {name}" + (f"; did you mean {' or '.join(near)}?" if near else "; --help lists them")


def _read_config(path: str) -> dict[str, Any]:
    """Return the options in a JSON file, or in the config.json of a run."""
    try:
        content = json.loads(Path(path).read_text())
        return dict(content.get("command", content))
    except OSError as error:
        raise ValueError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"the configuration {path} is not a JSON object; --print_config prints an example") from None


def _underscored(word: str) -> str:
    """Replace hyphens in the name of an option by underscores; leave other words alone."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


class _Formatter(argparse.HelpFormatter):
    """Help 100 columns wide, with the options in a column of their own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Wrap each line of a text by itself, continuation lines indented."""
        lines = [textwrap.wrap(line, width, subsequent_indent="  " * ("\n" in text)) for line in text.splitlines()]
        return [part for line in lines for part in line]
