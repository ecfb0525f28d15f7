"""Transforms of stored values: binarization, dequantization, standardization and others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from pyrovae.runtime.annotations import CheckedFields, PositiveFloat

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
BaseMeasure = Literal["counting", "Lebesgue"]

MAX_LEVELS = 2**16  # of integers that are levels


@dataclass(frozen=True)
class Transform(ABC):
    """A map from stored values u to values x, with or without noise.

    To write your own, copy `Identity`: derive a frozen dataclass, set `base_measure` (and `random` if there is noise),
    and write `apply`, with noise also `mean`. If a density of x gives a density of u, or a bound on its probability,
    write `log_abs_det_jacobian` too; if some u are invalid, write `check`. Draw noise element by element from
    `generator`, and keep `apply` free of checks of values: it runs in compiled training steps, which must not wait for
    the device.
    """

    random: ClassVar[bool] = False
    """Whether each call draws fresh noise."""
    once: ClassVar[bool] = False
    """Whether the noise of the training set is drawn once for all epochs."""
    base_measure: ClassVar[BaseMeasure]
    """The measure on which x has a density; `Split.base_measure` refines it for untransformed floats."""

    def __call__(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Check the values, then transform them.

        Args:
            stored: values u, ``(B, *x_shape)``.
            levels: number of values an integer u can take, 0 to levels - 1; None for floats and counts.
            generator: source of the noise; torch's default stream of the device if None.

        Returns:
            x, ``(B, *x_shape)``, in the dtype of `stored` if it is floating point, else in torch's default dtype.

        Raises:
            ValueError: if values are invalid.

        """
        self.check(stored, levels=levels)
        return self.apply(stored, levels=levels, generator=generator)

    def check(self, stored: Tensor, *, levels: int | None) -> None:  # noqa: B027
        """Raise a ValueError if `stored`, ``(B, *x_shape)``, has values outside the domain of the transform."""

    @abstractmethod
    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Transform valid values, ``(B, *x_shape)``; arguments as in the call."""

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        """Return the expected x over the noise, ``(B, *x_shape)``."""
        if self.random:
            raise NotImplementedError(f"{type(self).__name__} has noise: write its mean")
        return self.apply(stored, levels=levels)

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return log |dx/du| in nats per datum, or None if a density of x does not bound p(u).

        log p(u) = log p(x) + log |dx/du|; with noise the right side, averaged over the noise, is a lower bound.
        """
        return None

    def describe(self) -> dict[str, object]:
        """Return the class name and the fields, in types of JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"class": type(self).__name__} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


@dataclass(frozen=True)
class Identity(Transform):
    """x = u: binary values, levels, counts, and floats that need no transform."""

    base_measure: ClassVar[BaseMeasure] = "counting"

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Raise a ValueError for integers that the dtype of x cannot represent exactly."""
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

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return 0 nats."""
        return 0.0


@dataclass(frozen=True)
class _Probability(Transform):
    """Base of transforms of probabilities: p = u / (levels - 1) of integers, p = u of floats."""

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Raise a ValueError for floats outside [0, 1] and integers outside 0 to levels - 1."""
        if not stored.is_floating_point():
            check_levels(stored, levels=levels)
        elif stored.numel():
            low, high = (bound.item() for bound in stored.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"{type(self).__name__} takes floats as probabilities in [0, 1], but received {low:g} to {high:g}; "
                    "rescale them, store integers with levels=, or score them as they are, with the transform Identity "
                    "and a likelihood of real numbers, such as Gaussian (--likelihood Gaussian on the command line)"
                )


@dataclass(frozen=True)
class Grey(_Probability):
    """x = p, between 0 and 1: for densities on the unit interval, not for Bernoulli."""

    base_measure: ClassVar[BaseMeasure] = "Lebesgue"

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return the probabilities p, ``(B, *x_shape)``."""
        return _probability(stored, levels=levels, dtype=float_dtype(stored))

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return 0 nats for floats; None for integers: without noise a density on them bounds no probability."""
        return 0.0 if levels is None else None


@dataclass(frozen=True)
class DynamicBinarization(_Probability):
    """x ~ Bernoulli(p), with fresh noise at every call.

    *On the quantitative analysis of deep belief networks (Salakhutdinov, Murray 2008)*,
    https://doi.org/10.1145/1390156.1390266
    """

    random: ClassVar[bool] = True
    base_measure: ClassVar[BaseMeasure] = "counting"

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros and ones, ``(B, *x_shape)``."""
        p = _probability(stored, levels=levels, dtype=torch.float32)  # not the default dtype: the seed fixes x
        noise_dtype = torch.promote_types(p.dtype, torch.float32)
        noise = torch.rand(p.shape, dtype=noise_dtype, device=p.device, generator=generator)
        return (noise < p).to(float_dtype(stored))

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        """Return the probabilities p, ``(B, *x_shape)``."""
        return _probability(stored, levels=levels, dtype=float_dtype(stored))


@dataclass(frozen=True)
class StaticBinarization(DynamicBinarization):
    """x ~ Bernoulli(p), drawn once for all epochs; not the draws of Larochelle's static MNIST."""

    once: ClassVar[bool] = True


