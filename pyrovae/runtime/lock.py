"""Locks between processes, which the kernel releases when their holder dies."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from pyrovae.runtime.atomic_files import NO_FOLLOW, NO_WAIT

SECONDS_BETWEEN_TRIES = 0.01


@contextmanager
def locked(path: Path, work: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock inside the block: a file that names its holder and is locked by the kernel.

    The file is removed at the end. A file that a killed process left is not locked, and is taken over. Where the folder
    cannot be written, the block runs without a lock.

    Args:
        path: of the file.
        work: done under the lock, as in "the run X is being trained".
        patience: seconds to wait for another holder.

    Raises:
        ValueError: if another process or thread holds the lock, or the path is a link or no regular file.

    """
    deadline = time.monotonic() + patience
    while (file := _acquire(path)) is None:
        if time.monotonic() > deadline:
            raise ValueError(f"{work} by {_describe(_holder(path))}; wait until it has ended, or stop it")
        time.sleep(SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        if file >= 0:
            try:
                with suppress(OSError):
                    path.unlink()  # before it is released, or another's file would be removed
            finally:
                os.close(file)


def _acquire(path: Path) -> int | None:
    """Return the descriptor of a file that is now locked, None if another holds it, -1 if there can be no file."""
    while True:
        try:
            file = _open(path)
        except OSError:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise _refusal(path) from None
            return -1
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise _refusal(path)
            if not _flock(file, path):
                os.close(file)
                return None
            if _is_at(file, path):  # its last holder has not removed it meanwhile
                with suppress(OSError):  # as on a full disk: the lock holds without a name
                    os.ftruncate(file, 0)
                    os.write(file, json.dumps(_own_record()).encode())
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _open(path: Path) -> int:
    """Open a file for a lock, one that another user left for reading only."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW | NO_WAIT, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | NO_FOLLOW | NO_WAIT)


def _is_at(file: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _flock(file: int, path: Path) -> bool:
    """Lock an open file; return whether that succeeded."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        else:
            return True
    return not _is_running(_holder(path))


def _own_record() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}


def _holder(path: Path) -> dict[str, Any]:
    """Return what the holder of a lock wrote; nothing if it cannot be read."""
    try:
        holder = json.loads(path.read_text())
        return {name: holder[name] for name in _own_record()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_running(holder: dict[str, Any]) -> bool:
    """Return whether a holder still runs, as far as that can be known from this host."""
    ours = _own_record()
    if not holder or holder == ours:
        return False
    if holder["host"] != ours["host"]:
        return True
    try:
        return psutil.Process(holder["process"]).create_time() == holder["started"]
    except (psutil.Error, TypeError, ValueError):
        return False


def _describe(holder: dict[str, Any]) -> str:
    return f"the process {holder['process']} on the host {holder['host']}" if holder else "another process"


def _refusal(path: Path) -> ValueError:
    return ValueError(f"{path} is a lock, which is a file of its own, but there is a link or no file; remove it")
