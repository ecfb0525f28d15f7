"""The run folder: sets of files that are replaced together, and checked by hash when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from pyrovae.runtime import locked, open_regular, write_new
from pyrovae.runtime.context import interrupts_wait

MANIFEST = "manifest.json"
NAME = re.compile(r"[^./\\\0][^/\\\0]*(/[^./\\\0][^/\\\0]*)*")  # of a file, in sub-folders or not
TRIES = 1000  # to read files that another process is replacing
PATIENCE = 60.0  # seconds to wait for another process that writes


class Manifest(NamedTuple):
    """The content of a manifest.

    Attributes:
        hashes: SHA-256 of each file by name.
        staged: whether some of the files may still have their temporary names.

    """

    hashes: dict[str, str]
    staged: bool


class RunFolder:
    """A folder whose files are named in a manifest with their SHA-256. Nothing in it is ever unpickled.

    A write replaces a set of files as one. All are written under temporary names, then the manifest is. From that
    moment the new files count, and each is renamed, the manifest last. Readers accept a file of the new manifest under
    either name. The next write finishes the renames of a killed process. Files under temporary names without a whole
    manifest do not count, and are overwritten.

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
            ValueError: if the manifest cannot be read, or names files outside the folder.

        """
        listings = self._listings()
        return listings[0].hashes if listings else {}

    @contextmanager
    def lock(self, work: str) -> Iterator[None]:
        """Refuse the same work to other processes inside the block; reading and other work go on.

        Args:
            work: as in "the run is being trained".

        Raises:
            ValueError: if another process does this work; the text names it and its host.

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
            raise self._refusal(error) from None

    def path_of(self, name: str) -> Path:
        """Return the path of a file that may be written.

        Raises:
            ValueError: if the name leads out of the folder, a sub-folder is a link, or a folder takes the place.

        """
        if not NAME.fullmatch(name):
            raise ValueError(f"files of a run have names like report/index.html, but received {name!r}")
        path = self.path / name
        for folder in path.relative_to(self.path).parents:
            if folder.name and (self.path / folder).is_symlink():
                raise self._refusal(OSError(errno.ELOOP, f"{folder} is a link, which is not followed"))
        if path.is_dir() and not path.is_symlink():
            raise self._refusal(OSError(errno.EISDIR, f"{name} is a folder"))
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
                self._finish()
                hashes = self.manifest() | {name: _hash(content) for name, content in files.items()}
                listing = json.dumps({"files": dict(sorted(hashes.items()))}, indent=2) + "\n"
                *staged, pending = map(_temporary, paths)
                write_new(dict(zip(staged, files.values(), strict=True)))
                write_new({pending: listing.encode()})  # from here on the new files count
                with interrupts_wait():
                    for path in paths:
                        os.replace(_temporary(path), path)
        except OSError as error:
            raise self._refusal(error) from None

    def _refusal(self, error: OSError) -> ValueError:
        return ValueError(f"the run folder {self.path} cannot be written ({error.strerror}); choose another folder")

    def read(self, name: str, *, remedy: str = "train again") -> bytes:
        """Return the content of a file, as `read_files` does."""
        return self.read_files([name], remedy=remedy)[name]

    def read_files(
        self, names: Iterable[str], *, optional: Iterable[str] = (), remedy: str = "train again"
    ) -> dict[str, bytes]:
        """Return the contents of files under one manifest, also while another process writes.

        Args:
            names: of files.
            optional: names of files that are left out if the run does not have them.
            remedy: instruction for a file that is missing or changed, as an imperative.

        Raises:
            ValueError: if there is no run, or a file is missing, cut short or changed.

        """
        names, optional = list(names), set(optional)
        listings = self._listings()
        if not listings:
            raise ValueError(
                f"{self.path} is not a run folder: it has no {MANIFEST}; train one with pyrovae train"
                + (f" --folder {self.path}" if self.path.is_dir() else "")
            )
        for _ in range(TRIES):
            for listing in listings:
                try:
                    return self._read_under(listing, [*names, *(optional & listing.hashes.keys())], remedy)
                except ValueError as error:
                    failure = error
            before, listings = listings, self._listings()
            if listings == before:  # nobody writes
                break
        raise failure

    def _read_under(self, listing: Manifest, names: list[str], remedy: str) -> dict[str, bytes]:
        """Return the contents of files whose hashes a manifest has; all are opened before the first is read."""
        with ExitStack() as stack:
            opened = {}
            for name in names:
                if name not in listing.hashes:
                    raise ValueError(f"the run {self.path} has no {name}; {remedy}")
                path = self.path / name
                staged = open_regular(_temporary(path), follow=False) if listing.staged else None
                opened[name] = [
                    stack.enter_context(file) for file in (staged, open_regular(path, follow=True)) if file is not None
                ]
            contents = {}
            for name, files in opened.items():
                if not files:
                    raise ValueError(f"the run {self.path} is incomplete: {name} is missing; restore it or {remedy}")
                found = (content for file in files if _hash(content := file.read()) == listing.hashes[name])
                if (whole := next(found, None)) is None:
                    raise ValueError(
                        f"the run {self.path} is damaged: {name} is not the file that was written (its SHA-256 "
                        f"differs from the manifest's); restore it or {remedy}"
                    )
                contents[name] = whole
            return contents

    def _listings(self) -> list[Manifest]:
        """Return the manifest that is being put in place, if there is one, and the one that is in place."""
        found = [
            (self._hashes(_temporary(self.path / MANIFEST)), True),
            (self._hashes(self.path / MANIFEST), False),
        ]
        return [Manifest(hashes, staged) for hashes, staged in found if hashes]

    def _hashes(self, path: Path) -> dict[str, str]:
        """Return the hashes in a manifest; none if there is no manifest, or only a part that a killed process wrote."""
        file = open_regular(path, follow=path.name == MANIFEST)
        if file is None:
            return {}
        try:
            with file:
                hashes = dict(json.loads(file.read())["files"])
        except (ValueError, KeyError, TypeError):
            if path.name != MANIFEST:
                return {}
            raise ValueError(f"{path} is damaged, so that the run cannot be checked") from None
        for name in hashes:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{path} is damaged: it names {name!r}, which is no file of the run folder; do not use this folder"
                )
        return hashes

    def _finish(self) -> None:
        """Finish the renames of a killed process, or drop its manifest if one of its files is lost."""
        pending, current = (self._hashes(path) for path in (_temporary(self.path / MANIFEST), self.path / MANIFEST))
        if not pending:
            return
        try:
            changed = [name for name, digest in pending.items() if current.get(name) != digest]
            self._read_under(Manifest(pending, staged=True), changed, "")
        except ValueError:
            _temporary(self.path / MANIFEST).unlink()
            return
        for name, digest in pending.items():
            path = self.path_of(name)
            file = open_regular(_temporary(path), follow=False)
            if file is None:
                continue
            with file:
                whole = _hash(file.read()) == digest
            if whole:
                os.replace(_temporary(path), path)
        os.replace(_temporary(self.path / MANIFEST), self.path / MANIFEST)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
