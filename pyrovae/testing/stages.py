"""Results of conformance checks, and how they run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Stages = Sequence[Mapping[str, Callable[[], str]]]


@dataclass(frozen=True)
class Check:
    """The result of one check of a part.

    Attributes:
        name: the property that must hold.
        passed: whether it holds; None if it was skipped because an earlier check failed.
        detail: the numbers that show it, or the error.

    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class ConformanceReport:
    """The results of all checks of one part; true if all passed.

    Attributes:
        part: name of its class.
        checks: in the order in which they ran.

    """

    part: str
    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """Return one line per check and a summary."""
        width = max(len(check.name) for check in self.checks)
        words = {True: "pass", False: "FAIL", None: "skip"}
        lines = [f"{words[check.passed]}  {check.name.ljust(width)}  {check.detail}" for check in self.checks]
        failed = sum(check.passed is False for check in self.checks)
        summary = f"fails {failed} of {len(lines)} checks" if failed else "passes all checks"
        return "\n".join([*(line.rstrip() for line in lines), f"{self.part} {summary}"])


class CheckFailed(Exception):
    """A property does not hold; the text gives the numbers."""


def require(holds: object, detail: str) -> str:
    """Return the detail of a check if a property holds.

    Raises:
        CheckFailed: with the same text if it does not.

    """
    if not holds:
        raise CheckFailed(detail)
    return detail


def run_stages(part: str, stages: Stages) -> ConformanceReport:
    """Run checks stage by stage; if a check fails, later stages are skipped.

    Any exception that the user's part raises fails the check at hand.
    """
    results: list[Check] = []
    for stage in stages:
        failed = [check.name for check in results if check.passed is False]
        for name, run in stage.items():
            results.append(Check(name, None, f"needs: {failed[0]}") if failed else _run(name, run))
    return ConformanceReport(part, tuple(results))


def _run(name: str, run: Callable[[], str]) -> Check:
    try:
        return Check(name, passed=True, detail=run())
    except CheckFailed as failure:
        return Check(name, passed=False, detail=str(failure))
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return Check(name, passed=False, detail=f"{type(error).__name__}: {text}")
