"""Base classes of encoders and decoders, and how to write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyrovae.networks.layers import output_bias, set_output
from pyrovae.runtime.annotations import NonNegativeInt, PositiveInt, Shape
from pyrovae.runtime.serialization import Described


class Network(Described, nn.Module, ABC):
    """Base of encoders and decoders: checks of shapes and dtypes, batch axes, and covariates.

    Attributes:
        out_shape: shape of the output for one datum.
        covariate_dim: C, number of covariates of one datum.

    """

    _role: ClassVar[str]
    _input: ClassVar[str]

    def __init__(self, out_shape: Shape, covariate_dim: NonNegativeInt) -> None:
        super().__init__()
        self.out_shape, self.covariate_dim = out_shape, covariate_dim

    @abstractmethod
    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map the input of N data, and their covariates ``(N, covariate_dim)`` if any, to ``(N, *out_shape)``."""

    def _run_folded(self, x: Tensor, event_dim: int, covariates: tuple[Tensor, ...]) -> Tensor:
        """Check dtypes and covariates, and run the network on input with any batch axes."""
        if self.covariate_dim or covariates:
            self._check_dtype(x)  # concatenation would promote the narrower dtype
            self._check_covariates(covariates, x.shape[: x.ndim - event_dim])

        def run(rows: Tensor, *others: Tensor) -> Tensor:
            return self.run(rows, torch.cat(others, -1) if others else None)

        try:
            return fold(run, (x, *covariates), (event_dim, *(1 for _ in covariates)))
        except RuntimeError as error:
            if "type" in str(error):  # torch's layers raise it for input of another dtype
                self._check_dtype(x)
            raise

    def _check_dtype(self, x: Tensor) -> None:
        """Raise a ValueError if input and parameters have different dtypes."""
        weight = next(self.parameters(), x)
        if x.dtype != weight.dtype:
            raise ValueError(
                f"{self._input} and {self._role} have one dtype, but the {self._input} are {x.dtype} and the "
                f"{self._role} {weight.dtype}; convert one of them, for instance the model by .to({x.dtype})"
            )

    def _check_covariates(self, covariates: tuple[Tensor, ...], batch: torch.Size) -> None:
        """Raise a ValueError if covariates are missing or unexpected, or have the wrong dtype or shape."""
        received = ", ".join(f"{tuple(c.shape)} of {c.dtype}" for c in covariates) or "none"
        if not self.covariate_dim:
            raise ValueError(
                f"the {self._role} takes no covariates, but received tensors beside the {self._input}; leave "
                "out labels that are not meant, or build it with covariate_dim=, the sum of the covariates' last axes"
            )
        dtype = next((weight.dtype for weight in self.parameters()), torch.get_default_dtype())
        valid = all(c.ndim and c.dtype == dtype for c in covariates)
        valid = valid and sum(c.shape[-1] for c in covariates) == self.covariate_dim
        try:
            torch.broadcast_shapes(batch, *(c.shape[:-1] for c in covariates))
        except RuntimeError:
            valid = False
        if not valid:
            raise ValueError(
                f"the {self._role} takes covariates of {dtype} whose last axes sum to {self.covariate_dim} and whose "
                f"other axes broadcast to {tuple(batch)}, those of the {self._input}, but received {received}; give "
                "them beside the data, or to a data set by data.with_covariates(...), and labels as "
                f"torch.nn.functional.one_hot(labels).to({dtype}), with covariate_dim= the number of classes"
            )


class Encoder(Network):
    """A network from a datum to the parameters of its posterior.

    To write your own, copy `MLPEncoder` (the shortest): construct the layers, and map N data to N outputs in `run`; the
    base class checks shapes and handles batch axes and covariates. Any other ``torch.nn.Module`` with the same input
    and output works too.

    Args:
        x_shape: shape of one datum.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: C, number of covariates of a datum.

    Raises:
        ValueError: if the number is negative; in a call, if data or covariates have another shape or dtype.

    """

    _role, _input = "encoder", "data"

    def __init__(self, x_shape: Shape, out_shape: Shape, *, covariate_dim: NonNegativeInt = 0) -> None:
        super().__init__(out_shape, covariate_dim)
        self.x_shape = x_shape

    def forward(self, x: Tensor, *covariates: Tensor) -> Tensor:
        """Map ``(*batch, *x_shape)`` and covariates, whose last axes sum to C, to ``(*batch, *out_shape)``."""
        if tuple(x.shape[-len(self.x_shape) :]) != self.x_shape:
            raise ValueError(
                f"the encoder takes data of shape (*batch, {', '.join(map(str, self.x_shape))}), but received "
                f"{tuple(x.shape)}; build it with x_shape=data.x_shape"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"the encoder takes floating-point data, but received {x.dtype}; give x.float(), or for bytes "
                "pyrovae.data.load(x), which transforms them batch by batch"
            )
        return self._run_folded(x, len(self.x_shape), covariates)


