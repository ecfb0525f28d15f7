"""Data from arrays, one that is split in three or three arrays, and arrays from files and folders of images."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.data.splits import Data, Split
from pyrovae.data.transforms import check_levels

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("pyrovae")

BYTE_LEVELS = 256
PARTS = ("train", "validation", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP")  # of Pillow; others, such as EPS, start external programs

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
    if isinstance(x, dict):
        raise TypeError(
            f"a data set gives x or (x, y), but this one gave a dictionary of {', '.join(x)}; pick x from it"
        )
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


def read_file(file: Path) -> list[tuple[NDArray[Any], NDArray[Any] | None]]:
    """Return x and labels of a file of numbers, once or for each of train, validation and test; see `load`.

    Nothing is unpickled.

    Raises:
        ValueError: if the file cannot be read, or holds other arrays.

    """
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
    has_part = [f"x_{part}" in arrays for part in PARTS]
    if all(has_part):
        return [(arrays[f"x_{part}"], arrays.get(f"y_{part}")) for part in PARTS]
    if any(has_part) or ("x" not in arrays and len(arrays) != 1):
        raise ValueError(
            f"an npz file of data holds x_train, x_validation and x_test, or x, or one array, but {file.name} holds "
            f"{', '.join(arrays) or 'none'}; rename its arrays"
        )
    return [(arrays["x"] if "x" in arrays else next(iter(arrays.values())), arrays.get("y"))]


def read_folder(folder: Path) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
    """Return the images of a folder, sorted by name, and labels if they lie in subfolders, one for each class.

    Grey images have shape ``(1, H, W)``, others ``(3, H, W)``. Labels are the ranks of the sorted names of subfolders.

    Raises:
        ValueError: if there is no image, or images differ in shape.

    """
    from PIL import Image

    classes = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and _images(sub)]
    files = [file for sub in classes or [folder] for file in _images(sub)]
    if not files:
        raise ValueError(f"{folder} and its subfolders hold no image ({', '.join(IMAGE_SUFFIXES)}); check the path")
    if classes and (loose := _images(folder)):
        raise ValueError(f"{loose[0]} lies beside {classes[0].name}/; move it into a subfolder, its class")
    arrays: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            if not file.is_file():  # reading a pipe would block
                raise IsADirectoryError
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                image.load()
        except Exception as error:  # Pillow raises errors of many types
            raise ValueError(
                f"{file} is not an image that can be read ({type(error).__name__}); leave it out"
            ) from None
        arrays.append(pixels(image))
        if arrays[-1].shape != arrays[0].shape:
            shapes = f"{file} has {arrays[-1].shape} and {files[0].name} has {arrays[0].shape}"
            raise ValueError(f"images have one shape, but {shapes}; resize or convert it")
    return np.stack(arrays), np.array([classes.index(file.parent) for file in files]) if classes else None


def pixels(image: Image) -> NDArray[np.uint8]:
    """Return the bytes of a Pillow image, ``(1, H, W)`` if it is grey, else ``(3, H, W)``, without transparency."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"images have 8 bits a channel, but {getattr(image, 'filename', '') or 'one'} has mode {image.mode}; "
            f"convert it, or read it yourself and use from_arrays(x, levels=65536)"
        )
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[None]
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _images(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name."""
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npy or npz file by name."""
    try:
        with file.open("rb") as stream, warnings.catch_warnings(action="ignore"):  # numpy warns of damaged headers
            loaded = np.load(stream, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # numpy and zipfile raise errors of many types
        raise ValueError(f"{file} cannot be read ({error}); save it anew with np.savez(path, x=x)") from None


def _table(file: Path) -> NDArray[Any]:
    """Return the numbers of a csv file, ``(N, columns)``."""
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if lines and not any(_is_number(field) for field in lines[0].split(",")):
        if lines[0].startswith((",", '"",')):
            logger.warning(
                "the first column of %s has no name; if it numbers the rows, write frame.to_csv(path, index=False)",
                file,
            )
        del lines[0]
    if not lines:
        raise ValueError(f"a csv file holds one datum per line, but {file} holds none; check the path")
    try:
        table = np.loadtxt(lines, delimiter=",", ndmin=2, dtype=np.float64)
    except ValueError as error:
        raise ValueError(
            f"a csv file holds numbers, as many in each line, but in {file} {error}; drop or encode these columns, "
            f"and fill in missing values"
        ) from None
    return table.astype(torch.empty(0).numpy().dtype)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
