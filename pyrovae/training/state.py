"""Values that training changes: parameters and buffers of modules, and Pyro's stored parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyro
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

PARAM_PREFIX = "pyro.param/"  # begins the name of a value of Pyro's parameter store


def trainable(modules: Sequence[nn.Module], params: Iterable[str]) -> list[Tensor]:
    """Return the parameters of modules, and the named ones of Pyro's store, unconstrained, in a fixed order."""
    parameters = [p for module in modules for p in module.parameters()] + list(_stored(params).values())
    return list({id(value): value for value in parameters if value.requires_grad}.values())


def snapshot(modules: Sequence[nn.Module], params: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of all values by name: the names in the ``state_dict``, after a number if modules are several."""
    return {name: value.detach().clone() for name, value in _named(modules, params).items()}


@torch.no_grad()
def restore(modules: Sequence[nn.Module], params: Iterable[str], values: Mapping[str, Tensor]) -> None:
    """Copy the values of a `snapshot` back into place.

    Raises:
        ValueError: if they belong to other modules, as in `require_same`.

    """
    require_same(modules, params, values)
    named = _named(modules, params)
    for name, value in values.items():
        named[name].copy_(value)


def require_same(modules: Sequence[nn.Module], params: Iterable[str], values: Mapping[str, Tensor]) -> None:
    """Require values to belong to these modules.

    Raises:
        ValueError: if names, shapes, dtypes or layouts differ.

    """
    named = _named(modules, params)
    for name in sorted(named.keys() ^ values.keys())[:1]:
        owner = "the run" if name in values else "the model"
        raise ValueError(f"the run belongs to another model: only {owner} has {name!r}")
    for name, value in values.items():
        saved, own = tensor_type(value), tensor_type(named[name])
        if saved != own:
            raise ValueError(f"the run belongs to another model: {name!r} is {saved} in the run and {own} in the model")


def tensor_type(value: object) -> str:
    """Return the shape and dtype of a tensor as text, and a layout or device from which values cannot be copied."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    is_empty = value.is_meta and type(value) is Tensor  # a subclass may hold its values elsewhere
    unusual = f", {value.layout}" if value.layout != torch.strided else ", without values" if is_empty else ""
    return f"{tuple(value.shape)} of {value.dtype}{unusual}"


def params_of(values: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the ``pyro.param`` values in a `snapshot`.

    Raises:
        ValueError: if Pyro's store lacks one of them: only a ``pyro.param`` statement knows its constraint.

    """
    names = [name.removeprefix(PARAM_PREFIX) for name in values if name.startswith(PARAM_PREFIX)]
    for name in names:
        if name not in pyro.get_param_store():
            raise ValueError(
                f"the run has a value for pyro.param({name!r}), which Pyro's store does not know yet; call the model "
                "and the guide once on some data, then load the weights"
            )
    return names


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
    return owned | {PARAM_PREFIX + name: value for name, value in _stored(params).items()}


def _stored(params: Iterable[str]) -> dict[str, Tensor]:
    """Return the unconstrained values of the named ``pyro.param``."""
    stored = dict(pyro.get_param_store().named_parameters())
    return {name: stored[name] for name in params}


def to_bytes(values: Mapping[str, Tensor]) -> bytes:
    """Return values in the safetensors format."""
    return safetensors.torch.save({name: value.cpu().contiguous() for name, value in values.items()})


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """Read values in the safetensors format.

    Raises:
        ValueError: if the content has another format.

    """
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights must be in the safetensors format ({error}); train again") from None
