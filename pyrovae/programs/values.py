"""Values of a program: parameters and buffers of its modules, and Pyro's stored parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyro
import safetensors.torch
import torch
from torch import Tensor, nn

from pyrovae.runtime.context import MODULE_DIVIDER
from pyrovae.runtime.errors import first_line

PARAM_PREFIX = "pyro.param/"  # begins the name of a value of Pyro's parameter store


def snapshot(modules: Sequence[nn.Module], params: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of all values by name: the names in the ``state_dict``, after a number if modules are several."""
    return {name: value.detach().clone() for name, value in _named(modules, params).items()}


@torch.no_grad()
def restore(modules: Sequence[nn.Module], params: Iterable[str], values: Mapping[str, Tensor]) -> None:
    """Copy the values of a `snapshot` back into place.

    Raises:
        ValueError: if they belong to other modules: names, shapes, dtypes or layouts differ.

    """
    named = _named(modules, params)
    for name in sorted(named.keys() ^ values.keys())[:1]:
        owner = "the run" if name in values else "the model"
        raise ValueError(f"the run belongs to another model: only {owner} has {name!r}")
    for name, value in values.items():
        saved, own = _describe(value), _describe(named[name])
        if saved != own:
            raise ValueError(f"the run belongs to another model: {name!r} is {saved} in the run and {own} in the model")
    for name, value in values.items():
        named[name].copy_(value)


def stored(params: Iterable[str]) -> dict[str, Tensor]:
    """Return the unconstrained values of the named ``pyro.param``.

    Raises:
        ValueError: if Pyro's store lacks one of them: only a ``pyro.param`` statement knows its constraint; or if one
            is of a module that was not found.

    """
    values = dict(pyro.get_param_store().named_parameters())
    for name in params:
        if name not in values and MODULE_DIVIDER in name:
            raise ValueError(
                f"the module of {name!r}, registered by pyro.module, cannot be found from the model and the guide; "
                "pass it with modules="
            )
        if name not in values:
            raise ValueError(
                f"Pyro's store has no value of pyro.param({name!r}); call the model and the guide once on some data, "
                "then load the weights or capture the step"
            )
    return {name: values[name] for name in params}


def _named(modules: Sequence[nn.Module], params: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors themselves by name; a tensor that modules share has one name, the shortest."""
    entries = [
        (key if len(modules) == 1 else f"{number}.{key}", value)
        for number, module in enumerate(modules)
        for key, value in module.state_dict(keep_vars=True).items()
    ]
    names: dict[int, str] = {}
    for name, value in sorted(entries, key=lambda entry: len(entry[0])):
        names.setdefault(id(value), name)
    owned = {name: value.detach() for name, value in entries if names[id(value)] == name}
    return owned | {PARAM_PREFIX + name: value for name, value in stored(params).items()}


def _describe(value: Tensor) -> str:
    """Return the shape and dtype of a tensor as text, and a layout from which values cannot be copied."""
    layout = "" if value.layout == torch.strided else f", {value.layout}"
    return f"{tuple(value.shape)} of {value.dtype}{layout}"


def to_bytes(values: Mapping[str, Tensor]) -> bytes:
    """Return values in the safetensors format."""
    return safetensors.torch.save({name: value.cpu().contiguous() for name, value in values.items()})


def from_bytes(content: bytes, source: str = "model.safetensors") -> dict[str, Tensor]:
    """Read values in the safetensors format.

    Raises:
        ValueError: if the content has another format; the text names the source.

    """
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # safetensors raises errors of several types
        raise ValueError(f"{source} must have the safetensors format ({first_line(error)}); train again") from None
