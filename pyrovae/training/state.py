"""The values that training moves: parameters and buffers of modules, and Pyro's stored parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import safetensors.torch
import torch
from torch import Tensor, nn

from pyrovae.sandbox import stored_params

PARAM_PREFIX = "pyro.param/"


def trainable(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return every parameter of the modules and of Pyro's store once, unconstrained, in a fixed order."""
    found = [p for module in modules for p in module.parameters()]
    found += [value for _, value in pyro.get_param_store().named_parameters()]
    unique = {id(value): value for value in found if value.requires_grad}
    return list(unique.values())


def snapshot(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Return copies of all values by name: of one module as in its ``state_dict``, of several with their number."""
    return {name: value.detach().clone() for name, value in _named(modules).items()}


@torch.no_grad()
def restore(modules: Sequence[nn.Module], values: Mapping[str, Tensor]) -> None:
    """Put the values of a `snapshot` back in place.

    Raises:
        ValueError: if they belong to other modules: names or shapes differ.

    """
    named = _named(modules)
    for name in sorted(named.keys() ^ values.keys())[:1]:
        where = "the run" if name in values else "the model"
        raise ValueError(f"the run belongs to another model: only {where} has {name!r}")
    for name, value in values.items():
        if named[name].shape != value.shape:
            raise ValueError(
                f"the run belongs to another model: {name!r} is {tuple(value.shape)} in the run and "
                f"{tuple(named[name].shape)} in the model"
            )
        named[name].copy_(value)


def _named(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Return the tensors themselves by name."""
    owned = {
        (key if len(modules) == 1 else f"{number}.{key}"): value
        for number, module in enumerate(modules)
        for key, value in module.state_dict().items()
    }
    return owned | {PARAM_PREFIX + name: value for name, value in stored_params(modules).items()}


def to_bytes(values: Mapping[str, Tensor]) -> bytes:
    """Return values in the safetensors format."""
    return safetensors.torch.save({name: value.cpu().contiguous() for name, value in values.items()})


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """Read what `to_bytes` wrote."""
    return safetensors.torch.load(content)
