"""Progress of long work: a bar in a terminal or notebook, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    """Function that updates the progress."""

    def __call__(self, done: float, text: str = "") -> None:
        """Show that ``done`` units are finished, with a text beside the bar."""


@contextmanager
def progress(title: str, total: int, *, show_progress: bool, unit: str) -> Iterator[Advance]:
    """Show the progress of some work while the block runs.

    Args:
        title: name of the work.
        total: number of units.
        show_progress: whether anything is shown.
        unit: name of the unit in the rate, in the plural.

    """
    console = Console(stderr=True)
    started = time.monotonic()

    def rate(done: float) -> str:
        per_second = done / max(time.monotonic() - started, 1e-9)
        return f"{per_second:.0f} {unit}/s" if per_second >= 10 else f"{per_second:.2g} {unit}/s"

    if not show_progress:
        yield lambda done, text="": None
    elif console.is_terminal or (console.is_jupyter and find_spec("ipywidgets")):  # without it rich warns
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, text="")
            yield lambda done, text="": bar.update(task, completed=done, text=f"{text}  {rate(done)}")
    else:
        last = started

        def line(done: float, text: str = "") -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES or (done >= total and last > started):
                last = time.monotonic()
                left = (last - started) * (total - done) / max(done, 1e-9)
                with suppress(OSError, AttributeError):  # a closed or missing output does not end the work
                    sys.stderr.write(f"{title}: {done:.0f} of {total}  {text}  {rate(done)}  {left:.0f} s left\n")

        yield line
