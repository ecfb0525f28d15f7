"""What a check found: one line for each law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """One law and whether a part obeys it.

    Attributes:
        name: what must hold.
        passed: whether it does.
        detail: the numbers that show it, or what went wrong.

    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Laws:
    """All laws of one part; true if all hold.

    Attributes:
        part: name of its class.
        laws: in the order in which they were checked.

    """

    part: str
    laws: tuple[Law, ...]

    def __bool__(self) -> bool:
        return all(law.passed for law in self.laws)

    def __str__(self) -> str:
        """Return a line for each law, and what they amount to."""
        width = max(len(law.name) for law in self.laws)
        lines = [f"{'pass' if law.passed else 'FAIL'}  {law.name.ljust(width)}  {law.detail}" for law in self.laws]
        failed = sum(not law.passed for law in self.laws)
        verdict = f"{self.part} breaks {failed} of {len(lines)} laws" if failed else f"{self.part} obeys all laws"
        return "\n".join([*(line.rstrip() for line in lines), verdict])


class Broken(Exception):
    """A law does not hold; the text says what was found."""


def require(holds: object, found: str) -> str:
    """Return what was found if a law holds.

    Raises:
        Broken: with the same text if it does not.

    """
    if not holds:
        raise Broken(found)
    return found


def go_through(part: str, laws: Mapping[str, Callable[[], str]]) -> Laws:
    """Check laws one after the other; whatever a part of the user's raises breaks the law at hand."""
    results = []
    for name, law in laws.items():
        try:
            results.append(Law(name, passed=True, detail=law()))
        except Broken as broken:
            results.append(Law(name, passed=False, detail=str(broken)))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            results.append(Law(name, passed=False, detail=f"{type(error).__name__}: {said}"))
    return Laws(part, tuple(results))
