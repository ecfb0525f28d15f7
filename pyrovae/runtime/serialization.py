"""Parts to JSON and back: class name and constructor arguments."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from pyrovae.runtime.annotations import convert_arguments
from pyrovae.runtime.errors import first_line

Description = dict[str, Any]


class Described:
    """Base class of parts that a run folder can rebuild; it stores the arguments of the constructor.

    Subclasses need no code for it. A part that two others share, such as the encoder of a prior, is described once and
    built once. Tensors among the arguments are not stored, since weights and buffers are saved with the run. Such
    arguments must therefore be optional.
    """

    init_arguments: dict[str, Any]
    not_described: ClassVar[Collection[str]] = ()  # arguments that a description holds only by their defaults

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the constructor, once for each class that defines one, and check arguments by their annotations."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        init = cls.__init__
        signature = inspect.signature(init)
        own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]  # user classes are not checked

        @functools.wraps(init)
        def remembering(self: Described, *args: Any, **kwargs: Any) -> None:
            owner = type(self).__name__
            bound = convert_arguments(init, signature, (self, *args), kwargs, owner=owner, convert_values=own)
            init(*bound.args, **bound.kwargs)
            outermost = next(base for base in type(self).__mro__ if "__init__" in base.__dict__)
            if outermost is cls:
                self.init_arguments = {name: value for name, value in list(bound.arguments.items())[1:]}

        cls.__init__ = remembering  # type: ignore[method-assign, assignment]


def describe(part: object) -> Description:
    """Return a description in JSON types from which `build` makes the same part, in later versions too.

    It contains the defaults of arguments that were not given, as far as JSON can represent them.

    Args:
        part: of a model, or the model itself.

    Raises:
        TypeError: if an argument can be neither described nor omitted.

    """
    return _describe(part, "", {})


def _describe(part: object, path: str, seen: dict[int, str]) -> Description:
    """Describe the part at a path; a part that was described before is a reference to its first path."""
    if id(part) in seen:
        return {"same": seen[id(part)]}
    seen[id(part)] = path
    arguments = _defaults(type(part)) if isinstance(part, Described) else {}
    for name, value in getattr(part, "init_arguments", {}).items():
        if name in getattr(part, "not_described", ()):
            continue
        if isinstance(value, torch.Tensor):
            arguments.pop(name, None)
        else:
            arguments[name] = _to_json(value, f"{path}.{name}".lstrip("."), seen)
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", "arguments": arguments}


def _defaults(part_class: type[Described]) -> dict[str, object]:
    """Return the defaults of a constructor that JSON can represent, by argument."""
    defaults = {}
    for name, parameter in inspect.signature(part_class.__init__).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            with contextlib.suppress(TypeError, ValueError):  # for other types, and for infinity
                value = _to_json(parameter.default, name, {})
                json.dumps(value, allow_nan=False)
                defaults[name] = value
    return defaults


def _to_json(value: object, where: str, seen: dict[int, str]) -> object:
    if isinstance(value, Described):
        return _describe(value, where, seen)
    if isinstance(value, type):
        return {"type": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, (tuple, list, torch.Size)):
        return [_to_json(item, f"{where}.{index}", seen) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a run folder cannot describe; "
        "let the class derive from pyrovae.Described, or fit without a folder"
    )


def agree(saved: object, own: object) -> bool:
    """Return whether a description agrees with a saved one, which may come from an earlier version.

    Earlier versions wrote no defaults, and kept a class in another file of its package.
    """
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        return all(agree(value, own.get(name)) for name, value in saved.items())
    if isinstance(saved, list) and isinstance(own, list):
        return len(saved) == len(own) and all(map(agree, saved, own))
    if isinstance(saved, str) and isinstance(own, str) and own.startswith("pyrovae."):
        first, *_, last = own.split(".")
        return saved.startswith(f"{first}.") and saved.endswith(f".{last}")
    return saved == own


def build(description: Mapping[str, Any], *, allow: Collection[str] = ()) -> Any:
    """Make a part from its description by `describe`.

    Args:
        description: a class and its arguments.
        allow: names of packages beside ``pyrovae`` and ``torch`` that may be imported. A run folder is data: it must
            not run code that its reader did not choose.

    Raises:
        ValueError: if a class lies in a package that is not allowed, or does not exist, or a part cannot be made; the
            text names the part.

    """
    return _build(description, "", {}, (allow,) if isinstance(allow, str) else allow)


def _build(description: Mapping[str, Any], path: str, built: dict[str, Any], allow: Collection[str]) -> Any:
    part_class = _find(description["class"], allow)
    arguments = {
        name: _from_json(value, f"{path}.{name}".lstrip("."), built, allow)
        for name, value in description["arguments"].items()
        if name not in getattr(part_class, "not_described", ())
    }
    try:
        built[path] = part_class(**arguments)
    except Exception as error:  # constructors may raise anything
        reason = f"{path or 'the model'} cannot be made from its description ({first_line(error)})"
        raise ValueError(reason) from error
    return built[path]


def _from_json(value: object, where: str, built: dict[str, Any], allow: Collection[str]) -> object:
    if isinstance(value, Mapping):
        if "same" in value:
            return built[value["same"]]
        return _find(value["type"], allow) if "type" in value else _build(value, where, built, allow)
    if isinstance(value, list):
        return tuple(_from_json(item, f"{where}.{index}", built, allow) for index, item in enumerate(value))
    return value


def _find(path: str, allow: Collection[str]) -> type:
    """Import a class from an allowed package."""
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if not (package == "pyrovae" or package in allow or f"{module}.".startswith("torch.nn.modules.")):
        raise ValueError(
            f"this run was made with {path}, but a run folder may import only from pyrovae; "
            f"if you trust it, allow the package {package!r}: allow=[{package!r}], or --allow {package}"
        )
    part_class = _import(module, name)
    if part_class is None and package == "pyrovae":  # an earlier version kept the part in another file of its package
        part_class = _import(module.rpartition(".")[0], name)
    if part_class is None:
        raise ValueError(f"this run was made with {path}, which this version of pyrovae does not have")
    if not (isinstance(part_class, type) and issubclass(part_class, (Described, nn.Module))):
        raise ValueError(f"{path} is not a part of a model")
    return part_class


def _import(module: str, name: str) -> Any:
    """Return an attribute of a module, or None if there is none."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):  # ValueError for an empty name
        return None
