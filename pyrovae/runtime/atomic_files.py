"""Files that are written completely or not at all, without following links, and locks between processes."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

SECONDS_BETWEEN_TRIES = 0.01  # to get a lock


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, and rename it.

    Raises:
        OSError: if the file cannot be written, or the path is a link, a device or a folder.

    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "it is a link, a device or a folder")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    write_new(temporary, content)
    os.replace(temporary, path)


def write_new(path: Path, content: bytes) -> None:
    """Write a file, in place of one of a killed process or of a link, and wait until it is on the disk.

    Raises:
        OSError: if it cannot be written; then it is removed.

    """
    path.unlink(missing_ok=True)
    try:
        with path.open("xb") as file:  # this mode does not follow a link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, work: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock of the kernel on a file inside the block; the file stays, and is not locked if its holder is killed.

    If the folder cannot be written, or the system has no such locks, the block runs without a lock.

    Args:
        path: of the file, which is empty.
        work: done under the lock, as in "the run X is being trained".
        patience: seconds to wait for another holder.

    Raises:
        ValueError: if another process or thread holds the lock.

    """
    deadline = time.monotonic() + patience
    try:
        file = os.open(path, os.O_RDONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError:
        yield
        return
    try:
        while not _acquire(file):
            if time.monotonic() > deadline:
                raise ValueError(f"{work} by another process; wait until it has ended, or stop it")
            time.sleep(SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(file)


def _acquire(file: int) -> bool:
    """Lock an open file; return whether it is locked now, or the system or file system has no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True
