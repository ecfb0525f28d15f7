"""Conformance checks of an encoder or a decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pyrovae.networks import Decoder, Encoder
from pyrovae.networks.base import Network
from pyrovae.testing.common_checks import BATCHES, check_description, check_gradients
from pyrovae.testing.stages import Stages, require

NUM_ROWS = 8
Inputs = tuple[Tensor, ...]


def encoder_checks(encoder: Encoder) -> Stages:
    """Return the checks of an encoder by name."""
    return _network_checks(encoder, encoder.x_shape)


def decoder_checks(decoder: Decoder) -> Stages:
    """Return the checks of a decoder by name."""
    shapes, others = _network_checks(decoder, (decoder.latent_dim,))
    return shapes, {**others, "start sets the output": lambda: _start(decoder)}


def _network_checks(network: Network, in_shape: tuple[int, ...]) -> Stages:
    inputs = partial(_inputs, network, in_shape)
    checks: dict[str, Callable[[], str]] = {
        "data points are independent in eval mode": lambda: _independent(network, inputs(NUM_ROWS)),
        "the output is deterministic in eval mode": lambda: _deterministic(network, inputs(NUM_ROWS)),
        "it runs in train mode": lambda: _train_mode(network, inputs(NUM_ROWS)),
        "gradients reach input and every parameter": lambda: _gradients(network, inputs(NUM_ROWS)),
        "the description builds the same part": lambda: _described(network, inputs(NUM_ROWS)),
    }
    return {"shapes under any batch axes": lambda: _shapes(network, inputs)}, checks


def _inputs(network: Network, in_shape: tuple[int, ...], *batch: int) -> Inputs:
    """Return an input ``(*batch, *in_shape)``, with covariates ``(*batch, C)`` if the network takes some."""
    x = torch.randn(*batch, *in_shape)
    return (x, torch.randn(*batch, network.covariate_dim)) if network.covariate_dim else (x,)


@torch.no_grad()
def _shapes(network: Network, inputs: Callable[..., Inputs]) -> str:
    for batch in BATCHES:
        shape, expected = tuple(network(*inputs(*batch)).shape), (*batch, *network.out_shape)
        require(shape == expected, f"the output has shape {shape} for batch axes {batch}, not {expected}")
    return ", ".join(str(batch) for batch in BATCHES)


@torch.no_grad()
def _independent(network: Network, inputs: Inputs) -> str:
    rows = torch.stack([network(*row) for row in zip(*inputs, strict=True)])
    off = (network(*inputs) - rows).abs().max().item()
    return require(off < 1e-8, f"the output of a data point changes by {off:.2g} with the others of its batch")


@torch.no_grad()
def _deterministic(network: Network, inputs: Inputs) -> str:
    off = (network(*inputs) - network(*inputs)).abs().max().item()
    return require(off == 0, f"two outputs of the same input differ by {off:.2g}")


@torch.no_grad()
def _train_mode(network: Network, inputs: Inputs) -> str:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        output = network.train()(*inputs)
    finally:
        network.eval().load_state_dict(state)
    require(tuple(output.shape) == (NUM_ROWS, *network.out_shape), f"the output has shape {tuple(output.shape)}")
    require(output.isfinite().all(), f"{int((~output.isfinite()).sum())} outputs are not finite")
    return "finite outputs"


def _gradients(network: Network, inputs: Inputs) -> str:
    x, *covariates = inputs
    x.requires_grad_()
    weights = torch.randn(NUM_ROWS, *network.out_shape)
    return check_gradients(network, lambda: weights * network(x, *covariates), x, name="the input")


def _described(network: Network, inputs: Inputs) -> str:
    return check_description(network, lambda part: part(*inputs))


@torch.no_grad()
def _start(decoder: Decoder) -> str:
    if decoder.output_layer() is None:
        return "no output layer is named"
    params, inputs = torch.randn(decoder.out_shape), _inputs(decoder, (decoder.latent_dim,), NUM_ROWS)
    before = decoder(*inputs)
    if not decoder.start(params):
        return "the bias of the output layer is trained, set or frozen"
    off = (decoder(*inputs) - before - params).abs().max().item()
    return require(off < 1e-8, f"start(params) moves the output by params only up to {off:.2g}")
