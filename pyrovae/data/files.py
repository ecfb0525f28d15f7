"""Data from one file of numbers: npz, npy or csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovae.data.arrays import PARTS, from_arrays, from_splits
from pyrovae.data.splits import Data


def from_file(
    path: str | Path,
    *,
    name: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    levels: int | None = None,
    seed: int = 0,
) -> Data:
    """Read a file of numbers; split it as `from_arrays` does unless it brings its own splits.

    - .npz: ``x_train``, ``x_validation`` and ``x_test``, with or without ``y_train``, ...; or ``x``, with or without
      ``y``; or one array.
    - .npy: one array, ``(N, *x_shape)``.
    - .csv: numbers separated by commas, a datum a line, under one line of column names or none; ``(N, columns)`` in
      torch's default dtype.

    Nothing is unpickled.

    Args:
        path: the file.
        name: of the data; the file's, without its ending, where None.
        validation: as in `from_arrays`.
        test: as in `from_arrays`.
        levels: as in `from_arrays`.
        seed: as in `from_arrays`.

    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"data are read from a file, but {file} is not one; check the path, or use from_folder for images"
        )
    name = name or file.stem
    match file.suffix.lower():
        case ".npz" | ".npy":
            arrays = _arrays(file)
        case ".csv":
            arrays = {"x": _table(file)}
        case suffix:
            raise ValueError(
                f"files of data end in .npz, .npy or .csv, but {file.name} ends in {suffix!r}; "
                f"convert it, or read it yourself and use from_arrays(x)"
            )
    given = [f"x_{part}" in arrays for part in PARTS]
    if all(given):
        train, held_out, tested = ((arrays[f"x_{part}"], arrays.get(f"y_{part}")) for part in PARTS)
        return from_splits(train, held_out, tested, name=name, levels=levels, seed=seed)
    if any(given) or ("x" not in arrays and len(arrays) != 1):
        raise ValueError(
            f"an npz file of data holds x_train, x_validation and x_test, or x, or one array, but {file.name} holds "
            f"{', '.join(arrays) or 'none'}; rename its arrays"
        )
    x = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    return from_arrays(x, arrays.get("y"), name=name, validation=validation, test=test, levels=levels, seed=seed)


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"npy and npz files hold arrays of numbers, but {file} cannot be read ({error}); "
            f"save it anew with np.savez(path, x=x)"
        ) from None


def _table(file: Path) -> NDArray[Any]:
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if lines and not any(_is_number(field) for field in lines[0].split(",")):
        del lines[0]
    if not lines:
        raise ValueError(f"a csv file holds a datum a line, but {file} holds none; check the path")
    try:
        table = np.loadtxt(lines, delimiter=",", ndmin=2, dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"a csv file holds numbers, as many in each line, but in {file} {error}; drop or encode such columns, "
            f"and fill in what is missing"
        ) from None
    return table.astype(torch.empty(0).numpy().dtype)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
