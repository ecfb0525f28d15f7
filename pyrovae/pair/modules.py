"""The modules that a program is made of."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Iterator

from torch import Tensor, nn

from pyrovae.pair.structure import Program


def find_modules(*programs: Program) -> tuple[nn.Module, ...]:
    """Return the modules that programs are made of: their own object, or what they refer to by name or closure.

    Modules inside others are not listed again.
    """
    seen: set[int] = set()
    found = [module for program in programs for module in _referred(program, depth=5, seen=seen)]
    inner = {id(part) for module in found for part in module.modules() if part is not module}
    return tuple(module for module in found if id(module) not in inner)


def _referred(thing: object, *, depth: int, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules that are reached from an object in a few steps, each once and in a fixed order."""
    if id(thing) in seen or depth == 0 or isinstance(thing, (type, types.ModuleType, Tensor)):
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    step = 0 if isinstance(thing, functools.partial) or inspect.ismethod(thing) else 1
    for part in _parts(thing):
        yield from _referred(part, depth=depth - step, seen=seen)


def _parts(thing: object) -> list[object]:
    """Return what an object refers to: a function's names and defaults, a method's owner, a container's items."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if inspect.ismethod(thing):
        return [thing.__self__, thing.__func__]
    if inspect.isfunction(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
        names = [thing.__globals__[name] for name in _global_names(thing.__code__) if name in thing.__globals__]
        return [*cells, *names, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (list, tuple)):
        return list(thing)
    call = [type(thing).__call__] if callable(thing) else []  # an object that is called as a program
    return [*getattr(thing, "__dict__", {}).values(), *call]


def _global_names(code: types.CodeType) -> list[str]:
    """Return the global names that a function or one written inside it reads."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inside = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _global_names(part)]
    return [*names, *inside]
