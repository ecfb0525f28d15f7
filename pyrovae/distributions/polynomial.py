"""Series near the points where formulas cancel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return ``c_0 + c_1 x + c_2 x^2 + ...`` of two coefficients or more, by Horner's scheme."""
    total = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = total * x + coefficient
    return total
