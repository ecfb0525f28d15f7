"""Data from a file of numbers (npz, npy or csv), or a folder of images."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyrovae.data.arrays import PARTS

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("pyrovae")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
IMAGE_FORMATS = ("PNG", "JPEG", "BMP")  # of Pillow; others, such as EPS, start external programs


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
