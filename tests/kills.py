"""The states in which a killed process can leave a folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

State = dict[str, bytes | None]  # content by path; None for a folder

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_observers: list[Callable[[Path | None], None]] = []


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _observers or event not in CHANGES:
        return
    if event != "open":
        _observers[-1](None)
    elif not isinstance(args[0], int) and args[2] & os.O_ACCMODE != os.O_RDONLY:
        _observers[-1](Path(os.fsdecode(args[0])).absolute() if args[2] & os.O_TRUNC else None)


sys.addaudithook(_hook)  # for good, as Python has no way to remove it


def state_of(folder: Path) -> State:
    """Return what a folder holds."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def states(folder: Path, work: Callable[[], object]) -> list[State]:
    """Return what the folder holds before each file operation of some work, and at its end, each state once.

    Between two operations content is written, of which a killed process may have written a half.
    """
    found: list[State] = []

    def observe(emptied: Path | None) -> None:
        _observers.append(lambda path: None)  # reading below is no operation of theirs
        try:
            now = state_of(folder)
        finally:
            _observers.pop()
        before = found[-1] if found else now
        for name, content in now.items():
            if content and content not in before.values():
                found.append(now | {name: content[: len(content) // 2]})
        found.append(now)
        if emptied is not None and now.get(name := os.path.relpath(emptied, folder)):
            found.append(now | {name: b""})

    _observers.append(observe)
    try:
        work()
    finally:
        _observers.pop()
    observe(None)
    return [state for number, state in enumerate(found) if state not in found[:number]]


def restore(state: State, folder: Path) -> Path:
    """Make a folder that holds a state, in place of one that is there, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in state.items():
        path = folder / name
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)
    return folder
