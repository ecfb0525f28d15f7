"""Text output of the commands, and file names."""

from __future__ import annotations

import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import torch

from pyrovae.results.tables import WIDTH, printable_lines
from pyrovae.runtime import replace_file
from pyrovae.runtime.distributed import is_main_process

LONGEST = 800  # characters of an error


def text_width() -> int:
    """Return the number of characters of a line: as many as the terminal has, at most `WIDTH`."""
    return min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH


def print_text(text: str) -> None:
    """Print a result; a closed output does not end the work."""
    with suppress(BrokenPipeError):
        _write(sys.stdout, text)


def print_error(text: str) -> None:
    """Print an error or a hint."""
    with suppress(OSError):
        _write(sys.stderr, text)


def _write(stream: TextIO, text: str) -> None:
    """Write on the main process, with escapes for control characters and characters that the encoding lacks."""
    if is_main_process():
        encoding = stream.encoding or "utf-8"
        stream.write(printable_lines(text).encode(encoding, "backslashreplace").decode(encoding))


def file_name(text: str) -> str:
    """Return a file name for any text, such as the name of a data set."""
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".-") or "unnamed"


def write_file(path: Path, content: bytes, option: str) -> None:
    """Write the file of an option; it is replaced as a whole."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another {option}") from None


def error_line(error: Exception) -> str:
    """Return the message of an error of the user on one line; raise any other error again."""
    if isinstance(error, (ValueError, TypeError, OSError)):
        return _first_cause(error)
    of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not of_memory and "can't allocate memory" not in str(error):  # torch has no class for a CPU without memory
        raise error
    return f"there is not enough memory; choose smaller layers or batches ({_first_cause(error)})"


def _first_cause(error: BaseException) -> str:
    """Return the message of an error on one line, without the message that Pyro puts in front."""
    while str(error).startswith("Error while computing") and isinstance(error.__cause__, ValueError):
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
