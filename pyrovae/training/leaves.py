"""The tensors that a pair reads and training moves, watched for being replaced by others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, is_
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.training.state import trainable

logger = logging.getLogger("pyrovae")

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Leaves:
    """Parameters and buffers of modules, and values of ``pyro.param``, as they are bound at present.

    Values may change in place at any time. `moved` tells when a name was bound to another tensor or module, a tensor
    frozen or thawed or laid out otherwise, or a module put into another mode or given another hook: then what was
    recorded no longer holds, and `refresh` takes note.

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
        self._reported = False
        self._read()

    def _read(self) -> None:
        self.version += 1
        self.trained = trainable(self.modules, self.params)
        parts = list({id(part): part for module in self.modules for part in module.modules()}.values())
        scripted = [part for part in parts if isinstance(part, torch.jit.ScriptModule)]  # nothing in them is replaced
        plain = [part for part in parts if not isinstance(part, torch.jit.ScriptModule)]
        owners = [owner for part in plain for owner in (part._parameters, part._buffers, part._modules)]
        self._names = [(owner, name) for owner in owners for name in owner]
        self._bound = [owner[name] for owner, name in self._names]
        tensors = [value for value in self._bound if isinstance(value, Tensor)]
        tensors += [value for part in scripted for value in (*part.parameters(), *part.buffers())]
        self._stored = self._of_store()
        self.all = list({id(tensor): tensor for tensor in (*tensors, *self._stored.values())}.values())
        hooks = [getattr(part, kind) for part in parts for kind in HOOKS]
        # functions in C, each over a list: this is looked at before every step
        self._traits: list[tuple[Callable[[Any], object], Sequence[object]]] = [
            (attrgetter("training"), parts),
            (len, owners),
            (tuple, hooks),  # their numbers
            (Tensor.stride, self.all),
            (attrgetter("requires_grad"), self.all),
            (attrgetter("_backward_hooks"), self.all),
        ]
        self._before = self._look()
        self.places = list(map(Tensor.data_ptr, self.all))

    def _of_store(self) -> dict[str, Tensor]:
        """Return the unconstrained values of the named ``pyro.param``."""
        if not self.params:
            return {}
        stored = dict(pyro.get_param_store().named_parameters())
        for name in self.params:
            if name not in stored:
                raise ValueError(
                    f"pyro.param({name!r}) is no longer in Pyro's store; leave it there, or make a new step"
                )
        return {name: stored[name] for name in self.params}

    def _look(self) -> list[list[object]]:
        """Return what changes a module's course without changing its tensors: modes, parts and hooks."""
        return [list(map(trait, owners)) for trait, owners in self._traits]

    def moved(self) -> bool:
        """Tell whether names are bound to others than at the last look, or modes differ."""
        return (
            not all(map(is_, [owner.get(name) for owner, name in self._names], self._bound))
            or self._look() != self._before
            or (bool(self._stored) and not all(map(is_, self._of_store().values(), self._stored.values())))
        )

    def report_untrained(self, loss: Tensor) -> None:
        """Name, once and in one line on the logger, tensors that a loss depends on and training does not move."""
        if self._reported:
            return
        self._reported, trained = True, {id(tensor) for tensor in self.trained}
        shapes = [str(tuple(leaf.shape)) for leaf in _leaves_of(loss) if id(leaf) not in trained]
        if shapes:
            logger.warning(
                "the loss depends on %d tensor%s that training does not move, of shape %s; register each with "
                "pyro.param, or its module with pyro.module, in the model or guide",
                len(shapes), "s" if len(shapes) > 1 else "", ", ".join(shapes),
            )  # fmt: skip

    def displaced(self) -> bool:
        """Tell whether a tensor lies elsewhere in memory than at the last look, which a CUDA graph has fixed."""
        return list(map(Tensor.data_ptr, self.all)) != self.places

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
            found, self.trained, self._before = self.trained, before, []  # to look again before the next step
            raise ValueError(
                f"training began with {len(before)} tensors, but now {len(found)} have a gradient, some of them "
                "new; make a new step, or replace parameters one for one"
            )
        new = {id(old): tensor for old, tensor in zip(before, self.trained, strict=True)}
        for group in optimizer.param_groups:
            group["params"] = [new.get(id(tensor), tensor) for tensor in group["params"]]
        for old, tensor in zip(before, self.trained, strict=True):
            state = optimizer.state.pop(old, None)
            if state and old.shape == tensor.shape:
                optimizer.state[tensor] = state


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """Return the leaf tensors that have a gradient of a loss, in the order in which backward finds them."""
    found: list[Tensor] = []
    nodes: dict[Any, None] = {loss.grad_fn: None}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(leaf := getattr(node, "variable", None), Tensor):  # of an AccumulateGrad
            found.append(leaf)
        new = [each for each, _ in getattr(node, "next_functions", ()) if each is not None and each not in nodes]
        nodes.update(dict.fromkeys(new))
        waiting += dict.fromkeys(new)
    return found


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
