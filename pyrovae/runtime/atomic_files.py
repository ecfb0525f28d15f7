"""Files that are written completely or not at all, without following links, and locks between processes."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows lacks it
SECONDS_BETWEEN_TRIES = 0.01  # to get a lock


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
    with suppress(OSError):
        if path.is_file() and (follow or not path.is_symlink()):
            return path.open("rb")
    return None


@contextmanager
def locked(path: Path, work: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock of the kernel on a file inside the block, and remove the file at the end.

    The file of a killed process is not locked and is taken over. If the folder cannot be written, or the system has no
    such locks, the block runs without a lock.

    Args:
        path: of the file.
        work: done under the lock, as in "the run X is being trained".
        patience: seconds to wait for another holder.

    Raises:
        ValueError: if another process or thread holds the lock.

    """
    deadline = time.monotonic() + patience
    while True:
        try:
            file = _acquire(path)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(f"{work} by another process; wait until it has ended, or stop it") from None
            time.sleep(SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                path.unlink()  # before the release, which lets another process make its own file
            os.close(file)


def _acquire(path: Path) -> int | None:
    """Return the descriptor of the locked file, None if there can be no lock.

    Raises:
        BlockingIOError: if another process or thread holds the lock.

    """
    while fcntl is not None:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.lstat()):  # otherwise its last holder has removed it meanwhile
                    return file
        except OSError as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise
            return None  # a file system without locks
        os.close(file)
    return None
