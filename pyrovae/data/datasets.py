"""Data sets by name, from torch, and from any object that holds numbers."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrovae.data.arrays import Array, from_arrays, from_splits, pixels, read_file, read_folder, store, to_tensor
from pyrovae.data.splits import Data, Split
from pyrovae.data.transforms import Form
from pyrovae.runtime.annotations import PositiveInt, checked

logger = logging.getLogger("pyrovae")

NAMES = ("digits", "mnist", "fashion_mnist", "kmnist")
Source = str | Path | Array | tuple[Array, Array] | Dataset[Any] | DataLoader[Any] | list[Any] | Data


@checked
def digits(*, seed: int = 0) -> Data:
    """Load the 1797 handwritten digits that scikit-learn contains, without a network.

    Bytes of 17 levels, ``(1, 8, 8)``; 1297 for training, 200 for validation, 300 for the test.

    *Optical recognition of handwritten digits (Alpaydin, Kaynak 1998)*, https://doi.org/10.24432/C50P49

    Args:
        seed: of the shuffle, and of the noise of `Split.fixed`.

    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    return from_arrays(x, bunch.target, name="digits", validation=200, test=300, levels=17, seed=seed)


@checked
def mnist(
    *, root: str | Path | None = None, download: bool = True, num_validation: PositiveInt = 10_000, seed: int = 0
) -> Data:
    """Load MNIST: 60,000 and 10,000 handwritten digits, bytes of 256 levels, ``(1, 28, 28)``.

    *Gradient-based learning applied to document recognition (LeCun, Bottou, Bengio, Haffner 1998)*,
    https://doi.org/10.1109/5.726791

    Args:
        root: the folder that holds MNIST/raw; if None, the environment variable PYROVAE_DATA, else ~/.cache/pyrovae.
        download: whether to download a missing copy.
        num_validation: number of training images, the last ones, that are used for validation.
        seed: of the noise of `Split.fixed`; the splits do not depend on it.

    Raises:
        ValueError: if there is no copy and it cannot be downloaded.

    """
    return _idx("MNIST", "mnist", root=root, download=download, num_validation=num_validation, seed=seed)


@checked
def fashion_mnist(
    *, root: str | Path | None = None, download: bool = True, num_validation: PositiveInt = 10_000, seed: int = 0
) -> Data:
    """Load Fashion-MNIST: clothing, in the format of MNIST; arguments as in `mnist`, the folder FashionMNIST/raw.

    *Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms (Xiao, Rasul, Vollgraf 2017)*,
    https://arxiv.org/abs/1708.07747
    """
    return _idx("FashionMNIST", "fashion_mnist", root=root, download=download, num_validation=num_validation, seed=seed)


@checked
def kmnist(
    *, root: str | Path | None = None, download: bool = True, num_validation: PositiveInt = 10_000, seed: int = 0
) -> Data:
    """Load Kuzushiji-MNIST: cursive Japanese, in the format of MNIST; arguments as in `mnist`, the folder KMNIST/raw.

    *Deep learning for classical Japanese literature (Clanuwat et al. 2018)*, https://arxiv.org/abs/1812.01718
    """
    return _idx("KMNIST", "kmnist", root=root, download=download, num_validation=num_validation, seed=seed)


