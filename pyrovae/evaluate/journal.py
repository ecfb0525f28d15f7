"""Finished batches of an evaluation in a file, so that an interrupted one goes on where it was."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

logger = logging.getLogger("pyrovae")

SECONDS_BETWEEN_WRITES = 10.0
KEY = "evaluation"


class Journal:
    """The values per datum of the batches that are finished.

    Written now and then under a temporary name and renamed; a file of another evaluation, or a damaged one, is ignored
    and then written over.

    Args:
        path: of the file; None keeps nothing.
        key: what tells one evaluation from another: data, weights, ladder, seed, batches.

    """

    def __init__(self, path: str | Path | None, key: str) -> None:
        self.path, self.key = None if path is None else Path(path), key
        self._parts: list[Mapping[str, Tensor]] = []
        self._written, self._last = 0, time.monotonic()

    def read(self) -> list[dict[str, Tensor]]:
        """Return the values per datum ``(..., B)`` of each finished batch, from the first on."""
        if self.path is None:
            return []
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                if (file.metadata() or {}).get(KEY) != self.key:
                    return []
                values = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, safetensors.SafetensorError):
            return []
        sizes = values.pop("sizes").tolist()
        split = {name: value.split(sizes, -1) for name, value in values.items()}
        self._parts = [{name: parts[i] for name, parts in split.items()} for i in range(len(sizes))]
        self._written = len(sizes)
        return [dict(part) for part in self._parts]

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Take in one more batch, and write if that is some time ago."""
        self._parts.append(part)
        if time.monotonic() - self._last >= SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write what is finished, if there is anything new."""
        if self.path is None or len(self._parts) == self._written:
            return
        sizes = [next(iter(part.values())).shape[-1] for part in self._parts]
        values = {name: torch.cat([part[name] for part in self._parts], -1) for name in self._parts[0]}
        content = safetensors.torch.save(values | {"sizes": torch.tensor(sizes)}, metadata={KEY: self.key})
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, self.path)
        except OSError as error:
            logger.warning("finished batches cannot be kept for another time: %s", error)
            self.path = None
        self._written, self._last = len(self._parts), time.monotonic()

    def remove(self) -> None:
        """Remove the file: the evaluation is finished."""
        if self.path is not None and self.path.parent.is_dir():
            self.path.unlink(missing_ok=True)
