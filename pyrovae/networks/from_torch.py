"""Encoders and decoders from networks or functions in plain torch."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.runtime.annotations import Shape

Function = Callable[[Tensor], Any]


class TorchEncoder(Encoder):
    """An encoder from a function of x that returns mean and log-variance, in two tensors or one.

    Arguments and errors are the same as for `VAE.from_torch`.
    """

    def __init__(
        self,
        encode: Function,
        x_shape: Shape,
        latent_shape: Shape,
        *,
        flat: bool = False,
        modules: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__(x_shape, (math.prod(latent_shape), 2))
        self.encode, self.flat, self.latent_shape = encode, flat, tuple(latent_shape)
        self.used = _modules_of("encode", encode, modules)

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, latent_dim, 2)``."""
        value = x.flatten(1) if self.flat else x
        output = self.encode(value)
        moments: Any = getattr(output, "latent_dist", output)  # the package diffusers
        if hasattr(moments, "mean") and hasattr(moments, "logvar"):
            moments = (moments.mean, moments.logvar)
        channels, *size = self.latent_shape
        shape, both = (len(x), channels, *size), (len(x), 2 * channels, *size)
        parts = moments.chunk(2, 1) if _shape(moments) == both else moments
        if not isinstance(parts, (tuple, list)) or [_shape(part) for part in parts] != [shape, shape]:
            raise ValueError(
                f"encode returns one tensor of shape (B, {_join(both[1:])}), or (mean, log_variance), each of shape "
                f"(B, {_join(shape[1:])}), but returned {_describe(moments)} for x of shape {tuple(value.shape)}; wrap "
                "it in a function that does"
                + ("" if self.flat or value.ndim == 2 else ", or say flat=True if it takes rows")
            )
        return torch.stack([part.flatten(1) for part in parts], -1)  # (N, latent_dim, 2)


class TorchDecoder(Decoder):
    """A decoder from a function of z that returns parameters of the likelihood, or probabilities in place of logits.

    The arguments and errors are those of `VAE.from_torch`; for several parameters the function may also return one
    tensor ``(N, *x_shape, n_params)``. float32 probabilities near 1 have lost the digits of log(1 - p): the error is
    above 1e-3 nats from a logit of 10 on, and p is 1 from a logit of 17 on.
    """

    def __init__(
        self,
        decode: Function,
        latent_shape: Shape,
        out_shape: Shape,
        *,
        probabilities: bool | None = False,
        modules: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__(math.prod(latent_shape), out_shape)
        self.decode, self.latent_shape, self.probabilities = decode, tuple(latent_shape), probabilities
        self.used = _modules_of("decode", decode, modules)

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        z = z.unflatten(-1, self.latent_shape)
        output = self.decode(z)
        sample = getattr(output, "sample", None)  # the package diffusers
        params = self._to_params(sample if isinstance(sample, Tensor) else output, z)  # (N, *out_shape)
        if self.probabilities is None:
            _require_logits(params)
            self.probabilities = False
        return _logits(params) if self.probabilities else params

    def _to_params(self, output: Any, z: Tensor) -> Tensor:
        """Return the output of the function as ``(N, *out_shape)``."""
        *x_shape, n_params = self.out_shape
        full, rows = (len(z), *x_shape), (len(z), math.prod(x_shape))
        if _shape(output) == (len(z), *self.out_shape):
            return output
        parts = tuple(output) if isinstance(output, (tuple, list)) else (output,)
        if len(parts) == n_params and all(_shape(part) in (full, rows) for part in parts):
            return torch.stack([part.reshape(full) for part in parts], -1)  # (N, *x_shape, n_params)
        shapes = f"(B, {_join(x_shape)}) or (B, {math.prod(x_shape)})"
        valid = f"a tensor of shape {shapes}" if n_params == 1 else f"{n_params} tensors, each of shape {shapes}"
        raise ValueError(
            f"decode returns {valid}, but returned {_describe(output)} for z of shape {tuple(z.shape)}; wrap it in a "
            "function that does"
        )


def _modules_of(role: str, function: Function, modules: Iterable[nn.Module] | None) -> nn.ModuleList:
    """Return the modules that a function uses: its owner, and the given ones.

    Raises:
        TypeError: if its modules are unknown.

    """
    bare = function.func if isinstance(function, functools.partial) else function
    owner = bare.__self__ if inspect.ismethod(bare) else bare
    if modules is None and not isinstance(owner, nn.Module):
        raise TypeError(
            f"{role} is neither a module nor the method of one, so that its modules are unknown; name them by "
            "modules=[net], an empty list if there are none: they are moved, and evaluated in eval mode"
        )
    own = [owner] if isinstance(owner, nn.Module) and owner is not function else []
    return nn.ModuleList([*own, *(modules or ())])


def _logits(probabilities: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))``, which is exact to rounding for every p other than 0 and 1."""
    low, high = (bound.item() for bound in probabilities.aminmax())
    if not (low > 0 and high < 1):
        raise ValueError(
            f"probabilities lie strictly between 0 and 1, but decode returned {probabilities.dtype} from {low:.4g} to "
            f"{high:.4g}; leave out probabilities=True if these are logits. 0 and 1 would make log p(x) infinite: let "
            "it return logits (leave out its last sigmoid), or convert model and data to torch.float64"
        )
    return probabilities.logit()


def _require_logits(params: Tensor) -> None:
    """Raise a ValueError if logits look like probabilities: all between 0 and 1, and not constant."""
    low, high = (bound.item() for bound in params.aminmax())
    if low >= 0 and high <= 1 and low < high:
        raise ValueError(
            f"decode returns logits, but its whole output lies between 0 and 1 (from {low:.4g} to {high:.4g}), like "
            "probabilities; say probabilities=True, or probabilities=False if they are logits"
        )


def _join(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _shape(part: Any) -> tuple[int, ...] | None:
    return tuple(part.shape) if isinstance(part, Tensor) else None


def _describe(output: Any) -> str:
    """Return a description of the output of a function, for errors."""
    if isinstance(output, (tuple, list)):
        return f"{len(output)} values ({', '.join(map(_describe, output))})"
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
