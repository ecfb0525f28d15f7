"""Files that are written whole or not at all, without following links."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither of these flags, but one for files that are not text
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name inside the block, and rename it at the end.

    Raises:
        OSError: if the file cannot be written, or its place is taken by a link, a device or a folder.

    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "its place is taken by a link, a device or a folder")
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
    """Write new files in place of those that a killed process left, or of links.

    Raises:
        OSError: if a file cannot be written; then none of them stays.

    """
    try:
        with ExitStack() as stack:
            files = []
            for path, content in contents.items():
                path.unlink(missing_ok=True)
                files.append(stack.enter_context(path.open("xb")))  # which does not follow a link either
                files[-1].write(content)
            for file in files:  # after all are written, which takes less time
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
    """Open a file for reading; return None if there is no regular file that can be read.

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
