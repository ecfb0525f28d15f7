"""Conformance checks of an encoder or a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.networks import Decoder, Encoder
from pyrovae.testing.common_checks import BATCHES, Stages, check_description, check_gradients, require, require_shape

NUM_ROWS = 8


class NetworkChecks:
    """Checks of a network, in float64 and eval mode."""

    def __init__(self, network: Encoder | Decoder) -> None:
        self.network = network
        self.in_shape = network.x_shape if isinstance(network, Encoder) else (network.latent_dim,)

    def stages(self) -> Stages:
        """Return the checks by name."""
        checks = {
            "data points are independent in eval mode": self.independent,
            "the output is deterministic in eval mode": self.deterministic,
            "it runs in train mode": self.train_mode,
            "gradients reach input and every parameter": self.gradients,
            "the description builds the same part": self.described,
        }
        if isinstance(self.network, Decoder):
            checks["start sets the output"] = self.start
        return {"shapes under any batch axes": self.shapes}, checks

    def inputs(self, *batch: int) -> tuple[Tensor, ...]:
        """Return an input ``(*batch, *in_shape)``, with covariates ``(*batch, C)`` if the network takes some."""
        x = torch.randn(*batch, *self.in_shape)
        return (x, torch.randn(*batch, self.network.covariate_dim)) if self.network.covariate_dim else (x,)

    @torch.no_grad()
    def shapes(self) -> str:
        """Check the shape of the output."""
        for batch in BATCHES:
            output = self.network(*self.inputs(*batch))
            require_shape("the output", output.shape, (*batch, *self.network.out_shape), batch)
        return ", ".join(map(str, BATCHES))

    @torch.no_grad()
    def independent(self) -> str:
        """Check that the output of a data point does not depend on the other data points."""
        inputs = self.inputs(NUM_ROWS)
        rows = torch.stack([self.network(*row) for row in zip(*inputs, strict=True)])
        off = (self.network(*inputs) - rows).abs().max().item()
        return require(off < 1e-8, f"the output of a data point changes by {off:.2g} with the others of its batch")

    @torch.no_grad()
    def deterministic(self) -> str:
        """Check that two outputs of the same input are equal."""
        inputs = self.inputs(NUM_ROWS)
        off = (self.network(*inputs) - self.network(*inputs)).abs().max().item()
        return require(off == 0, f"two outputs of the same input differ by {off:.2g}")

    @torch.no_grad()
    def train_mode(self) -> str:
        """Check that the output is finite in train mode."""
        state = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            output = self.network.train()(*self.inputs(NUM_ROWS))
        finally:
            self.network.eval().load_state_dict(state)
        require_shape("the output", output.shape, (NUM_ROWS, *self.network.out_shape), (NUM_ROWS,))
        require(output.isfinite().all(), f"{int((~output.isfinite()).sum())} outputs are not finite")
        return "finite outputs"

    def gradients(self) -> str:
        """Check the gradients of the output."""
        x, *covariates = self.inputs(NUM_ROWS)
        x.requires_grad_()
        weights = torch.randn(NUM_ROWS, *self.network.out_shape)
        return check_gradients(self.network, lambda: weights * self.network(x, *covariates), x, name="the input")

    def described(self) -> str:
        """Check that the description of the network builds the same network."""
        inputs = self.inputs(NUM_ROWS)
        return check_description(self.network, lambda part: part(*inputs))

    @torch.no_grad()
    def start(self) -> str:
        """Check that `Decoder.start` moves the output by its parameters."""
        decoder = self.network
        assert isinstance(decoder, Decoder)
        if decoder.output_layer() is None:
            return "no output layer is named"
        params, inputs = torch.randn(decoder.out_shape), self.inputs(NUM_ROWS)
        before = decoder(*inputs)
        if not decoder.start(params):
            return "the bias of the output layer is trained, set or frozen"
        off = (decoder(*inputs) - before - params).abs().max().item()
        return require(off < 1e-8, f"start(params) moves the output by params only up to {off:.2g}")
