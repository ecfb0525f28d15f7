"""Data from arrays: one array, shuffled and split in three, or three arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.data.splits import Data, Split
from pyrovae.data.transforms import check_levels

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
    are stored as bytes of 2 levels; integers from 0 to 255 as bytes, other integers as int64; floats in torch's default
    dtype. Integers have 2 levels if all are 0 or 1, and bytes 256 if one of them is above 127; smaller ones may be
    counts or have fewer levels, and have levels only if `levels` is given.

    Args:
        x: numbers, ``(N, *x_shape)``.
        labels: numbers, ``(N,)``.
        name: the splits are name/train, name/validation and name/test.
        validation: share of the data, in (0, 1), or a number of data as an integer.
        test: likewise.
        levels: number of values an integer can take, if the rule above does not give it.
        seed: of the shuffle, and of the noise of `Split.fixed`.

    Raises:
        ValueError: if the values are not real numbers, or a split would be empty.

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
    splits = {}
    for part, rows in zip(PARTS, order.tensor_split([num_train, num_train + num_validation]), strict=True):
        labels_of_part = None if whole.labels is None else whole.labels[rows]
        splits[part] = Split(stored[rows], labels=labels_of_part, name=f"{name}/{part}", levels=levels, seed=seed)
    return Data(**splits, name=name)


def from_splits(*parts: tuple[Array, Array | None], name: str, levels: int | None = None, seed: int = 0) -> Data:
    """Make data of three given parts: train, validation and test.

    Each part is x, ``(N, *x_shape)``, and labels, ``(N,)`` or None, stored as by `from_arrays`, integers in one dtype
    and with one number of levels. Bytes, and floats of torch's default dtype, stay in their file if they are mapped
    from it with ``np.load(path, mmap_mode="c")``.
    """
    stored = [store(x, levels=levels) for x, _ in parts]
    numbers = [number for _, number in stored]
    has_int64 = any(x.dtype == torch.int64 for x, _ in stored)
    if levels is None and not has_int64 and (BYTE_LEVELS in numbers or None not in numbers):
        levels = max(number or 0 for number in numbers)
    splits = {}
    for part, (x, _), (_, y) in zip(PARTS, stored, parts, strict=True):
        x = x.long() if has_int64 and x.dtype == torch.uint8 else x
        labels = None if y is None else to_tensor(y)
        splits[part] = Split(x, labels=labels, name=f"{name}/{part}", levels=levels, seed=seed)
    return Data(**splits, name=name)


def store(x: Array, *, levels: int | None) -> tuple[Tensor, int | None]:
    """Return numbers in the dtype in which they are stored, and their number of levels if it is known."""
    stored = to_tensor(x)
    if stored.is_floating_point():
        if levels is not None:
            raise ValueError(
                f"only integers have levels, but received {stored.dtype} with levels={levels}; drop levels="
            )
        return stored.to(torch.get_default_dtype()), None
    if stored.dtype not in (torch.bool, torch.uint8):
        stored = stored.long()
    if levels is not None:
        check_levels(stored, levels=levels)
    low, high = (0, 1) if stored.dtype == torch.bool or not stored.numel() else [int(v) for v in stored.aminmax()]
    fits_bytes = low >= 0 and high <= torch.iinfo(torch.uint8).max
    if levels is None and fits_bytes:
        levels = 2 if high <= 1 else BYTE_LEVELS if high >= BYTE_LEVELS // 2 else None
    return stored.to(torch.uint8 if fits_bytes else torch.int64), levels


def to_tensor(x: Array) -> Tensor:
    """Return real numbers of any shape as a tensor without gradient."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("data must not be a masked array; fill it, and give its mask as a further tensor")
    dtype = x.dtype if isinstance(x, Tensor) else np.asarray(x).dtype
    if dtype.is_complex if isinstance(dtype, torch.dtype) else dtype.kind not in "biuf":
        raise ValueError(f"data are real numbers, but received an array of {dtype}; encode or drop other columns first")
    if isinstance(x, Tensor):
        return x.detach()
    native = np.asarray(x).dtype.newbyteorder("=")
    if isinstance(x, np.memmap) and x.dtype == native and x.flags.writeable and x.flags.c_contiguous:
        return torch.from_numpy(x)
    return torch.from_numpy(np.array(x, dtype=native, order="C"))  # a copy: x may be read-only


def _count(share: float, *, of: int) -> int:
    """Return the number of data of a share."""
    if isinstance(share, int) and share >= 1:
        return share
    if isinstance(share, float) and 0 < share < 1:
        return max(1, round(share * of))
    raise ValueError(
        f"validation and test are shares in (0, 1) or integers of 1 or more, but received {share!r}; try 0.1"
    )
