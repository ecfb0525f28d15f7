"""The difference of two models on the same data, paired datum by datum."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import stdtrit
from torch import Tensor

from pyrovae.results.estimate import mean_and_error


@dataclass(frozen=True)
class Difference:
    """A mean difference over data, in nats per datum, with its standard error and 95 % interval.

    Attributes:
        mean: None where a value is not finite.
        se: standard error of the mean over the data; None for a single datum.
        low: lower end of the interval ``mean -+ t se``, t being the 0.975 quantile of Student's t with N - 1 degrees
            of freedom.
        high: its upper end.
        why: the reason for a None.

    """

    mean: float | None
    se: float | None
    low: float | None
    high: float | None
    why: str | None = None

    @property
    def resolved(self) -> bool | None:
        """Whether the interval excludes 0; None where there is none."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0

    @classmethod
    def over_data(cls, ours: Tensor, theirs: Tensor) -> Difference:
        """Return the mean of ``ours - theirs``, values of the same data ``(N,)``, nats.

        Raises:
            ValueError: if they differ in number.

        """
        if ours.shape != theirs.shape or ours.ndim != 1:
            raise ValueError(
                f"values are paired datum by datum, but received values of shapes {tuple(ours.shape)} and "
                f"{tuple(theirs.shape)}; compute both on the same data"
            )
        values = ours.double() - theirs.double()
        bad = int((~values.isfinite()).sum())
        if bad:
            why = f"{bad} of {len(values)} data have a value that is not finite, which no mean may hide"
            return cls(None, None, None, None, why)
        mean, se = mean_and_error(values)
        if mean is None or se is None:
            return cls(mean, None, None, None, "a single datum has no standard error")
        half = float(stdtrit(len(values) - 1, 0.975)) * se
        return cls(mean, se, mean - half, mean + half)