def load(
    source: Source,
    *,
    root: str | Path | None = None,
    download: bool = True,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.1,
    levels: int | None = None,
) -> Data:
    """Load data from any source.

    - a name: "digits", "mnist", "fashion_mnist" or "kmnist";
    - a file: .npz with ``x_train``, ``x_validation`` and ``x_test``, with or without ``y_train``, ..., or with ``x``,
      with or without ``y``, or with one array; .npy with one array; .csv of numbers separated by commas, one datum per
      line, with or without a line of column names;
    - a folder of png, jpg or bmp images of one size, or of subfolders, one per class, whose ranks are the labels;
    - an array, a DataFrame, or (x, labels), stored as by `from_arrays`;
    - a torch data set or loader, or a list of arrays or Pillow images;
    - `Data`, which are returned unchanged.

    Data without parts are shuffled and split in three. Grey images have shape ``(1, H, W)``, others ``(3, H, W)``.
    Data sets and loaders are read to their end. They give x or (x, y, ...); x is a tensor, an array or a Pillow image,
    and y is a label if it is one number. Torch's CPU stream is seeded during the reading and then restored, so that a
    shuffling loader gives one order each time.

    Args:
        source: the name, path or object.
        root: as in `mnist`, for names.
        download: as in `mnist`, for names.
        seed: of the shuffle, and of the noise of `Split.fixed`.
        validation: as in `from_arrays`, for data without splits.
        test: likewise.
        levels: as in `from_arrays`, for data without a known number.

    Raises:
        ValueError: if a name or path is unknown, or the data are invalid.
        TypeError: if the source is of another type.

    """
    if isinstance(source, Data):
        return source
    shares: dict[str, Any] = {"validation": validation, "test": test, "seed": seed}
    if not isinstance(source, str | Path):
        x, labels, name = _read(source, seed=seed, also="a name, a path, ")
        return from_arrays(x, labels, name=name, levels=levels, **shares)
    named = {"mnist": mnist, "fashionmnist": fashion_mnist, "kmnist": kmnist}
    plain = re.sub("[-_ ]", "", source.lower()) if isinstance(source, str) else ""
    path = Path(source).expanduser()
    if plain == "digits":
        return digits(seed=seed)
    if plain in named:
        return named[plain](root=root, download=download, seed=seed)
    if path.is_dir():
        levels = 256 if levels is None else levels
        return from_arrays(*read_folder(path), name=path.resolve().name, levels=levels, **shares)
    if path.is_file():
        parts = read_file(path)
        if len(parts) > 1:
            return from_splits(*parts, name=path.stem, levels=levels, seed=seed)
        return from_arrays(*parts[0], name=path.stem, levels=levels, **shares)
    nearest = difflib.get_close_matches(str(source).lower(), NAMES, n=1)
    raise ValueError(
        f"data are named {', '.join(NAMES)}, or by the path of a file or folder, but {str(source)!r} is neither; "
        + (f"did you mean {nearest[0]}?" if nearest else "check the path")
    )


