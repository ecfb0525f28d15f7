"""Data from arrays: shuffled once and split in three, or in three parts already."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.data.splits import Data, Split

BYTE_LEVELS = 256
PARTS = ("train", "validation", "test")

Array = Tensor | NDArray[Any]


def from_arrays(
    x: Array,
    labels: Array | None = None,
    *,
    name: str = "arrays",
    validation: float = 0.1,
    test: float = 0.1,
    levels: int | None = None,
    seed: int = 0,
) -> Data:
    """Shuffle data by the seed and split them in three.

    Shapes stay as given: an array ``(N, H, W)`` has data of shape ``(H, W)``, and no channel axis is added. Booleans
    are stored as bytes of 2 levels; integers from 0 to 255 as bytes, other integers as int64, floats as they are.
    Integers have 2 levels if all are 0 or 1, and bytes 256 if one of them is above 127; smaller ones may be counts or
    of fewer levels, and have levels only if `levels` says so.

    Args:
        x: numbers, ``(N, *x_shape)``.
        labels: numbers, ``(N,)``.
        name: the splits are name/train, name/validation and name/test.
        validation: share of the data, in (0, 1), or a number of data as an integer.
        test: likewise.
        levels: number of values an integer can take, where it is not as above.
        seed: of the shuffle, and of the noise of `Split.fixed`.

    """
    stored, levels = store(x, levels=levels)
    whole = Split(stored, labels=None if labels is None else to_tensor(labels), name=name, levels=levels, seed=seed)
    num_validation = _count(validation, of=len(whole))
    num_test = _count(test, of=len(whole))
    num_train = len(whole) - num_validation - num_test
    if num_train < 1:
        raise ValueError(
            f"{name}: train, validation and test need a datum each, but {len(whole)} data with validation={validation} "
            f"and test={test} leave {max(0, num_train)} to train on; give more data or smaller shares"
        )
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed)).to(stored.device)
    splits = (
        Split(
            stored[rows],
            labels=None if whole.labels is None else whole.labels[rows],
            name=f"{name}/{part}",
            levels=levels,
            seed=seed,
        )
        for part, rows in zip(PARTS, order.tensor_split([num_train, num_train + num_validation]), strict=True)
    )
    return Data(**dict(zip(PARTS, splits, strict=True)), name=name)


def from_splits(
    train: tuple[Array, Array | None],
    validation: tuple[Array, Array | None],
    test: tuple[Array, Array | None],
    *,
    name: str,
    levels: int | None = None,
    seed: int = 0,
) -> Data:
    """Make data of three given parts, each a pair of x, ``(N, *x_shape)``, and labels, ``(N,)``, or None.

    They are stored as `from_arrays` stores one array, integers alike in all three. Bytes, and floats of torch's default
    dtype, stay in their file where they are mapped from it with ``np.load(path, mmap_mode="c")``.
    """
    parts = (train, validation, test)
    kept = [store(x, levels=levels) for x, _ in parts]
    counts = [count for _, count in kept]
    common = max(count or 0 for count in counts) if None not in counts or BYTE_LEVELS in counts else None
    wide = any(x.dtype == torch.int64 for x, _ in kept)
    common = None if wide and levels is None else common
    splits = (
        Split(
            x.long() if wide and x.dtype == torch.uint8 else x,
            labels=None if labels is None else to_tensor(labels),
            name=f"{name}/{part}",
            levels=common,
            seed=seed,
        )
        for part, (_, labels), (x, _) in zip(PARTS, parts, kept, strict=True)
    )
    return Data(**dict(zip(PARTS, splits, strict=True)), name=name)


def store(x: Array, *, levels: int | None) -> tuple[Tensor, int | None]:
    """Return numbers as they are kept, and how many values they can take where that is known."""
    stored = to_tensor(x)
    if stored.is_floating_point():
        if levels is not None:
            raise ValueError(
                f"only integers have levels, but received {stored.dtype} with levels={levels}; drop levels="
            )
        return stored.to(torch.get_default_dtype()), None  # that of networks
    if stored.dtype not in (torch.bool, torch.uint8):
        stored = stored.long()
    low, high = (0, 1) if stored.dtype == torch.bool or not stored.numel() else [int(v) for v in stored.aminmax()]
    bytes_do = low >= 0 and high <= torch.iinfo(torch.uint8).max
    if levels is None and bytes_do:
        levels = 2 if high <= 1 else BYTE_LEVELS if high >= BYTE_LEVELS // 2 else None
    elif levels is not None and not (low >= 0 and high < levels):
        raise ValueError(
            f"levels={levels} means integers from 0 to {levels - 1}, but received {low} to {high}; "
            f"give the number of levels that the data have"
        )
    return stored.to(torch.uint8 if bytes_do else torch.int64), levels


def to_tensor(x: Array) -> Tensor:
    """Return numbers, of any shape, as a tensor without gradient."""
    dtype = x.dtype if isinstance(x, Tensor) else np.asarray(x).dtype
    if dtype.is_complex if isinstance(dtype, torch.dtype) else dtype.kind not in "biuf":
        raise ValueError(
            f"data are real numbers, but received an array of {dtype}; encode them as integers or floats first"
        )
    if isinstance(x, Tensor):
        return x.detach()
    native = np.asarray(x).dtype.newbyteorder("=")
    if isinstance(x, np.memmap) and x.dtype == native and x.flags.writeable and x.flags.c_contiguous:
        return torch.from_numpy(x)
    return torch.from_numpy(np.array(x, dtype=native, order="C"))  # a copy: x may be read-only


def _count(share: float, *, of: int) -> int:
    if isinstance(share, int) and share >= 1:
        return share
    if isinstance(share, float) and 0 < share < 1:
        return max(1, round(share * of))
    raise ValueError(
        f"validation and test are shares in (0, 1) or integers of 1 or more, but received {share}; try 0.1"
    )
