"""A device that is none: tensors that say they lie on torch's "meta" device, and have their values on the host.

The host's arithmetic is theirs, random numbers included, so that whatever runs there gives the numbers of the CPU. As
on a GPU, tensors of the host do not mix with them, but for single numbers; and where the host would wait for the
device, that is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyrovae.runtime import context

DEVICE = torch.device("meta")
aten = torch.ops.aten
CROSSING = (aten._to_copy.default, aten.copy_.default)  # the ways between host and device
ASKING = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default)


class There(Tensor):
    """A tensor on the device that is none."""

    here: Tensor

    @staticmethod
    def __new__(cls: type[There], here: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"There({self.here})"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch itself gives up at subclasses

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} is called outside the block in which the device exists")


class Accelerator(TorchDispatchMode):
    """Runs operations on tensors of the device.

    Attributes:
        asked: operations at which the host would have waited: a value is asked for, or tensors brought here or there.
        met: operations in which single numbers in tensors of the host met tensors of the device.

    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        among = any(isinstance(each, There) for each in given)
        to = kwargs.get("device")
        if not among and (to is None or torch.device(to) != DEVICE):
            return func(*args, **kwargs)
        if among and func not in CROSSING:
            self.met += [str(func) for each in given if not isinstance(each, There)]
            mixed = [tuple(each.shape) for each in given if each.ndim and not isinstance(each, There)]
            assert not mixed, f"{func} mixes tensors of the device with others, {mixed}"
        back = func is aten._to_copy.default and to is not None and torch.device(to) != DEVICE
        crosses = func in CROSSING and (back or any(each.ndim and not isinstance(each, There) for each in given))
        if crosses or func in ASKING:
            self.asked.append(str(func))
        if to is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if back:
            return result
        places = {id(each.here): each for each in given if isinstance(each, There)}  # what is written to is the same

        def there(value: Any) -> Any:
            return (
                value if not isinstance(value, Tensor) else places[id(value)] if id(value) in places else There(value)
            )

        return tree_map(there, result)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def move(module: nn.Module) -> None:
    """Bring the parameters and buffers of a module to the device, in the block in which it exists."""
    seen: dict[int, Tensor] = {}
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                found = seen.setdefault(id(value), nn.Parameter(There(value.detach().clone()), value.requires_grad))
                part._parameters[name] = found
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = seen.setdefault(id(value), There(value.detach().clone()))


@contextmanager
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    """Let the device exist inside the block, with the host's random stream for its own."""
    generator = torch.default_generator
    own = SimpleNamespace(
        get_rng_state=torch.get_rng_state, set_rng_state=torch.set_rng_state, manual_seed=generator.manual_seed
    )
    module_of, tensor_of = torch.get_device_module, torch.tensor

    def tensor(data: Any, **options: Any) -> Tensor:
        device = options.pop("device", None)
        if device is None or torch.device(device) != DEVICE:
            return tensor_of(data, device=device, **options)
        mode.asked.append("torch.tensor")
        return There(tensor_of(data, **options))  # which no mode sees

    with monkeypatch.context() as patched, Accelerator() as mode:
        patched.setattr(torch, "get_device_module", lambda device: own if device.type == "meta" else module_of(device))
        patched.setattr(context, "_where", lambda device: ())
        patched.setattr(torch, "tensor", tensor)
        yield mode