class Decoder(Network):
    """A network from a latent variable to the parameters of the likelihood.

    To write your own, copy `MLPDecoder` (the shortest); see `Encoder`. If `output_layer` returns the last layer, `fit`
    starts the output at the average datum.

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: shape of the output for one datum, ``likelihood.param_shape``.
        covariate_dim: C, number of covariates.

    Raises:
        ValueError: if a number is too small; in a call, if z or covariates have another shape, or a dtype
            differs.

    """

    _role, _input = "decoder", "latent variables"
    not_described = ("initial_params",)  # an argument of earlier versions

    def __init__(self, latent_dim: PositiveInt, out_shape: Shape, *, covariate_dim: NonNegativeInt = 0) -> None:
        super().__init__(out_shape, covariate_dim)
        self.latent_dim = latent_dim

    def output_layer(self) -> nn.Module | None:
        """Return the last layer, whose bias has a value for each element of ``out_shape``; None if there is none."""
        return None

    def start(self, params: Tensor) -> bool:
        """Set the bias of the last layer if it `is_untouched`, and return whether it was.

        `fit` does so. The bias is the output at z = 0, covariates of 0, in evaluation mode if activations are 0 at 0.

        Args:
            params: ``out_shape``, for instance ``likelihood.initial_params(data.train.mean())``.

        """
        layer, untouched = self.output_layer(), self.is_untouched()
        if layer is not None and untouched:
            set_output(layer, params)
        return untouched

    def is_untouched(self) -> bool:
        """Return whether the bias of the last layer was neither set nor trained: it is all zeros, and not frozen."""
        layer = self.output_layer()
        return layer is not None and output_bias(layer).requires_grad and not output_bias(layer).any()

    def forward(self, z: Tensor, *covariates: Tensor) -> Tensor:
        """Map ``(*batch, latent_dim)`` and covariates, whose last axes sum to C, to ``(*batch, *out_shape)``."""
        if not z.ndim or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"the decoder takes latent variables of shape (*batch, {self.latent_dim}), but received "
                f"{tuple(z.shape)}; build it with latent_dim=prior.latent_dim"
            )
        return self._run_folded(z, 1, covariates)


def fold(net: Callable[..., Tensor], inputs: Sequence[Tensor], event_dims: Sequence[int]) -> Tensor:
    """Fold the batch axes of the inputs into one, run a network, and unfold its output.

    Batch axes are broadcast against each other. An axis along which every input is expanded, such as the particles of
    ``x.expand(K, B, ...)``, is run once and the output expanded, so that the work is not done K times and batch
    normalization sees each datum once. The output ``(*batch, *out)`` shares memory along the axis, so do not write
    into it.

    Args:
        net: maps ``(N, *event)`` of each input to ``(N, *out)``.
        inputs: ``(*batch, *event)`` each, with batch axes that broadcast.
        event_dims: number of event axes of each input.

    """
    if len(inputs) == 1 and inputs[0].ndim == event_dims[0] + 1 and inputs[0].stride(0):  # fast path
        return net(inputs[0])
    batch = torch.broadcast_shapes(*(x.shape[: x.ndim - dims] for x, dims in zip(inputs, event_dims, strict=True)))
    full = [x.expand(*batch, *x.shape[x.ndim - dims :]) for x, dims in zip(inputs, event_dims, strict=True)]
    repeated = [n > 1 and all(x.stride(axis) == 0 for x in full) for axis, n in enumerate(batch)]
    distinct = [slice(1) if once else slice(None) for once in repeated]
    own = torch.Size(1 if once else n for once, n in zip(repeated, batch, strict=True))
    out = net(*(x[tuple(distinct)].reshape(own.numel(), *x.shape[len(batch) :]) for x in full))  # (N, *out)
    out = out.reshape(*own, *out.shape[1:])
    return out.expand(*batch, *out.shape[len(batch) :]) if any(repeated) else out
