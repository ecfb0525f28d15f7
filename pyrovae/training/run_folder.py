"""Run folder: sets of files that are replaced together and checked by hash when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict, cast

from pyrovae.results.record import LARGEST_JSON, parse_json
from pyrovae.runtime import locked, write_new

MANIFEST = "manifest.json"
NAME = re.compile(r"[^./\\\0][^/\\\0]*(/[^./\\\0][^/\\\0]*)*")  # name of a file, in sub-folders or not
TRIES = 1000  # attempts to read files that another process is replacing
PATIENCE = 60.0  # seconds to wait for another process that writes


class _Files(TypedDict):
    files: dict[str, str]


class RunFolder:
    """A folder whose files are named in a manifest with their SHA-256. Nothing in it is ever unpickled.

    A write replaces a set of files as one. It writes all files under temporary names, then the manifest under a
    temporary name. From that moment the new files count. Each is then renamed, the manifest last. Readers accept a
    file of the new manifest under either name. The next write finishes the renames of a write that was killed or
    interrupted. Temporary files without a complete manifest do not count and are overwritten.

    Args:
        path: of the folder, which need not exist until it is written to.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __contains__(self, name: str) -> bool:
        return name in self.manifest()

    def manifest(self) -> dict[str, str]:
        """Return the hash of every file by name; an empty dictionary if there is no run.

        Raises:
            ValueError: if the manifest cannot be read, or names files outside the folder.

        """
        return next(iter(self._manifests()), {})

    @contextmanager
    def lock(self, work: str) -> Iterator[None]:
        """Exclude other processes from the same work inside the block; they can still read or do other work.

        Args:
            work: as in "the run is being trained".

        Raises:
            ValueError: if another process does this work.

        """
        with locked(self.path / f".{work}.lock", f"the run {self.path} is being {work}"):
            yield

    def create(self) -> None:
        """Make the folder if it does not exist.

        Raises:
            ValueError: if that is impossible.

        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from None

    def path_of(self, name: str) -> Path:
        """Return the path of a file that may be written.

        Raises:
            ValueError: if the name leads out of the folder, or a sub-folder is a link.

        """
        if not NAME.fullmatch(name):
            raise ValueError(f"files of a run have names like report/index.html, but received {name!r}")
        path = self.path / name
        for folder in path.relative_to(self.path).parents:
            if folder.name and (self.path / folder).is_symlink():
                raise self._not_writable(OSError(errno.ELOOP, f"{folder} is a link, which is not followed"))
        return path

    def write(self, files: Mapping[str, bytes]) -> None:
        """Replace a set of files as one.

        Args:
            files: contents by name; a name may contain sub-folders.

        Raises:
            ValueError: if the folder cannot be written to, or another process writes for a minute.

        """
        paths = [self.path_of(name) for name in (*files, MANIFEST)]
        try:
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path / ".writing.lock", f"{self.path} is being written", patience=PATIENCE):
                self._finish_renames()
                hashes = self.manifest() | {name: _hash(content) for name, content in files.items()}
                manifest = json.dumps({"files": dict(sorted(hashes.items()))}, indent=2) + "\n"
                for path, content in zip(paths, (*files.values(), manifest.encode()), strict=True):
                    write_new(_temporary(path), content)  # the manifest is last: from then on the new files count
                _rename(paths)
        except OSError as error:
            raise self._not_writable(error) from None

    def _finish_renames(self) -> None:
        """Finish the renames of a killed process, or remove its manifest if one of its files is lost."""
        path = self.path / MANIFEST
        pending, current = self._hashes(_temporary(path)), self._hashes(path)
        changed = [name for name, digest in pending.items() if current.get(name) != digest]
        if any(self._content(name, pending[name]) is None for name in changed):
            _temporary(path).unlink()
        elif pending:
            _rename([*map(self.path_of, changed), path])

    def _not_writable(self, error: OSError) -> ValueError:
        return ValueError(f"the run folder {self.path} cannot be written ({error.strerror}); choose another folder")

    def read(self, name: str) -> bytes:
        """Return the content of a file, as `read_files` does."""
        return self.read_files([name])[name]

    def read_files(
        self, names: Iterable[str], *, optional: Iterable[str] = (), remedy: str = "train again"
    ) -> dict[str, bytes]:
        """Return the contents of files under one manifest, even while another process writes.

        Args:
            names: of files.
            optional: names of files that are skipped if the run does not have them.
            remedy: instruction for a file that is missing or changed, as an imperative.

        Raises:
            ValueError: if there is no run, or a file is missing, cut short or changed.

        """
        names, optional = list(names), set(optional)
        manifests = self._manifests()
        if not manifests:
            inside = len(list(self.path.glob(f"*/{MANIFEST}")))
            remedy = "train one with pyrovae train" + (f" --folder {self.path}" if self.path.is_dir() else "")
            if inside:
                remedy = f"it holds {inside} run{'s' * (inside > 1)}; name them: {self.path}/*"
            raise ValueError(f"{self.path} is not a run folder: it has no {MANIFEST}; {remedy}")
        for _ in range(TRIES):
            for hashes in manifests:
                wanted = [*names, *(optional & hashes.keys())]
                contents = {name: self._content(name, hashes.get(name, "")) for name in wanted}
                if None not in contents.values():
                    return cast(dict[str, bytes], contents)
            before, manifests = manifests, self._manifests()
            if manifests == before:  # no other process writes
                break
        name = next(name for name, content in contents.items() if content is None)
        if name not in hashes:
            raise ValueError(f"the run {self.path} has no {name}; {remedy}")
        fault = "not the file that was written (its SHA-256 differs from the manifest's)"
        fault = fault if (self.path / name).is_file() else "missing"
        raise ValueError(f"the run {self.path} is damaged: {name} is {fault}; restore it or {remedy}")

    def _content(self, name: str, digest: str) -> bytes | None:
        """Return the content of the file with a hash, which may have its temporary name still; None if there is none.

        The temporary name comes first, since another process may rename the file in between.
        """
        for path in (_temporary(self.path / name), self.path / name):
            content = _read(path)
            if content is not None and _hash(content) == digest:
                return content
        return None

    def _manifests(self) -> list[dict[str, str]]:
        """Return the hashes in the manifest that is being put in place, if it exists, then in the one in place."""
        path = self.path / MANIFEST
        return [hashes for hashes in (self._hashes(_temporary(path)), self._hashes(path)) if hashes]

    def _hashes(self, path: Path) -> dict[str, str]:
        """Return the hashes in a manifest; an empty dictionary if it does not exist, or is temporary and incomplete."""
        content = _read(path, LARGEST_JSON + 1)
        if content is None:
            return {}
        try:
            hashes = parse_json(_Files, content, source=MANIFEST)["files"]
        except ValueError as error:
            if path.name != MANIFEST:
                return {}
            raise ValueError(f"{path} is damaged, so that the run cannot be checked: {error}") from None
        for name in hashes:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{path} is damaged: it names {name!r}, which is not a file of the run; do not use this folder"
                )
        return hashes


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _read(path: Path, most: int = -1) -> bytes | None:
    """Return the first bytes of a regular file; None if it cannot be read."""
    with suppress(OSError):
        if path.is_file():  # reading a pipe would block
            with path.open("rb") as file:
                return file.read(most)
    return None


def _rename(paths: Iterable[Path]) -> None:
    """Give the files of a set their names, the manifest last."""
    for path in paths:
        with suppress(FileNotFoundError):  # a killed process has renamed it
            os.replace(_temporary(path), path)
