"""Text output of the commands, and file names."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from pyrovae.results.tables import printable_lines
from pyrovae.runtime import replacing
from pyrovae.runtime.distributed import is_main_process


def print_text(text: str) -> None:
    """Print a result on the main process, control characters as escapes; a closed output does not end the work."""
    if is_main_process() and sys.stdout is not None:
        with suppress(BrokenPipeError):
            sys.stdout.write(printable_lines(text))


def print_error(text: str) -> None:
    """Print an error or a hint on the main process, control characters as escapes."""
    if is_main_process() and sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(printable_lines(text))


def file_name(text: str) -> str:
    """Return a file name for any text, such as the name of a data set."""
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".-") or "unnamed"


@contextmanager
def writing(path: Path, option: str) -> Iterator[BinaryIO]:
    """Write the file of an option inside the block; it is replaced as a whole at the end.

    Raises:
        ValueError: if the file cannot be written; the text names the option.

    """
    try:
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another {option}") from None


@contextmanager
def any_encoding() -> Iterator[None]:
    """Escape printed characters that the encoding of the output lacks, as ``sys.stderr`` does, inside the block."""
    stream = sys.stdout
    if not isinstance(stream, TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError):  # text that could not be written is flushed once more
            stream.reconfigure(errors=before)
