"""Encoders and decoders that are networks of plain torch, or functions of them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.networks.base import Decoder, Encoder

Function = Callable[[Tensor], Any]


class TorchEncoder(Encoder):
    """An encoder from a function of x that returns mean and log-variance, whose numbers are left as they are.

    Args:
        encode: maps ``(N, *x_shape)`` to mean and log-variance, each ``(N, latent_dim)``.
        x_shape: shape of one datum.
        latent_dim: D, the number of latent dimensions.
        flat: whether it takes x as rows ``(N, prod(x_shape))``.
        modules: what it uses, where it is neither a module nor the method of one.

    Raises:
        TypeError: if it cannot be called, or its modules are not known.
        ValueError: in a call, if it takes or returns other shapes.

    """

    def __init__(
        self,
        encode: Function,
        x_shape: Sequence[int],
        latent_dim: int,
        *,
        flat: bool = False,
        modules: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__(x_shape, (latent_dim, 2))
        self.encode, self.flat, self.latent_dim = encode, flat, latent_dim
        self.used = modules_of("encode", encode, modules)

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, latent_dim, 2)``."""
        rows = x.flatten(1)  # (N, prod(x_shape))
        given, other = (rows, x) if self.flat else (x, rows)
        try:
            found = self.encode(given)
        except RuntimeError:
            if self._takes(other):
                raise ValueError(
                    f"encode fails on x of shape {tuple(given.shape)}, but takes {tuple(other.shape)}; say "
                    f"flat={not self.flat}"
                ) from None
            raise
        shape = (len(x), self.latent_dim)
        if not isinstance(found, (tuple, list)) or [_shape(part) for part in found] != [shape, shape]:
            raise ValueError(
                f"encode returns (mean, log_variance), each of shape (B, {self.latent_dim}), but returned "
                f"{_shapes(found)} for x of shape {tuple(given.shape)}; wrap it in a function that returns these two"
                + ("" if self.flat or given.ndim == 2 else ", or say flat=True if it takes rows")
            )
        return torch.stack(list(found), -1)  # (N, latent_dim, 2)

    def _takes(self, x: Tensor) -> bool:
        """Tell whether the function takes x, which it was not given."""
        try:
            self.encode(x)
        except Exception:  # whatever it is, the first error is the one to show
            return False
        return True


class TorchDecoder(Decoder):
    """A decoder from a function of z that returns what the likelihood is given, or probabilities in place of logits.

    A probability of float32 near 1 has lost what log(1 - p) needs, from a logit of 10 on more than 1e-3 nats, and is 1
    from 17 on: let the function return logits where it can.

    Args:
        decode: maps ``(N, latent_dim)`` to one tensor per parameter, ``(N, *x_shape)`` or flat; or, of several, to one
            tensor ``(N, *x_shape, n_params)``.
        latent_dim: D, the number of latent dimensions.
        out_shape: ``likelihood.param_shape``, which is ``(*x_shape, n_params)``.
        probabilities: whether these are probabilities, to be made logits. None: they are not, which the first of them
            must confirm by not all lying in [0, 1]; so that logits are meant.
        modules: what it uses, where it is neither a module nor the method of one.

    Raises:
        TypeError: if it cannot be called, or its modules are not known.
        ValueError: in a call, if it returns another shape, or what are no probabilities, or some that are 0 or 1.

    """

    def __init__(
        self,
        decode: Function,
        latent_dim: int,
        out_shape: Sequence[int],
        *,
        probabilities: bool | None = False,
        modules: Iterable[nn.Module] | None = None,
    ) -> None:
        super().__init__(latent_dim, out_shape)
        self.decode, self.probabilities = decode, probabilities
        self.used = modules_of("decode", decode, modules)

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        params = self._shaped(self.decode(z), z)  # (N, *out_shape)
        if self.probabilities is None:
            _require_logits(params)
            self.probabilities = False
        return _logits(params) if self.probabilities else params

    def _shaped(self, found: Any, z: Tensor) -> Tensor:
        """Return what the function returned as ``(N, *out_shape)``."""
        *x_shape, n_params = self.out_shape
        whole, full, rows = ((len(z), *each) for each in (self.out_shape, x_shape, (math.prod(x_shape),)))
        if isinstance(found, Tensor) and _shape(found) == whole:
            return found
        several = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        if len(several) == n_params and all(_shape(part) in (full, rows) for part in several):
            return torch.stack([part.reshape(full) for part in several], -1)  # (N, *x_shape, n_params)
        each = f"(B, {', '.join(map(str, x_shape))}) or (B, {math.prod(x_shape)})"
        wanted = f"a tensor of shape {each}" if n_params == 1 else f"{n_params} tensors, each of shape {each}"
        raise ValueError(
            f"decode returns {wanted}, but returned {_shapes(found)} for z of shape {tuple(z.shape)}; wrap it in a "
            "function that does"
        )


def modules_of(role: str, function: Function, named: Iterable[nn.Module] | None) -> nn.ModuleList:
    """Return the modules that a function uses beside itself: its owner, and those that are named.

    Raises:
        TypeError: if it cannot be called, its modules are not known, or something named is none.

    """
    if isinstance(function, type) or not callable(function):
        raise TypeError(f"{role} is a module or a function, but received {function!r}")
    bare = function.func if isinstance(function, functools.partial) else function
    owner = bare.__self__ if inspect.ismethod(bare) else bare
    own = [owner] if isinstance(owner, nn.Module) else []
    if not own and named is None:
        raise TypeError(
            f"{role} is neither a module nor the method of one, so that the modules that it uses are not seen; name "
            "them by modules=[...], an empty list if there are none: they are evaluated in eval mode, and moved"
        )
    others = list(named or ())
    for module in others:
        if not isinstance(module, nn.Module):
            raise TypeError(f"modules holds torch modules, but it contains a {type(module).__name__}")
    return nn.ModuleList([*(module for module in own if module is not function), *others])


def _logits(probabilities: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))``, which is exact to rounding for every p that is not 0 or 1."""
    low, high = (bound.item() for bound in probabilities.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"decode returns probabilities, but returned values from {low:.4g} to {high:.4g}; leave out "
            "probabilities=True if these are logits"
        )
    saturated = int(((probabilities == 0) | (probabilities == 1)).sum())
    if saturated:
        raise ValueError(
            f"probabilities lie strictly between 0 and 1, but decode returned {saturated} of {probabilities.numel()} "
            f"that {probabilities.dtype} cannot tell from 0 or 1, which would make log p(x) infinite; let it return "
            "logits (leave out its last sigmoid, and probabilities=True), or convert model and data to torch.float64"
        )
    return probabilities.logit()


def _require_logits(params: Tensor) -> None:
    """Refuse logits that all lie between 0 and 1 without being all the same: these are probabilities."""
    low, high = (bound.item() for bound in params.aminmax())
    if low >= 0 and high <= 1 and low < high:
        raise ValueError(
            f"decode returns logits, but all that it returned lie between 0 and 1 (from {low:.4g} to {high:.4g}), as "
            "probabilities do; say probabilities=True, or probabilities=False if they are logits"
        )


def _shape(part: Any) -> tuple[int, ...] | None:
    return tuple(part.shape) if isinstance(part, Tensor) else None


def _shapes(found: Any) -> str:
    """Return what a function returned, in words."""
    if isinstance(found, (tuple, list)):
        return f"{len(found)} values ({', '.join(map(_shapes, found))})"
    return f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
