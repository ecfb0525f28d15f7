"""The transforms: what may be done to stored values before a likelihood scores them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from pyrovae.data.standardization import Standardization
from pyrovae.data.transform import BaseMeasure, Transform, check_levels, float_dtype, level_count

__all__ = [
    "DynamicBinarization",
    "Dequantization",
    "Form",
    "Grey",
    "Identity",
    "Standardization",
    "StaticBinarization",
    "Threshold",
    "Transform",
    "default_transform",
]

Form = Literal["binary", "unit", "continuous", "levels", "counts"]


@dataclass(frozen=True)
class Identity(Transform):
    """x = u: binary values, levels, counts, and floats that are ready."""

    base_measure: ClassVar[BaseMeasure] = "counting"

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Refuse integers that the dtype of x does not hold exactly."""
        if stored.is_floating_point() or stored.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16):
            return
        dtype = float_dtype(stored)
        exact = round(2 / torch.finfo(dtype).eps)  # 2^24 for float32
        if stored.numel() and max(abs(int(bound)) for bound in stored.aminmax()) > exact:
            raise ValueError(
                f"integers are scored as {dtype}, which holds them exactly up to {exact}, but received "
                f"{int(stored.min())} to {int(stored.max())}; call torch.set_default_dtype(torch.float64) first, or "
                "rescale them"
            )

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return u as floats, ``(B, *x_shape)``."""
        return stored.to(float_dtype(stored))

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        """Return u as floats, ``(B, *x_shape)``."""
        return self.apply(stored, levels=levels)

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return 0 nats."""
        return 0.0


@dataclass(frozen=True)
class _Probability(Transform):
    """Transforms that read u as p = u / (levels - 1), floats as p itself."""

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Refuse floats outside [0, 1] and integers outside 0 .. levels - 1."""
        if not stored.is_floating_point():
            check_levels(stored, levels=levels)
        elif stored.numel():
            low, high = (bound.item() for bound in stored.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"{type(self).__name__} takes floats as probabilities in [0, 1], but received {low:g} to {high:g}; "
                    f"rescale them, store integers with levels=, or score them as they are with Identity()"
                )

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        """Return the probabilities p, ``(B, *x_shape)``."""
        return _probability(stored, levels=levels, dtype=float_dtype(stored))


@dataclass(frozen=True)
class Grey(_Probability):
    """x = p, between 0 and 1: for densities on the unit interval, not for Bernoulli."""

    base_measure: ClassVar[BaseMeasure] = "Lebesgue"

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return the probabilities p, ``(B, *x_shape)``."""
        return self.mean(stored, levels=levels)

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return 0 nats for floats; None for integers: without noise a density on them bounds no probability."""
        return 0.0 if levels is None else None


@dataclass(frozen=True)
class _Coins(_Probability):
    """x ~ Bernoulli(p)."""

    random: ClassVar[bool] = True
    base_measure: ClassVar[BaseMeasure] = "counting"

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros and ones, ``(B, *x_shape)``."""
        p = _probability(stored, levels=levels, dtype=torch.float32)  # not the default: a seed fixes the coins
        noise_dtype = torch.promote_types(p.dtype, torch.float32)
        noise = torch.rand(p.shape, dtype=noise_dtype, device=p.device, generator=generator)
        return (noise < p).to(float_dtype(stored))


@dataclass(frozen=True)
class DynamicBinarization(_Coins):
    """x ~ Bernoulli(p), afresh at every call.

    *On the quantitative analysis of deep belief networks (Salakhutdinov, Murray 2008)*,
    https://doi.org/10.1145/1390156.1390266
    """


@dataclass(frozen=True)
class StaticBinarization(_Coins):
    """x ~ Bernoulli(p), drawn once for all epochs; not Larochelle's file of static MNIST, whose draws are others."""

    once: ClassVar[bool] = True


@dataclass(frozen=True)
class Threshold(_Probability):
    """x = 1 where p > level, else 0.

    Args:
        level: in [0, 1).

    """

    base_measure: ClassVar[BaseMeasure] = "counting"
    level: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.level < 1:
            raise ValueError(f"a threshold lies in [0, 1), but level is {self.level}; p > 0.5 is level=0.5")

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros and ones, ``(B, *x_shape)``."""
        return (_probability(stored, levels=levels, dtype=torch.float32) > self.level).to(float_dtype(stored))

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        """Return zeros and ones, ``(B, *x_shape)``."""
        return self.apply(stored, levels=levels)


@dataclass(frozen=True)
class Dequantization(Transform):
    """x = (u + U[0, 1)) / levels, so that log p(u) >= E log p(x) - D log levels, for integers u.

    *A note on the evaluation of generative models (Theis, van den Oord, Bethge 2016)*, https://arxiv.org/abs/1511.01844
    """

    random: ClassVar[bool] = True
    base_measure: ClassVar[BaseMeasure] = "Lebesgue"

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Refuse floats, and integers outside 0 .. levels - 1."""
        if stored.is_floating_point():
            raise ValueError(
                f"Dequantization takes integers, but received {stored.dtype}; "
                f"floats are continuous already: use Identity() or Standardization.fit(stored)"
            )
        check_levels(stored, levels=levels)

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return values in [0, 1), ``(B, *x_shape)``."""
        u = stored.to(torch.get_default_dtype())
        noise = torch.rand(u.shape, dtype=torch.float32, device=u.device, generator=generator)
        x = (u + noise.to(u.dtype)) / level_count(stored, levels=levels)
        return x.clamp(max=1 - torch.finfo(x.dtype).eps / 2)  # (255 + 0.9999999) / 256 would round to 1

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        """Return (u + 1/2) / levels, ``(B, *x_shape)``."""
        return (stored.to(torch.get_default_dtype()) + 0.5) / level_count(stored, levels=levels)

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return -D log levels, in nats per datum."""
        if levels is None:
            raise ValueError("integers need a number of levels, but levels is None; bytes have levels=256")
        return -math.prod(x_shape) * math.log(levels)


def default_transform(form: Form, stored: Tensor, *, levels: int | None) -> Transform:
    """Choose what a likelihood that declares this form of data wants to be given.

    Args:
        form: "binary", "unit" (in [0, 1]), "continuous", "levels" (0 to levels - 1) or "counts".
        stored: the training values, ``(N, *x_shape)``.
        levels: number of values an integer can take; None for floats and counts.

    """
    match form:
        case "binary":
            binary = levels == 2 or stored.dtype == torch.bool or bool(((stored == 0) | (stored == 1)).all())
            return Identity() if binary else DynamicBinarization()
        case "unit":
            return Grey() if stored.is_floating_point() else Dequantization()
        case "continuous":
            if not stored.is_floating_point():
                return Dequantization()
            return Standardization.fit(stored) if stored.ndim == 2 else Identity()
        case "levels" | "counts":
            return Identity()
    raise ValueError(f"a form of data is one of {', '.join(get_args(Form))}, but received {form!r}")


def _probability(stored: Tensor, *, levels: int | None, dtype: torch.dtype) -> Tensor:
    return stored if stored.is_floating_point() else stored.to(dtype) / (level_count(stored, levels=levels) - 1)
