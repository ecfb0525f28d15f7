"""The tensors that a pair reads and training moves, watched for being replaced by others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyro
import torch
from torch import Tensor, nn

from pyrovae.training.state import trainable


class Leaves:
    """Parameters and buffers of modules, and values of ``pyro.param``, as they are bound at present.

    Values may change in place at any time. `moved` tells when a name was bound to another tensor or module, a tensor
    frozen or thawed, or a module put into another mode: then what was recorded no longer holds, and `refresh` takes
    note.

    Attributes:
        trained: tensors that have a gradient, in a fixed order.
        all: those and every other, each once.
        version: how often they were looked up.

    Args:
        modules: of the pair.
        params: names of ``pyro.param`` values in Pyro's store.

    """

    def __init__(self, modules: Sequence[nn.Module], params: Iterable[str]) -> None:
        self.modules, self.params, self.version = tuple(modules), tuple(params), 0
        self._read()

    def _read(self) -> None:
        self.version += 1
        self.trained = trainable(self.modules, self.params)
        parts = list({id(part): part for module in self.modules for part in module.modules()}.values())
        held = [(owner, name) for part in parts for owner in (part._parameters, part._buffers) for name in owner]
        self._bound = [
            (owner, name, tensor, tensor.requires_grad) for owner, name in held if (tensor := owner[name]) is not None
        ]
        self._parts = [(part._modules, name, inner) for part in parts for name, inner in part._modules.items()]
        self._modes = [(part, _mode(part)) for part in parts]
        stored = self._store()
        for name in self.params:
            if name not in stored:
                raise ValueError(
                    f"pyro.param({name!r}) is no longer in Pyro's store; leave it there, or make a new step"
                )
        self._stored = {name: stored[name] for name in self.params}
        found = [tensor for _, _, tensor, _ in self._bound] + list(self._stored.values())
        self.all = list({id(tensor): tensor for tensor in found}.values())
        self.places = [tensor.data_ptr() for tensor in self.all]

    def _store(self) -> dict[str, Tensor]:
        return dict(pyro.get_param_store().named_parameters())

    def moved(self) -> bool:
        """Tell whether names are bound to others than at the last look, or modes differ."""
        return (
            any(owner.get(name) is not t or t.requires_grad is not needs for owner, name, t, needs in self._bound)
            or any(owner.get(name) is not part for owner, name, part in self._parts)
            or any(_mode(part) != mode for part, mode in self._modes)
            or (bool(self._stored) and any(self._store().get(n) is not t for n, t in self._stored.items()))
        )

    def displaced(self) -> bool:
        """Tell whether a tensor lies elsewhere in memory than at the last look, which a CUDA graph has fixed."""
        return any(tensor.data_ptr() != place for tensor, place in zip(self.all, self.places, strict=True))

    def refresh(self, optimizer: torch.optim.Optimizer) -> None:
        """Look again, and let the optimizer move the new tensors in place of the old, with their state if they fit.

        Raises:
            ValueError: if there are more or fewer tensors to train than before.

        """
        before = self.trained
        self._read()
        kept = {id(tensor) for tensor in self.trained}
        for tensor in before:
            if id(tensor) not in kept:
                tensor.grad = None  # or the optimizer would go on along the last one
        held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
        if all(id(tensor) in held for tensor in self.trained):
            return  # some frozen or thawed
        if len(before) != len(self.trained):
            raise ValueError(
                f"training began with {len(before)} tensors, but now {len(self.trained)} have a gradient, some of them "
                "new; make a new step, or replace parameters one for one"
            )
        new = {id(old): tensor for old, tensor in zip(before, self.trained, strict=True)}
        for group in optimizer.param_groups:
            group["params"] = [new.get(id(tensor), tensor) for tensor in group["params"]]
        for old, tensor in zip(before, self.trained, strict=True):
            state = optimizer.state.pop(old, None)
            if state and old.shape == tensor.shape:
                optimizer.state[tensor] = state


def _mode(module: nn.Module) -> tuple[bool, int, int, int]:
    """Return what changes a module's course without changing its tensors: its mode, parts and hooks."""
    return module.training, len(module._modules), len(module._forward_hooks), len(module._forward_pre_hooks)


def require_leaves(modules: Sequence[nn.Module], params: Iterable[str]) -> Leaves:
    """Return the leaves of a pair.

    Raises:
        ValueError: if there is nothing to train.

    """
    leaves = Leaves(modules, params)
    if not leaves.trained:
        raise ValueError(
            "there is nothing to train: neither the store nor the modules found have parameters; register the "
            "networks with pyro.module in the model or guide, or name them with modules=[...]"
        )
    return leaves
