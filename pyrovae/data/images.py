"""Data from a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyrovae.data.arrays import from_arrays
from pyrovae.data.splits import Data

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def from_folder(
    path: str | Path,
    *,
    name: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    levels: int = 256,
    seed: int = 0,
) -> Data:
    """Read the images of a folder, sorted by name, and split them as `from_arrays` does.

    Grey images become ``(1, H, W)``, others ``(3, H, W)``. Where the images lie in subfolders, one for each class, the
    labels are the ranks of the subfolders' sorted names.

    Args:
        path: folder of png, jpg or bmp files of one size.
        name: of the data; the folder's where None.
        validation: as in `from_arrays`.
        test: as in `from_arrays`.
        levels: number of grey levels, where the files use fewer than 256.
        seed: as in `from_arrays`.

    """
    from PIL import Image

    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"images are read from a folder, but {folder} is not one; for one file use from_file")
    classes = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and _images(sub)]
    files = [file for sub in classes or [folder] for file in _images(sub)]
    if not files:
        raise ValueError(
            f"{folder} holds no image ({', '.join(SUFFIXES)}), neither itself nor its subfolders; check the path"
        )
    if classes and (loose := _images(folder)):
        raise ValueError(
            f"images lie either in {folder} or in its subfolders, but {loose[0].name} lies beside "
            f"{classes[0].name}/; move it into a subfolder"
        )
    arrays: list[NDArray[np.uint8]] = []
    for file in files:
        with Image.open(file) as image:
            arrays.append(pixels(image))
        if arrays[-1].shape != arrays[0].shape:
            raise ValueError(
                f"images have one shape, but {file} has {arrays[-1].shape} and {files[0].name} has "
                f"{arrays[0].shape}; resize or convert it"
            )
    labels = np.array([classes.index(file.parent) for file in files]) if classes else None
    return from_arrays(
        np.stack(arrays),
        labels,
        name=name or folder.resolve().name,
        validation=validation,
        test=test,
        levels=levels,
        seed=seed,
    )


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
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
