"""Modules that a program refers to, and modules that run."""

from __future__ import annotations

import dis
import functools
import inspect
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Self

import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from pyrovae.programs.model_guide import Program


def find_modules(*programs: Program, given: Iterable[nn.Module] = ()) -> tuple[nn.Module, ...]:
    """Return the given modules, then the owners of programs, and modules they refer to by name or closure.

    Each is listed once, and modules inside others that were found are not listed again.
    """
    seen: set[int] = set()
    found = _outermost([module for program in programs for module in _referred(program, depth=5, seen=seen)])
    return tuple(dict.fromkeys((*given, *found)))


def is_stored(module: nn.Module) -> bool:
    """Return whether all tensors of a module are in Pyro's store, where ``pyro.module`` puts them."""
    stored = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    return all(id(tensor) in stored for tensor in (*module.parameters(), *module.buffers()))


class RunModules:
    """Record the modules that run inside the block, and keep them in evaluation mode until its end.

    Attributes:
        outputs: elements of each tensor that a module returned, until it is cleared.

    Args:
        device: to which modules are moved as they run; where they are if None.

    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.outputs: list[int] = []
        self._ran: list[nn.Module] = []
        self._modes: dict[nn.Module, bool] = {}

    def __enter__(self) -> Self:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", ".*when there are global hooks")  # of a compiled module
        self._hooks = register_module_forward_pre_hook(self._before), register_module_forward_hook(self._after)
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._warnings.__exit__(*error)
        for part, mode in self._modes.items():
            part.training = mode

    def beside(self, modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
        """Return the modules that ran and are not inside the given ones, nor inside each other."""
        known = {part for module in modules for part in module.modules()}
        return _outermost([module for module in self._ran if module not in known])

    def _before(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or module in self._modes:
            return  # a compiled module was recorded as a whole
        if self.device is not None:
            module.to(self.device)
        self._ran.append(module)
        modes = {part: part.training for part in module.modules()}  # before a compiled module passes its own on
        self._modes = modes | self._modes
        for part in modes:
            part.training = False

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            self.outputs.extend(value.numel() for value in outputs if isinstance(value, Tensor))


def _outermost(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """Return modules that are not inside others of them, each once."""
    modules = dict.fromkeys(modules)
    inner = {part for module in modules for part in module.modules() if part is not module}
    return tuple(module for module in modules if module not in inner)


def _referred(thing: object, *, depth: int, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules within a few references of an object, each once and in a fixed order."""
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
    """Return the references of an object: a function's names and defaults, a method's owner, a container's items."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if inspect.ismethod(thing):
        return [thing.__self__, thing.__func__]
    if inspect.isfunction(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
        names = [thing.__globals__[name] for name in _global_names(thing.__code__) if name in thing.__globals__]
        return [*cells, *names, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    if isinstance(thing, (dict, list, tuple)):
        return list(thing.values() if isinstance(thing, dict) else thing)
    call = [type(thing).__call__] if callable(thing) else []  # an object that is called as a program
    return [*getattr(thing, "__dict__", {}).values(), *call]


def _global_names(code: types.CodeType) -> list[str]:
    """Return the global names that a function and its inner functions read."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inside = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _global_names(part)]
    return [*names, *inside]
