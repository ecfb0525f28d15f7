"""Running statistics of batch normalization, estimated with the weights that validation and evaluation use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyrovae.runtime.context import module_mode

STATISTICS_DATA = 2048  # training data from which statistics are estimated


def normalizations(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """Return the layers of batch normalization that update running statistics; a momentum of 0.0 freezes them."""
    layers = [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]
    return [layer for layer in layers if layer.num_batches_tracked is not None and layer.momentum != 0.0]


@contextmanager
def averaging(modules: Iterable[nn.Module], layers: Iterable[Any]) -> Iterator[None]:
    """Set the running statistics of layers to their averages over the minibatches that run inside the block.

    The moving average that torch keeps during training is over minibatches seen by earlier weights. After few or large
    steps it describes no network, and the validation ELBO can be off by millions of nats. All other modules are in
    evaluation mode inside the block. Layers that do not run keep their statistics.

    *Rethinking "batch" in BatchNorm (Wu, Johnson 2021)*, https://arxiv.org/abs/2105.07576, section 3
    """
    before = [(layer, layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]
    try:
        with module_mode(modules, training=False):
            for layer, *_ in before:
                layer.training = True
                layer.momentum = None  # torch then averages all minibatches since the count was zero
                layer.num_batches_tracked.zero_()
            yield
    finally:
        for layer, momentum, count in before:
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)
