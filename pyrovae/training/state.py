"""Values that training changes: parameters and buffers of modules, Pyro's stored parameters, and optimizer state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pyrovae.runtime.errors import first_line

KERNEL_OPTIONS = ("capturable", "differentiable", "foreach", "fused")  # options that do not change the numbers
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


def from_bytes(content: bytes, source: str = "model.safetensors") -> dict[str, Tensor]:
    """Read values in the safetensors format.

    Raises:
        ValueError: if the content has another format; the text names the source.

    """
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # safetensors raises errors of several types
        raise ValueError(f"{source} must have the safetensors format ({first_line(error)}); train again") from None


def check_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state in tensors of the shape, dtype, layout and device that an optimizer makes itself.

    Fused kernels check none of these, and write outside the tensors if they differ. Options of the kernel, and options
    that the run lacks, are those of the optimizer.

    Args:
        optimizer: of the parameters; it is not changed.
        saved: its ``state_dict`` in the run.

    Raises:
        ValueError: if the state belongs to other parameters or another optimizer; the text names the entry.

    """
    own = optimizer.state_dict()["param_groups"]
    received, expected = ([group["params"] for group in groups] for groups in (saved["param_groups"], own))
    if received != expected:
        raise _mismatch("param_groups", f"must number the parameters {expected}", received)
    groups = [_options(*both) for both in zip(saved["param_groups"], own, strict=True)]
    states = {number: state for number, state in saved["state"].items() if state}  # without a gradient there is none
    after_a_step = _state_after_a_step(optimizer, groups)
    if after_a_step is not None:
        states = {number: _fitted(number, state, after_a_step.get(number, {})) for number, state in states.items()}
    return {"state": states, "param_groups": groups}


def _options(saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved options of a group of parameters."""
    options = dict(own)
    for name, value in saved.items():
        if name in own and name not in KERNEL_OPTIONS:
            options[name] = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            if isinstance(own[name], (int, float)) and not isinstance(options[name], (int, float)):
                raise _mismatch(f"param_groups[...][{name!r}]", "must be a number", tensor_type(value))
    return options


def _state_after_a_step(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> dict[int, Any] | None:
    """Return the state of a copy of an optimizer after one step with zero gradients.

    None for a custom optimizer that cannot be copied; its operations check shapes themselves.
    """
    try:
        trial = copy.deepcopy(optimizer)
        for group, options in zip(trial.param_groups, groups, strict=True):
            group.update({name: value for name, value in options.items() if name != "params"})
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        with warnings.catch_warnings(action="ignore"):  # of a step outside a CUDA graph
            trial.step()
    except Exception as error:  # a custom optimizer may raise anything
        if any(group.get("fused") for group in groups):
            raise _mismatch(
                "param_groups", "must hold options for a step of the optimizer", first_line(error)
            ) from None
        return None
    return trial.state_dict()["state"]


def _fitted(number: int, saved: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved state of a parameter, its tensors copied into those that the optimizer makes."""
    if saved.keys() != own.keys():
        raise _mismatch(f"state[{number}]", f"must have the entries {list(own)}", list(saved))
    fitted = dict(saved)
    for name, value in own.items():
        received = saved[name]
        if isinstance(value, Tensor) and value.dim() == 0 and isinstance(received, Tensor):
            received = received.to(value.dtype)  # a step count, whose dtype is torch's default
        if tensor_type(received) != tensor_type(value):
            raise _mismatch(f"state[{number}][{name!r}]", f"must be {tensor_type(value)}", tensor_type(received))
        if isinstance(value, Tensor):
            with torch.no_grad():
                fitted[name] = value.copy_(received)
    return fitted


def _mismatch(entry: str, rule: str, received: object) -> ValueError:
    return ValueError(
        f"trainer.pt does not fit the parameters and the optimizer: {entry} {rule}, but is {received}; restore it, "
        "resume with the model and optimizer of the run, or train again"
    )
