"""How the weight of the KL grows during training: factors between 0 and 1 by gradient step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

__all__ = ["Constant", "Cyclical", "Linear", "Schedule"]


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor of the KL for every gradient step.

    To write your own, copy `Linear`: derive a frozen dataclass of plain numbers and write ``__call__``.
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the factor of a gradient step, counted from 0."""

    def describe(self) -> dict[str, object]:
        """Return class and options, as a run folder keeps them.

        Raises:
            TypeError: if the class is no dataclass of its own, which alone says what its options are.

        """
        if "__dataclass_fields__" not in type(self).__dict__:
            raise TypeError(
                f"{type(self).__name__} does not say what its options are; derive it as a @dataclass(frozen=True), so "
                "that a run folder can hold them"
            )
        return {"class": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Constant(Schedule):
    """No annealing: a factor of 1."""

    def __call__(self, step: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """From a start to 1 in equal steps, then 1.

    *Generating sentences from a continuous space (Bowman et al. 2016)*, https://arxiv.org/abs/1511.06349

    Args:
        num_steps: gradient steps until the factor is 1.
        start: factor of the first step.

    Raises:
        ValueError: if there is no step, or the start is not between 0 and 1.

    """

    num_steps: int = 1000
    start: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.num_steps, "num_steps", self.start)

    def __call__(self, step: int) -> float:
        """Return start + (1 - start) step / num_steps, at most 1."""
        return self.start + (1 - self.start) * min(1.0, step / self.num_steps)


@dataclass(frozen=True)
class Cyclical(Schedule):
    """From a start to 1 over and over: in each cycle it rises in equal steps, then stays at 1.

    *Cyclical annealing schedule: A simple approach to mitigating KL vanishing (Fu et al. 2019)*,
    https://arxiv.org/abs/1903.10145

    Args:
        num_steps: gradient steps of one cycle.
        rise: share of a cycle in which the factor rises.
        start: factor of the first step of a cycle.

    Raises:
        ValueError: if a cycle has no step, or a share or factor is out of range.

    """

    num_steps: int = 1000
    rise: float = 0.5
    start: float = 0.0

    def __post_init__(self) -> None:
        _check(self, self.num_steps, "num_steps", self.start)
        if not 0 < self.rise <= 1:
            raise ValueError(f"the rising share of a cycle lies in (0, 1], but received rise={self.rise}; 0.5 is usual")

    def __call__(self, step: int) -> float:
        """Return the factor at this place of the cycle."""
        place = step % self.num_steps / self.num_steps
        return self.start + (1 - self.start) * min(1.0, place / self.rise)


def _check(schedule: Schedule, num_steps: int, name: str, start: float) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(
            f"{type(schedule).__name__} annealing takes a whole number of steps of at least 1, "
            f"but received {name}={num_steps!r}"
        )
    if not 0 <= start <= 1:
        raise ValueError(
            f"{type(schedule).__name__} annealing starts at a factor between 0 and 1, but received start={start!r}"
        )
