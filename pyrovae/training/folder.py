"""The run folder: complete, written whole or not at all, and checked by hash when it is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pyrovae.sandbox import interrupts_wait

MANIFEST = "manifest.json"
CLAIM = ".claimed"


class RunFolder:
    """A folder whose files are named in a manifest with their SHA-256.

    Files are written to temporary names and renamed together, the manifest last, while an interrupt from the keyboard
    waits; what a killed process left half renamed is finished by the next one. Nothing in it is ever unpickled.

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

    def claim(self) -> None:
        """Make the folder this process's own before the first write.

        Raises:
            ValueError: if another process did so first, or it cannot be made.

        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                (self.path / CLAIM).open("x").close()
                return
        except OSError as error:
            raise self._refusal(error) from None
        raise ValueError(
            f"{self.path} is taken by another run that has just started there; choose another folder, or remove it"
        )

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files and bring the manifest up to date.

        Args:
            files: contents by name; a name may contain a sub-folder.

        Raises:
            ValueError: if the folder cannot be written to.

        """
        self._finish()
        hashes = self.manifest() | {name: _hash(content) for name, content in files.items()}
        listing = json.dumps({"files": dict(sorted(hashes.items()))}, indent=2) + "\n"
        contents = {**files, MANIFEST: listing.encode()}
        try:
            for name, content in contents.items():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                _temporary(self.path / name).write_bytes(content)
            with interrupts_wait():
                for name in contents:
                    _put_in_place(self.path / name)
        except OSError as error:
            raise self._refusal(error) from None
        (self.path / CLAIM).unlink(missing_ok=True)

    def _refusal(self, error: OSError) -> ValueError:
        return ValueError(f"the run folder {self.path} cannot be written ({error.strerror}); choose another folder")

    def read(self, name: str, *, remedy: str = "train again") -> bytes:
        """Return the content of a file, which must be the one that was written.

        Args:
            name: of the file.
            remedy: what to do where it is not, as an imperative.

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
            raise ValueError(f"the run {self.path} is incomplete: {name} is missing; restore it or {remedy}") from None
        if _hash(content) == manifest[name]:
            return content
        if self._finish():
            return self.read(name, remedy=remedy)
        raise ValueError(
            f"the run {self.path} is damaged: {name} is not the file that was written (its SHA-256 differs from the "
            f"manifest's); restore it or {remedy}"
        )

    def _finish(self) -> bool:
        """Finish what a process that was killed while renaming left behind; tell whether there was anything.

        The temporary manifest is written after all other temporary files, so that it speaks of whole ones.
        """
        try:
            promised = json.loads(_temporary(self.path / MANIFEST).read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        for name, digest in promised.items():
            waiting = _temporary(self.path / name)
            if waiting.exists() and _hash(waiting.read_bytes()) == digest:
                _put_in_place(self.path / name)
        _put_in_place(self.path / MANIFEST)
        return True


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _put_in_place(path: Path) -> None:
    """Rename a temporary file, unless another process has done so already."""
    with suppress(FileNotFoundError):
        os.replace(_temporary(path), path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
