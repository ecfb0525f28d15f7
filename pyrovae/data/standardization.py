"""Standardization: columns of mean zero and variance one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from pyrovae.data.transform import BaseMeasure, Transform, float_dtype


@dataclass(frozen=True)
class Standardization(Transform):
    """x = (u - loc) / scale, column by column.

    Args:
        loc: what to subtract, one float per column (entry of the last axis).
        scale: what to divide by, one positive float per column.

    """

    base_measure: ClassVar[BaseMeasure] = "Lebesgue"
    loc: Sequence[float]
    scale: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "loc", tuple(float(value) for value in self.loc))
        object.__setattr__(self, "scale", tuple(float(value) for value in self.scale))
        if len(self.loc) != len(self.scale):
            raise ValueError(
                f"loc and scale have one entry per column, but received {len(self.loc)} and {len(self.scale)}"
            )
        for column, (loc, scale) in enumerate(zip(self.loc, self.scale, strict=True)):
            if not (math.isfinite(loc) and 0 < scale < math.inf):
                raise ValueError(
                    f"loc is finite, scale finite and positive, but column {column} has loc {loc:g}, scale {scale:g}; "
                    f"Standardization.fit(stored) measures both"
                )

    @classmethod
    def fit(cls, stored: Tensor) -> Self:
        """Take the mean and standard deviation of each column; give it the training set alone.

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
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        return {}

    def check(self, stored: Tensor, *, levels: int | None) -> None:
        """Refuse another number of columns."""
        if stored.shape[-1:] != (len(self.loc),):
            raise ValueError(
                f"Standardization was made for {len(self.loc)} columns, but the data have shape {(*stored.shape,)}; "
                f"fit it to these data"
            )
        self.apply(stored[:0], levels=levels)  # places loc and scale: a recorded step cannot

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        """Return standardized values, ``(B, *x_shape)``."""
        key = (stored.device, float_dtype(stored))
        if key not in self._placed:
            with torch.inference_mode(mode=False):
                rows = torch.tensor([self.loc, self.scale], device=key[0], dtype=key[1])
            self._placed[key] = rows[0], rows[1]
        loc, scale = self._placed[key]
        return (stored - loc) / scale

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        """Return standardized values, ``(B, *x_shape)``."""
        return self.apply(stored, levels=levels)

    def log_abs_det_jacobian(self, x_shape: Sequence[int], *, levels: int | None) -> float | None:
        """Return minus the sum of log scale, in nats per datum."""
        return -math.prod(x_shape[:-1]) * sum(math.log(scale) for scale in self.scale)
