"""Context managers that restore random streams, switches, module modes and the parameter store.

Training and evaluation run inside them, and change nothing else in the caller's process than the requested values.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

logger = logging.getLogger("pyrovae")

MODULE_DIVIDER = "$$$"  # between the names of module and parameter in the store of pyro.module


def stream_seed(*numbers: int | str) -> int:
    """Return one seed for a stream named by several numbers or words, the same in every process.

    Args:
        numbers: for instance ``(seed, epoch)`` or ``(seed, "generate")``.

    """
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


@contextmanager
def forked_random(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's default streams inside the block, and restore the caller's streams afterwards.

    Args:
        seed: of the streams inside the block.
        device: the accelerator whose stream is forked beside the CPU's.

    """
    before, device = random_state(device), torch.device(device)
    try:
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            with torch.cuda.device(device) if _where(device) else nullcontext():
                torch.get_device_module(device).manual_seed(seed)
        yield
    finally:
        set_random_state(before, device)


def random_state(device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Return the states of torch's default streams: of the CPU, then of an accelerator."""
    device = torch.device(device)
    if device.type == "cpu":
        return (torch.get_rng_state(),)
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_where(device))


def set_random_state(states: tuple[Tensor, ...], device: torch.device | str = "cpu") -> None:
    """Set torch's default streams to the states that `random_state` returned for a device."""
    device = torch.device(device)
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, *_where(device))


def _where(device: torch.device) -> tuple[torch.device, ...]:
    """Return the device arguments of an accelerator's random streams."""
    return (device,) if device.type == "cuda" else ()


@contextmanager
def validation(*, enabled: bool) -> Iterator[None]:
    """Switch the argument and value checks of Pyro and of torch's distributions on or off inside the block."""
    before = torch.distributions.Distribution._validate_args  # torch has no public reader
    try:
        with pyro.validation_enabled(enabled):
            yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextmanager
def module_mode(modules: Iterable[nn.Module], *, training: bool) -> Iterator[None]:
    """Put modules in training or evaluation mode inside the block, and every submodule back in the mode it had."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for part in modes:
            part.training = training
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def is_expanded(tensor: Tensor) -> bool:
    """Return whether elements of a tensor share memory, so that torch cannot write to it."""
    return any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@contextmanager
def values_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values of tensors that a run may write to, such as running statistics.

    These are the tensors without a gradient, except expanded ones. Batch normalization does not change their versions.
    """
    written = [(tensor, tensor.clone()) for tensor in tensors if not (tensor.requires_grad or is_expanded(tensor))]
    try:
        yield
    finally:
        for tensor, value in written:
            tensor.copy_(value)


@contextmanager
def frozen_unremarked() -> Iterator[None]:
    """Silence the warning of ``pyro.module`` about frozen parameters inside the block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was not registered in the param store because requires_grad=False")
        yield


_of_thread = threading.local()


@contextmanager
def modules_known() -> Iterator[None]:
    """Skip registrations by `register_module` inside the block, whose caller has found the parameters of all modules.

    ``pyro.module`` takes a tenth of an eager step of a small minibatch.
    """
    before = getattr(_of_thread, "modules_known", False)
    _of_thread.modules_known = True
    try:
        yield
    finally:
        _of_thread.modules_known = before


def register_module(name: str, module: nn.Module) -> None:
    """Register a module by ``pyro.module``, unless its parameters are known."""
    if not getattr(_of_thread, "modules_known", False):
        pyro.module(name, module)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 matrix products and convolutions in full precision inside the block.

    TF32, the default of cuDNN, changes a log-likelihood by 0.016 nats, and autocast by a nat. torch has older and newer
    switches, and raises an error if the older are read after the newer were set.
    """
    backends: Any = torch.backends
    older: Iterable[tuple[Callable[[], Any], Callable[[Any], None], Any]] = (
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (lambda: backends.cudnn.allow_tf32, lambda allowed: setattr(backends.cudnn, "allow_tf32", allowed), False),
    )
    cpu, cudnn = backends.mkldnn, backends.cudnn
    newer: Iterable[Any] = (backends.cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn)
    with ExitStack() as put_back:  # the older ones first, which write to the newer
        for part in newer:
            put_back.callback(setattr, part, "fp32_precision", part.fp32_precision)
        for read, write, exact in older:
            with suppress(RuntimeError):
                put_back.callback(write, read())
                write(exact)
        for part in newer:
            part.fp32_precision = "ieee"
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                put_back.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def own_store(modules: Iterable[nn.Module] = (), *, keep: Iterable[str] = ()) -> Iterator[None]:
    """Use a copy of Pyro's parameter store inside the block, and restore the caller's store afterwards.

    The copy has the values of ``pyro.param``, but no parameters of ``pyro.module`` or a `PyroModule`: they live in
    their modules, and a second module of the same name would otherwise get the tensors of the first.

    Args:
        modules: modules used inside the block.
        keep: names of ``pyro.param`` values that are written to the caller's store too; read at the end.

    """
    store = pyro.get_param_store()
    state = store.get_state()
    claimed = {name for module in modules for name in _names_in_store(module)}
    kept: Any = {"params": {}, "constraints": {}}
    try:
        with store.scope(_without_modules(state, [name for name in state["params"] if name not in claimed])):
            try:
                yield
            finally:
                kept = _without_modules(store.get_state(), keep)
    finally:
        store.set_state(kept)


def _without_modules(state: Any, names: Iterable[str]) -> Any:
    """Return the named values of a store's state, without parameters of ``pyro.module``."""
    names = [name for name in names if name in state["params"] and MODULE_DIVIDER not in name]
    return {kind: {name: state[kind][name] for name in names} for kind in ("params", "constraints")}


def _names_in_store(module: nn.Module) -> Iterator[str]:
    """Yield the names under which a `PyroModule` registers its parameters when it is called."""
    if isinstance(module, PyroModule):
        prefix = f"{module._pyro_name}." if module._pyro_name else ""
        for name, _ in module.named_parameters():
            yield prefix + name.removesuffix("_unconstrained")
