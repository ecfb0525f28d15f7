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

    The file is removed at the end. The file of a killed process is not locked and is taken over. If the folder cannot
    be written, the block runs without a lock.

    Args:
        path: of the file.
        work: done under the lock, as in "the run X is being trained".
        patience: seconds to wait for another holder.

    Raises:
        ValueError: if another process or thread holds the lock, or the path is a link or not a regular file.

    """
    deadline = time.monotonic() + patience
    while True:
        try:
            file = _acquire(path)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ValueError(f"{work} by {_name(_holder(path))}; wait until it has ended, or stop it") from None
            time.sleep(SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        if file is not None:
            try:
                with suppress(OSError):
                    path.unlink()  # before the release, which lets another process make its own file
            finally:
                os.close(file)


def _acquire(path: Path) -> int | None:
    """Return the descriptor of the locked file, None if no file can be made.

    Raises:
        BlockingIOError: if another process or thread holds the lock.
        ValueError: if the path is a link or not a regular file.

    """
    invalid = ValueError(f"{path} must be a lock file of its own, but is a link or not a regular file; remove it")
    while True:
        try:
            file = _open(path)
        except OSError:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise invalid from None
            return None
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise invalid
            _lock(file, path)
            if _is_at(file, path):  # otherwise its last holder has removed it meanwhile
                with suppress(OSError):  # on a full disk the lock holds without a name
                    os.ftruncate(file, 0)
                    os.write(file, json.dumps(_own_record()).encode())
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _open(path: Path) -> int:
    """Open a file for a lock; for reading only if it belongs to another user."""
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


def _lock(file: int, path: Path) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: if another process or thread holds the lock.

    """
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        else:
            return
    if _is_running(_holder(path)):
        raise BlockingIOError


def _own_record() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}


def _holder(path: Path) -> dict[str, Any]:
    """Return the record of the holder of a lock; an empty dictionary if it cannot be read."""
    try:
        holder = json.loads(path.read_text())
        return {name: holder[name] for name in _own_record()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_running(holder: dict[str, Any]) -> bool:
    """Return whether a holder still runs; a process on another host counts as running."""
    ours = _own_record()
    if not holder or holder == ours:
        return False
    if holder["host"] != ours["host"]:
        return True
    try:
        return psutil.Process(holder["process"]).create_time() == holder["started"]
    except (psutil.Error, TypeError, ValueError):
        return False


def _name(holder: dict[str, Any]) -> str:
    return f"the process {holder['process']} on the host {holder['host']}" if holder else "another process"
