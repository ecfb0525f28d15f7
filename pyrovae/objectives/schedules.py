"""Annealing schedules: the factor of the KL, between 0 and 1, by gradient step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Annotated

from pyrovae.runtime.annotations import CheckedFields, PositiveInt, Range

__all__ = ["Constant", "Cyclical", "Linear", "Schedule"]


@dataclass(frozen=True)
class Schedule(ABC):
    """Base class of the schedules: a factor of the KL for each gradient step.

    To write your own, derive a frozen dataclass of numbers and define ``__call__``:

        >>> @dataclass(frozen=True)
        ... class SquareRoot(schedules.Schedule):
        ...     num_steps: int = 1000
        ...
        ...     def __call__(self, step: int) -> float:
        ...         return min(1.0, (step / self.num_steps) ** 0.5)

    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the factor of a gradient step, counted from 0."""

    def describe(self) -> dict[str, object]:
        """Return class name and options as JSON types, for the run folder.

        Raises:
            TypeError: if the class is not a dataclass, so that its options are unknown.

        """
        if "__dataclass_fields__" not in type(self).__dict__:
            raise TypeError(
                f"a schedule must be a dataclass, so that a run folder can hold its options, but {type(self).__name__} "
                "is not; derive it as a @dataclass(frozen=True)"
            )
        return {"class": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Constant(Schedule):
    """No annealing: the factor is 1."""

    def __call__(self, step: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Linear(CheckedFields, Schedule):
    """Linear growth from a start to 1, then 1.

    *Generating sentences from a continuous space (Bowman et al. 2016)*, https://arxiv.org/abs/1511.06349

    Args:
        num_steps: gradient steps until the factor is 1.
        start: factor of the first step.

    Raises:
        ValueError: if num_steps is not an integer >= 1, or the start is not in [0, 1].

    """

    num_steps: PositiveInt = 1000
    start: Annotated[float, Range(0, 1)] = 0.0

    def __call__(self, step: int) -> float:
        """Return start + (1 - start) step / num_steps, at most 1."""
        return self.start + (1 - self.start) * min(1.0, step / self.num_steps)


@dataclass(frozen=True)
class Cyclical(CheckedFields, Schedule):
    """Repeated linear growth: in each cycle from a start to 1, then 1 until the cycle ends.

    *Cyclical annealing schedule: A simple approach to mitigating KL vanishing (Fu et al. 2019)*,
    https://arxiv.org/abs/1903.10145

    Args:
        num_steps: gradient steps of one cycle.
        rise: fraction of a cycle in which the factor grows.
        start: factor of the first step of a cycle.

    Raises:
        ValueError: if num_steps is not an integer >= 1, the start is not in [0, 1], or rise not in (0, 1].

    """

    num_steps: PositiveInt = 1000
    rise: Annotated[float, Range(0, 1, exclusive=True)] = 0.5
    start: Annotated[float, Range(0, 1)] = 0.0

    def __call__(self, step: int) -> float:
        """Return the factor of a step by its position in the cycle."""
        position = step % self.num_steps / self.num_steps
        return self.start + (1 - self.start) * min(1.0, position / self.rise)