def load_or_exit(
    source: Source,
    *,
    form: Form | None = None,
    images: bool = False,
    labels: bool = False,
    first: PositiveInt | None = None,
) -> Data:
    """Load data for a script: data that are missing or do not fit end it with one line and exit status 2.

    Args:
        source: as in `load`.
        form: form of the data, as in `Data.for_form`; None leaves them as they are.
        images: whether data must be images ``(C, H, W)``, C of 1 or 3.
        labels: whether data must have labels.
        first: largest number of data of each part; all by default.

    """
    try:
        data = load(source) if first is None else load(source).first(first)
        if images and (len(data.x_shape) != 3 or data.x_shape[0] not in (1, 3)):
            raise ValueError(f"images are (C, H, W) with C of 1 or 3, but data of {data.name!r} are {data.x_shape}")
        if labels and data.train.labels is None:
            raise ValueError(f"labels are needed, but {data.name!r} has none; add an array of labels to the file")
        return data if form is None else data.for_form(form)
    except (ValueError, TypeError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(2) from None


def load_split(
    source: Array | tuple[Array, Array] | Dataset[Any] | DataLoader[Any] | list[Any],
    *,
    name: str | None = None,
    levels: int | None = None,
    seed: int = 0,
) -> Split:
    """Load all data of a source as one split, in their order: a loader of a test set, for example.

    Args:
        source: an array ``(N, *x_shape)``, a DataFrame, (x, labels), or a torch data set, loader or list, as in `load`.
        name: of the split; "arrays", or the class of the data set, if None.
        levels: as in `from_arrays`.
        seed: of the reading, and of the noise of `Split.fixed`.

    Returns:
        The data without a transform; ``.with_transform(data.train.transform)`` adds the transform of other data.

    Raises:
        TypeError: if the source is of another type.

    Example:
        >>> test = pyrovae.data.load_split(test_loader).with_transform(data.train.transform)
        >>> print(pyrovae.evaluate(vae.model, vae.guide, test))

    """
    x, y, default_name = _read(source, seed=seed)
    stored, levels = store(x, levels=levels)
    labels = None if y is None else to_tensor(y)
    return Split(stored, labels=labels, name=name or default_name, levels=levels, seed=seed)


def _read(source: Any, *, seed: int, also: str = "") -> tuple[Array, Array | None, str]:
    """Return x, labels and a name for an array, a tuple of x and labels, a list, a torch data set or a loader.

    ``also`` names further kinds of sources in the errors.
    """
    if isinstance(source, list) and source and isinstance(source[0], int | float | list):
        return np.asarray(source), None, "arrays"
    if isinstance(source, Dataset | DataLoader | list):
        return _read_dataset(source, seed=seed)
    if isinstance(source, tuple) and len(source) == 2:
        return *source, "arrays"
    if isinstance(source, Tensor | np.ndarray) or hasattr(source, "to_numpy"):  # a DataFrame
        return source, None, "arrays"
    raise TypeError(
        f"`source` must be {also}an array, a DataFrame, (x, labels), a list of images or arrays, a torch data set or a "
        f"loader, got {type(source).__name__}; "
        + ("give load(source).test" if isinstance(source, str | Path | Data) else "stack the data to an array (N, ...)")
    )


def _read_dataset(dataset: Any, *, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """Return x ``(N, *x_shape)``, labels ``(N,)``, None unless every datum has one, and the class of a data set.

    The data set is one of torch, a loader or a list.
    """
    batched = isinstance(dataset, DataLoader) and dataset.batch_sampler is not None
    is_iterable = isinstance(dataset, DataLoader | IterableDataset)
    elements = dataset if is_iterable else (dataset[index] for index in range(len(dataset)))
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for index, element in enumerate(elements):
            if isinstance(element, tuple) and isinstance((*element, 0)[1], str):
                raise ValueError(f"labels are numbers, but element {index} has {element[1]!r}; encode them as integers")
            x, y = _to_tensors(element)
            xs.append(x if batched else x[None])
            if y is not None and y.ndim == int(batched):
                ys.append(y if batched else y[None])
            if xs[-1].shape[1:] != xs[0].shape[1:]:
                raise ValueError(
                    f"data have one shape, but {'batch' if batched else 'element'} {index} has {(*xs[-1].shape[1:],)} "
                    f"and the first has {(*xs[0].shape[1:],)}; resize or crop them"
                )
    source = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    x, labels = torch.cat(xs), torch.cat(ys) if len(ys) == len(xs) else None
    drops = isinstance(dataset, DataLoader) and dataset.drop_last and not isinstance(source, IterableDataset)
    num_dropped = len(dataset.sampler) - len(x) if drops else 0
    if num_dropped:
        logger.warning("the loader has drop_last=True: the last %d data are left out", num_dropped)
    return x, labels, type(source).__name__


def _to_tensors(element: Any) -> tuple[Tensor, Tensor | None]:
    """Return x and, if it is a number, y of an element of a data set."""
    x, y = (*element, None)[:2] if isinstance(element, tuple | list) else (element, None)
    is_number = isinstance(y, int | float) or hasattr(y, "dtype")
    return to_tensor(pixels(x) if hasattr(x, "convert") else x), to_tensor(y) if is_number else None


def _idx(
    class_name: str, name: str, *, root: str | Path | None, download: bool, num_validation: int, seed: int
) -> Data:
    """Load a data set in the format of MNIST by torchvision."""
    from torchvision import datasets

    folder = Path(root or os.environ.get("PYROVAE_DATA") or "~/.cache/pyrovae").expanduser()
    try:
        train, test = (getattr(datasets, class_name)(folder, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError, EOFError, HTTPException) as error:
        failed = f"the download failed ({type(error).__name__})" if download else "download=False"
        raise ValueError(
            f"{name} needs a copy of its files, but {folder / class_name / 'raw'} holds none and {failed}; either set "
            f"root (--data.root on the command line) or the environment variable PYROVAE_DATA to a folder that holds "
            f"{class_name}/raw, or allow the download (download=True) where there is a network"
        ) from None
    x, labels = train.data[:, None], train.targets  # (N, 1, 28, 28), (N,)
    return from_splits(
        (x[:-num_validation], labels[:-num_validation]),
        (x[-num_validation:], labels[-num_validation:]),
        (test.data[:, None], test.targets),
        name=name,
        levels=256,
        seed=seed,
    )
