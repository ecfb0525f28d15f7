"""The run folder: complete, written whole or not at all, and checked by hash when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"


class RunFolder:
    """A folder whose files are named in a manifest with their SHA-256.

    Files are written to temporary names and renamed together, the manifest last, while an interrupt from the keyboard
    waits. Nothing in it is ever unpickled.

    Args:
        path: of the folder, which need not exist until it is written to.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __contains__(self, name: str) -> bool:
        return name in self.manifest()

    def manifest(self) -> dict[str, str]:
        """Return the hash of every file by name; empty where there is no run.

        Raises:
            ValueError: if the manifest cannot be read.

        """
        try:
            return dict(json.loads((self.path / MANIFEST).read_text())["files"])
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.path / MANIFEST} is damaged, so that the run cannot be checked") from None

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files and bring the manifest up to date.

        Args:
            files: contents by name; a name may contain a sub-folder.

        Raises:
            ValueError: if the folder cannot be written to.

        """
        hashes = self.manifest() | {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        listing = json.dumps({"files": dict(sorted(hashes.items()))}, indent=2) + "\n"
        contents = {**files, MANIFEST: listing.encode()}
        try:
            for name, content in contents.items():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                _temporary(self.path / name).write_bytes(content)
            with _interrupts_wait():
                for name in contents:
                    os.replace(_temporary(self.path / name), self.path / name)
        except OSError as error:
            raise ValueError(
                f"the run folder {self.path} cannot be written ({error.strerror}); choose another with --folder"
            ) from None

    def read(self, name: str) -> bytes:
        """Return the content of a file, which must be the one that was written.

        Raises:
            ValueError: if there is no run, or the file is missing, cut short or changed.

        """
        manifest = self.manifest()
        if not manifest:
            raise ValueError(f"{self.path} is not a run folder: it has no {MANIFEST}; train one with pyrovae train")
        if name not in manifest:
            raise ValueError(f"the run {self.path} has no {name}")
        try:
            content = (self.path / name).read_bytes()
        except OSError:
            raise ValueError(f"the run {self.path} is incomplete: {name} is missing") from None
        if hashlib.sha256(content).hexdigest() != manifest[name]:
            raise ValueError(
                f"the run {self.path} is damaged: {name} is not the file that was written (its SHA-256 differs from "
                "the manifest's); restore it or train again"
            )
        return content


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold back Ctrl-C until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            raise KeyboardInterrupt
