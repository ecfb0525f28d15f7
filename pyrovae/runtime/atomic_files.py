"""Files that are written completely or not at all, without following links."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows lacks these two flags, and has the third
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name inside the block, and rename it at the end.

    Raises:
        OSError: if the file cannot be written, or the path is a link, a device or a folder.

    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "it is a link, a device or a folder")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    file = temporary.open("xb")
    try:
        with file:
            yield file
            _sync(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_new(contents: Mapping[Path, bytes]) -> None:
    """Write new files, in place of files of a killed process or of links.

    Raises:
        OSError: if a file cannot be written; then all of them are removed.

    """
    try:
        with ExitStack() as stack:
            files = []
            for path, content in contents.items():
                path.unlink(missing_ok=True)
                files.append(stack.enter_context(path.open("xb")))  # this mode does not follow a link
                files[-1].write(content)
            for file in files:  # after all writes, which takes less time
                _sync(file)
    except BaseException:
        for path in contents:
            with suppress(OSError):
                path.unlink()
        raise


def _sync(file: BinaryIO) -> None:
    """Wait until the content of a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def open_regular(path: Path, *, follow: bool) -> BinaryIO | None:
    """Open a regular file for reading; return None if that is impossible.

    Args:
        path: of the file.
        follow: whether the path may be a link.

    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | BINARY | NO_WAIT | (0 if follow else NO_FOLLOW)), "rb")
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    return None
