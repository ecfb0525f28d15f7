"""Progress file that lets an interrupted evaluation resume."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pyrovae.data import fingerprint
from pyrovae.results.record import from_plain, parse_json, tensors_of, to_plain
from pyrovae.runtime import replace_file
from pyrovae.runtime.distributed import group

logger = logging.getLogger("pyrovae")

R = TypeVar("R")

SECONDS_BETWEEN_WRITES = 10.0
KEY, RECORDS, DIGEST = "evaluation", "records", "sha256"
CHECK, SIZES = "check/", "sizes"


class _Records(TypedDict):
    names: list[str]
    checks: dict[str, dict[str, Any]]


class Journal:
    """The statistics of finished batches and the records of finished checks, in a file.

    Batches are written every 10 seconds, a check as soon as it is finished. The file is replaced at once, so that it is
    never half written. A damaged file, or one of another evaluation, is ignored and replaced. Records are JSON beside
    the tensors; nothing is unpickled. Only the main process has a file.

    As a context manager, a journal removes its file at the end of a block that raises nothing. A caller of `evaluate`
    keeps the file in this way until the result is on disk:

        with Journal("unfinished.safetensors") as journal:
            evaluation = evaluate(model, guide, data, journal=journal)
            write_report("runs/first", evaluation, model=model, guide=guide, data=data)

    Args:
        path: path of the file; None keeps everything in memory.
        key: text that differs between evaluations of other data, weights or options; `evaluate` sets it.

    Attributes:
        parts: statistics ``(..., B)`` of each finished batch, in order.

    """

    def __init__(self, path: str | Path | None, key: str = "") -> None:
        self.path = None if path is None or not group().first else Path(path)
        self.start(key)

    def start(self, key: str) -> None:
        """Load the progress of the evaluation with this key."""
        self.key = key
        self.parts: list[dict[str, Tensor]] = []
        self._checks: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {}  # options and record, and its tensors
        self._load()
        self._changed, self._warned, self._last = False, False, time.monotonic()

    def __enter__(self) -> Journal:
        """Return the journal."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Remove the file, unless the block raised an exception."""
        if kind is None:
            self.remove()

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Add the statistics of one batch, and write the file if the last time is long ago."""
        self.parts.append(dict(part))
        self._changed = True
        if time.monotonic() - self._last >= SECONDS_BETWEEN_WRITES:
            self.write()

    def load_record(self, name: str, record: type[R], *, asked: Mapping[str, Any]) -> R | None:
        """Return the record of a check, None if the check is not finished or its options differ.

        Args:
            name: name of the check.
            record: class of the record.
            asked: options of the check, as JSON holds them.

        """
        saved, tensors = self._checks.get(name, ({}, {}))
        if saved.get("asked") != asked:
            return None
        try:
            return from_plain(record, saved["record"], tensors)
        except ValueError:  # written by another pyrovae of the same version
            return None

    def save_record(self, name: str, record: Any, *, asked: Mapping[str, Any]) -> None:
        """Add the record of a check, and write the file; a record that is not strict JSON is left out."""
        saved = {"asked": dict(asked), "record": to_plain(record)}
        try:
            json.dumps(saved, allow_nan=False)
        except ValueError:  # NaN and infinity are not JSON: this check will run again
            return
        copies = {
            label: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for label, tensor in tensors_of(record).items()
        }
        self._checks[name] = saved, copies
        self._changed = True
        self.write()

    def write(self) -> None:
        """Write the file if anything is new; a failure is logged once and tried again later."""
        if self.path is None or not self._changed:
            return
        sizes = [next(iter(part.values())).shape[-1] for part in self.parts]
        values = {name: torch.cat([part[name] for part in self.parts], -1) for name in self.parts[0]}
        values[SIZES] = torch.tensor(sizes)
        for check, (_, tensors) in self._checks.items():
            values |= {f"{CHECK}{check}/{label}": tensor for label, tensor in tensors.items()}
        checks = {check: saved for check, (saved, _) in self._checks.items()}
        records = json.dumps({"names": list(values), "checks": checks}, allow_nan=False)  # names in their order
        metadata = {KEY: self.key, RECORDS: records, DIGEST: _digest(values, records)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, safetensors.torch.save(values, metadata=metadata))
            self._changed = False
        except OSError as error:
            if not self._warned:
                logger.warning("the progress of this evaluation cannot be saved: %s", error)
            self._warned = True
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file if it exists."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def _load(self) -> None:
        """Read the file if it belongs to this evaluation and is complete."""
        if self.path is None or not self.path.is_file():  # reading a pipe would block
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
        try:
            saved = parse_json(_Records, records, source=RECORDS)
            checks: dict[str, Any] = {check: (record, {}) for check, record in saved["checks"].items()}
            sizes = values[SIZES].tolist()
            parts: list[dict[str, Tensor]] = [{} for _ in sizes]
            for name in saved["names"]:
                if name.startswith(CHECK):
                    _, check, label = name.split("/", 2)
                    checks[check][1][label] = values[name]
                elif name != SIZES:
                    for part, value in zip(parts, values[name].split(sizes, -1), strict=True):
                        part[name] = value
        except (ValueError, KeyError, RuntimeError):  # written by another pyrovae
            return
        self.parts, self._checks = parts, checks


def _digest(values: Mapping[str, Tensor], records: str) -> str:
    """Return the SHA-256 of the contents of a journal."""
    names = sorted(values)
    return hashlib.sha256(f"{names} {fingerprint(*(values[name] for name in names))} {records}".encode()).hexdigest()
