"""Parameters and buffers of a model and guide, as they were when a step was made."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.programs.values import stored

logger = logging.getLogger("pyrovae")


class ProgramTensors:
    """Parameters and buffers of modules, and values of ``pyro.param``.

    Their values may change in place at any time. `check` rejects other parameters and modules under their names.

    Attributes:
        trained: tensors with a gradient, in a fixed order.
        all: these and all others, each once.

    Args:
        modules: modules of the programs.
        params: names of ``pyro.param`` values in Pyro's store.

    Raises:
        ValueError: if there is nothing to train.

    """

    def __init__(self, modules: Sequence[nn.Module], params: Iterable[str]) -> None:
        self.params = tuple(params)
        parameters: list[Tensor] = [parameter for module in modules for parameter in module.parameters()]
        parameters += stored(self.params).values()
        self.trained = list({id(value): value for value in parameters if value.requires_grad}.values())
        if not self.trained:
            raise ValueError(
                "there is nothing to train: neither the store nor the modules found have parameters; register the "
                "networks with pyro.module in the model or guide, or name them with modules=[...]"
            )
        buffers = [buffer for module in modules for buffer in module.buffers()]
        self.all = list({id(tensor): tensor for tensor in (*parameters, *buffers)}.values())
        self._frozen = [tensor for tensor in self.all if not tensor.requires_grad and tensor.is_floating_point()]
        self._parts = list({id(part): part for module in modules for part in module.modules()}.values())
        plain = [part for part in self._parts if not isinstance(part, torch.jit.ScriptModule)]  # others are fixed
        self._owners = [owner for part in plain for owner in (part._parameters, part._modules)]
        self._names = [(owner, name) for owner in self._owners for name in owner]
        self._buffers = [(part._buffers, name) for part in plain for name in part._buffers]
        self._bound = self._bindings()
        self._reported = False

    def _bindings(self) -> list[int]:
        bound = [owner.get(name) for owner, name in self._names]
        values = (*bound, *stored(self.params).values())
        return [len(owner) for owner in self._owners] + [id(value) for value in values]

    def check(self) -> Hashable:
        """Check that all names are bound to the parameters and modules of the start.

        Returns:
            Modes and buffers of the modules, and which parameters have a gradient: a trace is valid only for these.

        Raises:
            ValueError: if a parameter or module was replaced, added or removed, or a frozen one made trainable.

        """
        if self._bindings() != self._bound or any([tensor.requires_grad for tensor in self._frozen]):
            raise ValueError(
                "the parameters and modules of a step are fixed, but one was replaced, added or removed, or a frozen "
                "one was made trainable; change values in place, or capture the step again"
            )
        return (
            tuple([part.training for part in self._parts]),
            tuple([id(owner.get(name)) for owner, name in self._buffers]),
            tuple([tensor.requires_grad for tensor in self.trained]),
        )

    def report_untrained(self, loss: Tensor) -> None:
        """Log once, in one line, the tensors that a loss depends on and training does not change."""
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


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """Return the leaf tensors of the autograd graph of a loss."""
    leaves: list[Tensor] = []
    nodes: dict[Any, None] = {loss.grad_fn: None}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(leaf := getattr(node, "variable", None), Tensor):  # of an AccumulateGrad
            leaves.append(leaf)
        new = [parent for parent, _ in getattr(node, "next_functions", ()) if parent is not None]
        new = [parent for parent in new if parent not in nodes]
        nodes.update(dict.fromkeys(new))
        waiting += dict.fromkeys(new)
    return leaves
