"""Text that commands print, and names of what they write."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from pyrovae.results.tables import printable_lines
from pyrovae.runtime.distributed import is_main_process


def print_text(text: str) -> None:
    """Print a result from the main process, control characters as escapes.

    A closed output does not end the work.
    """
    if is_main_process() and sys.stdout is not None:
        with suppress(BrokenPipeError):
            sys.stdout.write(printable_lines(text))


def print_error(text: str) -> None:
    """Print an error or a hint from the main process, control characters as escapes."""
    if is_main_process() and sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(printable_lines(text))


def file_name(text: str) -> str:
    """Return a name of a file for a text of any origin, such as the name of data."""
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".-") or "unnamed"


@contextmanager
def any_encoding() -> Iterator[None]:
    """Escape, inside the block, printed characters that the encoding of the output lacks, as for ``sys.stderr``."""
    stream = sys.stdout
    if not isinstance(stream, TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError):  # what could not be written is flushed once more
            stream.reconfigure(errors=before)
