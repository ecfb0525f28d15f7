"""Base class of transforms from stored values to the values that a likelihood scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

MAX_LEVELS = 2**16  # of integers that are levels

BaseMeasure = Literal["counting", "Lebesgue"]


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
