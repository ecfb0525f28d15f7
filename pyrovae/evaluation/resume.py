"""What is finished of an evaluation in a file, so that an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyrovae.data import fingerprint
from pyrovae.results.record import from_plain, tensors_of, to_plain
from pyrovae.runtime import replacing
from pyrovae.runtime.distributed import group

logger = logging.getLogger("pyrovae")

R = TypeVar("R")

SECONDS_BETWEEN_WRITES = 10.0
KEY, RECORDS, DIGEST = "evaluation", "records", "sha256"
CHECK, SIZES = "check/", "sizes"


class Journal:
    """The values per datum of the batches that are finished, and the records of the checks that are.

    Batches are written now and then, a check as soon as it is finished, under a temporary name that is then changed. A
    file of another evaluation, or a damaged one, is ignored and then written over. Records are JSON beside the tensors;
    nothing is unpickled. Only the main process has a file.

    As a context manager, it removes the file at the end of a block that raises nothing. A caller of `evaluate` keeps it
    until the result is on disk:

        with Journal("unfinished.safetensors") as journal:
            evaluation = evaluate(model, guide, data, journal=journal)
            write_report("runs/first", evaluation, model=model, guide=guide, data=data)

    Args:
        path: of the file; None keeps nothing.
        key: what tells one evaluation from another: data, weights, ladder, seed, batches; from `evaluate` if left out.

    """

    def __init__(self, path: str | Path | None, key: str = "") -> None:
        self.path = None if path is None or not group().first else Path(path)
        self.start(key)

    def start(self, key: str) -> None:
        """Load the progress of an evaluation."""
        self.key = key
        self._parts: list[dict[str, Tensor]] = []
        self._checks: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, Tensor] = {}  # of the checks
        self._load()
        self._changed, self._warned, self._last = False, False, time.monotonic()

    def __enter__(self) -> Journal:
        """Return the journal."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Remove the file, unless something was raised."""
        if kind is None:
            self.remove()

    def read(self) -> list[dict[str, Tensor]]:
        """Return the values per datum ``(..., B)`` of each finished batch, from the first on."""
        return [dict(part) for part in self._parts]

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Take in one more batch, and write if that is some time ago."""
        self._parts.append(dict(part))
        self._changed = True
        if time.monotonic() - self._last >= SECONDS_BETWEEN_WRITES:
            self.write()

    def found(self, name: str, kind: type[R], *, asked: Mapping[str, Any]) -> R | None:
        """Return what a check found, None where it is not finished or was asked for with other options.

        Args:
            name: of the check.
            kind: class of its record.
            asked: the options, as JSON holds them.

        """
        kept = self._checks.get(name)
        if kept is None or kept["asked"] != asked:
            return None
        prefix = f"{CHECK}{name}/"
        tensors = {k.removeprefix(prefix): v for k, v in self._tensors.items() if k.startswith(prefix)}
        try:
            return from_plain(kind, kept["record"], tensors)
        except ValueError:  # another pyrovae of the same version wrote it
            return None

    def keep(self, name: str, record: Any, *, asked: Mapping[str, Any]) -> None:
        """Take in what a check found, and write."""
        kept = {"asked": dict(asked), "record": to_plain(record)}
        try:
            json.dumps(kept, allow_nan=False)
        except ValueError:  # a number that is not finite is no JSON: such a check starts anew
            return
        prefix = f"{CHECK}{name}/"
        self._checks[name] = kept
        self._tensors = {k: v for k, v in self._tensors.items() if not k.startswith(prefix)}
        self._tensors |= {
            prefix + k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
            for k, v in tensors_of(record).items()
        }
        self._changed = True
        self.write()

    def write(self) -> None:
        """Write what is finished, if there is anything new."""
        if self.path is None or not self._changed:
            return
        sizes = [next(iter(part.values())).shape[-1] for part in self._parts]
        values = {name: torch.cat([part[name] for part in self._parts], -1) for name in self._parts[0]}
        values |= self._tensors | {SIZES: torch.tensor(sizes)}
        records = json.dumps(
            {"names": list(values), "checks": self._checks}, allow_nan=False
        )  # tensors lose their order
        metadata = {KEY: self.key, RECORDS: records, DIGEST: _digest(values, records)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                file.write(safetensors.torch.save(values, metadata=metadata))
            self._changed = False
        except OSError as error:
            if not self._warned:
                logger.warning("what is finished cannot be kept for another time: %s", error)
            self._warned = True
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file, if there is one."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def _load(self) -> None:
        """Read the file, if it is one of this evaluation and whole."""
        if self.path is None:
            return
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get(KEY) != self.key:
                    return
                values = {name: file.get_tensor(name).clone() for name in file.keys()}
        except (OSError, safetensors.SafetensorError):
            return
        records = metadata.get(RECORDS, "")
        if metadata.get(DIGEST) != _digest(values, records):
            return
        kept = json.loads(records)
        self._checks = kept["checks"]
        sizes = values[SIZES].tolist()
        self._parts = [{} for _ in sizes]
        for name in kept["names"]:
            if name.startswith(CHECK):
                self._tensors[name] = values[name]
            elif name != SIZES:
                for part, value in zip(self._parts, values[name].split(sizes, -1), strict=True):
                    part[name] = value


def _digest(values: Mapping[str, Tensor], records: str) -> str:
    """Return the SHA-256 of all that a journal holds."""
    names = sorted(values)
    return hashlib.sha256(f"{names} {fingerprint(*(values[name] for name in names))} {records}".encode()).hexdigest()
