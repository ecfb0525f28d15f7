"""Parts to JSON and back: a class name and the arguments it was made with."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

Description = dict[str, Any]


class Described:
    """Base of everything that a run folder must be able to rebuild: it remembers the arguments of its constructor.

    Subclasses need not do anything. A part that is handed to two others, such as an encoder that a prior shares, is
    described once and built once. Tensors among the arguments are not remembered, since weights and buffers are
    saved with the run; such an argument must therefore be optional.
    """

    init_arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the constructor, once for each class that defines one."""
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        init = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def remembering(self: Described, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            init(self, *args, **kwargs)
            outermost = next(base for base in type(self).__mro__ if "__init__" in base.__dict__)
            if outermost is cls:
                self.init_arguments = {name: value for name, value in list(bound.arguments.items())[1:]}

        cls.__init__ = remembering  # type: ignore[method-assign, assignment]


def describe(part: object, *, complete: bool = True) -> Description:
    """Return the JSON-able description from which `build` makes the same part, in later versions too.

    Args:
        part: of a model, or the model itself.
        complete: whether arguments that were not given are part of it, with the defaults of this version, as far as
            JSON holds them. Earlier versions wrote none.

    Raises:
        TypeError: if an argument can be neither described nor left out.

    """
    return _describe(part, "", {}, complete=complete)


_LEFT_OUT = object()


def _describe(part: object, path: str, seen: dict[int, str], *, complete: bool) -> Description:
    """Describe a part that lies at a path; one that was seen before at another is the same one again."""
    if id(part) in seen:
        return {"same": seen[id(part)]}
    seen[id(part)] = path
    arguments = getattr(part, "init_arguments", {})
    kept = {
        name: _to_json(value, f"{path}.{name}".lstrip("."), seen, complete=complete)
        for name, value in arguments.items()
    }
    if complete and isinstance(part, Described):
        kept = _defaults(type(part)) | kept
    return {
        "class": f"{type(part).__module__}.{type(part).__qualname__}",
        "arguments": {name: value for name, value in kept.items() if value is not _LEFT_OUT},
    }


def _defaults(part_class: type[Described]) -> dict[str, object]:
    """Return the defaults of a constructor that JSON holds, by argument."""
    found = {}
    for name, parameter in inspect.signature(part_class.__init__).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            with contextlib.suppress(TypeError, ValueError):  # raised for other kinds, and for infinity
                value = _to_json(parameter.default, name, {}, complete=True)
                json.dumps(value, allow_nan=False)
                found[name] = value
    return found


def _to_json(value: object, where: str, seen: dict[int, str], *, complete: bool) -> object:
    if isinstance(value, torch.Tensor):
        return _LEFT_OUT
    if isinstance(value, Described):
        return _describe(value, where, seen, complete=complete)
    if isinstance(value, type):
        return {"type": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, (tuple, list, torch.Size)):
        return [_to_json(item, f"{where}.{index}", seen, complete=complete) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}, which a run folder cannot describe; "
        "let the class derive from pyrovae.Described, or fit without a folder"
    )


def build(description: Mapping[str, Any], *, allow: Collection[str] = ()) -> Any:
    """Make the part that `describe` described.

    Args:
        description: a class and its arguments.
        allow: names of packages beside ``pyrovae`` and ``torch`` that may be imported. A run folder is data: it must
            not be able to run code that its reader did not choose.

    Raises:
        ValueError: if the class lies in a package that is not allowed, or does not exist.

    """
    return _build(description, "", {}, allow)


def _build(description: Mapping[str, Any], path: str, built: dict[str, Any], allow: Collection[str]) -> Any:
    part_class = _find(description["class"], allow)
    arguments = {
        name: _from_json(value, f"{path}.{name}".lstrip("."), built, allow)
        for name, value in description["arguments"].items()
    }
    built[path] = part_class(**arguments)
    return built[path]


def _from_json(value: object, where: str, built: dict[str, Any], allow: Collection[str]) -> object:
    if isinstance(value, Mapping):
        if "same" in value:
            if value["same"] not in built:
                raise ValueError(f"{where} is said to be the same part as {value['same']!r}, which is not described")
            return built[value["same"]]
        return _find(value["type"], allow) if "type" in value else _build(value, where, built, allow)
    if isinstance(value, list):
        return tuple(_from_json(item, f"{where}.{index}", built, allow) for index, item in enumerate(value))
    return value


def _find(path: str, allow: Collection[str]) -> type:
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    inside = package == "pyrovae" or package in allow or module.startswith("torch.nn.modules")
    if not inside:
        raise ValueError(
            f"this run was made with {path}, and a run folder imports nothing from outside pyrovae by itself; "
            f"if you trust it, allow the package {package!r}: allow=[{package!r}], or --allow {package}"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ValueError(f"this run was made with {path}, which this version of pyrovae does not have") from None
    if not (isinstance(found, type) and issubclass(found, (Described, nn.Module))):
        raise ValueError(f"{path} is not a part of a model")
    return found