@dataclass(frozen=True)
class Threshold(CheckedFields, _Probability):
    """x = 1 if p > level, else 0.

    Args:
        level: in [0, 1).

    Raises:
        ValueError: if the level lies outside.

    """

    base_measure: ClassVar[BaseMeasure] = "counting"
    level: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.level < 1:
            raise ValueError(f"a threshold lies in [0, 1), but level is {self.level}; p > 0.5 is level=0.5")

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return zeros and ones, ``(B, *x_shape)``."""
        return (_probability(stored, levels=levels, dtype=torch.float32) > self.level).to(float_dtype(stored))


@dataclass(frozen=True)
class Dequantization(Transform):
    """x = (u + U[0, 1)) / levels, so that log p(u) >= E log p(x) - D log levels, for integers u.

    *A note on the evaluation of generative models (Theis, van den Oord, Bethge 2016)*, https://arxiv.org/abs/1511.01844
    """

    random: ClassVar[bool] = True
    base_measure: ClassVar[BaseMeasure] = "Lebesgue"

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Raise a ValueError for floats, and integers outside 0 to levels - 1."""
        if stored.is_floating_point():
            raise ValueError(
                f"Dequantization takes integers, but received {stored.dtype}; floats are continuous already: use "
                "Identity() or Standardization.fit(stored)"
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
        """Return -D log levels, in nats per datum; only booleans have levels=None."""
        return -math.prod(x_shape) * math.log(2 if levels is None else levels)


@dataclass(frozen=True)
class Standardization(CheckedFields, Transform):
    """x = (u - loc) / scale, column by column.

    Args:
        loc: one float per column (element of the last axis).
        scale: one positive float per column.

    Raises:
        ValueError: if a value is invalid.

    """

    base_measure: ClassVar[BaseMeasure] = "Lebesgue"
    loc: Sequence[float]
    scale: Sequence[PositiveFloat]

    def __post_init__(self) -> None:
        object.__setattr__(self, "loc", tuple(map(float, self.loc)))
        object.__setattr__(self, "scale", tuple(map(float, self.scale)))
        super().__post_init__()

    @classmethod
    def fit(cls, stored: Tensor) -> Self:
        """Compute the mean and standard deviation of each column; give it only the training set.

        Args:
            stored: floats or integers, ``(N, columns)``.

        Raises:
            ValueError: if they have another shape, or a constant column.

        """
        if stored.ndim != 2:
            raise ValueError(
                f"fit takes data of shape (N, columns), but received {(*stored.shape,)}; "
                f"flatten them, or scale images with Grey() or Dequantization()"
            )
        constant = (stored == stored[0]).all(0).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"a column needs two different values to have a scale, but column {constant[0]} is constant at "
                f"{stored[0, constant[0]].item():g} (constant columns: {constant}); drop it"
            )
        values = stored.cpu().double()
        return cls(values.mean(0).tolist(), values.std(0, correction=0).tolist())

    def __str__(self) -> str:
        return f"Standardization({len(self.loc)} columns)"

    @cached_property
    def _tensors(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        """Loc and scale, ``(2, columns)``, by device and dtype."""
        return {}

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Raise a ValueError for another number of columns."""
        if stored.shape[-1:] != (len(self.loc),):
            raise ValueError(
                f"Standardization was made for {len(self.loc)} columns, but the data have shape {(*stored.shape,)}; "
                f"fit it to these data"
            )
        self.apply(stored[:0], levels=levels)  # creates the tensors, which a compiled step cannot

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return standardized values, ``(B, *x_shape)``."""
        key = (stored.device, float_dtype(stored))
        if key not in self._tensors:
            with torch.inference_mode(mode=False):
                self._tensors[key] = torch.tensor([self.loc, self.scale], device=key[0], dtype=key[1])
        loc, scale = self._tensors[key].unbind()
        return (stored - loc) / scale

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return minus the sum of log scale, in nats per datum."""
        return -math.prod(x_shape[:-1]) * sum(math.log(scale) for scale in self.scale)


def default_transform(form: Form, stored: Tensor, *, levels: int | None) -> Transform:
    """Return the default transform for a likelihood that scores data of this form.

    Args:
        form: "binary", "unit" (in [0, 1]), "continuous", "levels" (0 to levels - 1) or "counts".
        stored: the training values, ``(N, *x_shape)``.
        levels: number of values an integer can take; None for floats and counts.

    Raises:
        ValueError: if the form is unknown.

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


def float_dtype(stored: Tensor) -> torch.dtype:
    """Return the dtype of transformed values: the stored dtype if it is floating point, else torch's default."""
    return stored.dtype if stored.is_floating_point() else torch.get_default_dtype()


def level_count(stored: Tensor, *, levels: int | None) -> int:
    """Return the number of values an integer can take, two for booleans; raise a ValueError if it is unknown."""
    levels = 2 if levels is None and stored.dtype == torch.bool else levels
    if levels is None or levels < 2:
        raise ValueError(
            f"integers need a number of levels, two or more, but levels is {levels}; load the data with levels= "
            "(--data.levels), bytes with levels=256, or score counts by a likelihood of counts, such as Poisson"
        )
    return levels


def check_levels(stored: Tensor, *, levels: int | None) -> None:
    """Raise a ValueError if integers lie outside 0 to levels - 1; bytes with 256 levels need no pass over the data."""
    count = level_count(stored, levels=levels)
    if count > MAX_LEVELS:
        raise ValueError(f"levels={count} is more than 16 bits have, {MAX_LEVELS:,}; such integers are counts")
    if stored.numel() and stored.dtype != torch.bool and not (stored.dtype == torch.uint8 and count >= 256):
        low, high = (bound.item() for bound in stored.aminmax())
        if low < 0 or high >= count:
            raise ValueError(
                f"levels={count} means integers from 0 to {count - 1}, but received {low} to {high}; "
                f"give the number of levels that the data have"
            )


def _probability(stored: Tensor, *, levels: int | None, dtype: torch.dtype) -> Tensor:
    return stored if stored.is_floating_point() else stored.to(dtype) / (level_count(stored, levels=levels) - 1)
