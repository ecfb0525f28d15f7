"""What a check found: one line for each law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Stages = Sequence[Mapping[str, Callable[[], str]]]


@dataclass(frozen=True)
class Check:
    """One law and whether a part obeys it.

    Attributes:
        name: what must hold.
        passed: whether it does; None if it was not checked, since it builds on one that does not.
        detail: the numbers that show it, or what went wrong.

    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Laws:
    """All laws of one part; true if all hold.

    Attributes:
        part: name of its class.
        laws: in the order in which they were checked.

    """

    part: str
    laws: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(law.passed for law in self.laws)

    def __str__(self) -> str:
        """Return a line for each law, and what they amount to."""
        width = max(len(law.name) for law in self.laws)
        words = {True: "pass", False: "FAIL", None: "skip"}
        lines = [f"{words[law.passed]}  {law.name.ljust(width)}  {law.detail}" for law in self.laws]
        failed = sum(law.passed is False for law in self.laws)
        verdict = f"{self.part} breaks {failed} of {len(lines)} laws" if failed else f"{self.part} obeys all laws"
        return "\n".join([*(line.rstrip() for line in lines), verdict])


class CheckFailed(Exception):
    """A law does not hold; the text says what was found."""


def require(holds: object, found: str) -> str:
    """Return what was found if a law holds.

    Raises:
        Broken: with the same text if it does not.

    """
    if not holds:
        raise CheckFailed(found)
    return found


def go_through(part: str, stages: Stages) -> Laws:
    """Check laws stage by stage; those of a stage build on all earlier ones, and are left out where one is broken.

    Whatever a part of the user's raises breaks the law at hand.
    """
    results: list[Check] = []
    for stage in stages:
        broken = [law.name for law in results if law.passed is False]
        for name, law in stage.items():
            results.append(Check(name, None, f"builds on: {broken[0]}") if broken else _checked(name, law))
    return Laws(part, tuple(results))


def _checked(name: str, law: Callable[[], str]) -> Check:
    try:
        return Check(name, passed=True, detail=law())
    except CheckFailed as broken:
        return Check(name, passed=False, detail=str(broken))
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        return Check(name, passed=False, detail=f"{type(error).__name__}: {said}")
