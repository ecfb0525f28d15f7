"""Where data come from: sets with a name, and anything else that holds numbers."""

from __future__ import annotations

import difflib
import os
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyrovae.data.arrays import Array, from_arrays, from_splits, store, to_tensor
from pyrovae.data.files import from_file
from pyrovae.data.images import from_folder
from pyrovae.data.splits import Data, Split
from pyrovae.data.torch_datasets import from_dataset, read_dataset

NAMES = ("digits", "mnist", "fashion_mnist", "kmnist")
Source = str | Path | Array | tuple[Array, Array] | Dataset[Any] | DataLoader[Any] | Data


def digits(*, seed: int = 0) -> Data:
    """Load the 1797 handwritten digits that scikit-learn carries, without a network.

    Bytes of 17 levels, ``(1, 8, 8)``; 1297 to train on, 200 for validation, 300 for the test.

    *Optical recognition of handwritten digits (Alpaydin, Kaynak 1998)*, https://doi.org/10.24432/C50P49

    Args:
        seed: of the shuffle, and of the noise of `Split.fixed`.

    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = bunch.images.astype(np.uint8)[:, None]  # (1797, 1, 8, 8)
    return from_arrays(x, bunch.target, name="digits", validation=200, test=300, levels=17, seed=seed)


def mnist(
    *, root: str | Path | None = None, download: bool = True, num_validation: int = 10_000, seed: int = 0
) -> Data:
    """Load MNIST: 60,000 and 10,000 handwritten digits, bytes of 256 levels, ``(1, 28, 28)``.

    *Gradient-based learning applied to document recognition (LeCun, Bottou, Bengio, Haffner 1998)*,
    https://doi.org/10.1109/5.726791

    Args:
        root: the folder that holds MNIST/raw; where None, the environment variable PYROVAE_DATA, else ~/.cache/pyrovae.
        download: whether to fetch a copy that is not there.
        num_validation: how many of the last training images are kept for validation.
        seed: of the noise of `Split.fixed`; the splits do not depend on it.

    """
    return _idx("MNIST", "mnist", root=root, download=download, num_validation=num_validation, seed=seed)


def fashion_mnist(
    *, root: str | Path | None = None, download: bool = True, num_validation: int = 10_000, seed: int = 0
) -> Data:
    """Load Fashion-MNIST: clothing, in the format of MNIST; arguments as in `mnist`, the folder FashionMNIST/raw.

    *Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms (Xiao, Rasul, Vollgraf 2017)*,
    https://arxiv.org/abs/1708.07747
    """
    return _idx("FashionMNIST", "fashion_mnist", root=root, download=download, num_validation=num_validation, seed=seed)


def kmnist(
    *, root: str | Path | None = None, download: bool = True, num_validation: int = 10_000, seed: int = 0
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
    """Load data from whatever holds them.

    That is a name ("digits", "mnist", "fashion_mnist", "kmnist"), a file (`from_file`) or folder (`from_folder`), an
    array or a pair (x, labels) (`from_arrays`), a torch data set or loader (`from_dataset`), or `Data`, which come
    back as they are.

    Args:
        source: the name, path or object.
        root: as in `mnist`, for names.
        download: as in `mnist`, for names.
        seed: of the shuffle, and of the noise of `Split.fixed`.
        validation: as in `from_arrays`, for data without splits of their own.
        test: likewise.
        levels: as in `from_arrays`, for data that do not say it.

    """
    options: dict[str, Any] = {"validation": validation, "test": test, "seed": seed}
    if levels is not None:
        options["levels"] = levels
    if isinstance(source, Data):
        return source
    if isinstance(source, str | Path):
        named = {"mnist": mnist, "fashionmnist": fashion_mnist, "kmnist": kmnist}
        plain = re.sub("[-_ ]", "", source.lower()) if isinstance(source, str) else ""
        path = Path(source).expanduser()
        if plain == "digits":
            return digits(seed=seed)
        if plain in named:
            return named[plain](root=root, download=download, seed=seed)
        if path.is_dir():
            return from_folder(path, **options)
        if path.is_file():
            return from_file(path, **options)
        nearest = difflib.get_close_matches(str(source).lower(), NAMES, n=1)
        raise ValueError(
            f"data are named {', '.join(NAMES)}, or by the path of a file or folder, but {str(source)!r} is neither; "
            + (f"did you mean {nearest[0]}?" if nearest else "check the path")
        )
    if isinstance(source, Dataset | DataLoader):
        return from_dataset(source, **options)
    if isinstance(source, Tensor | np.ndarray):
        return from_arrays(source, **options)
    if isinstance(source, tuple) and len(source) == 2:
        return from_arrays(*source, **options)
    raise TypeError(
        f"data come from a name, a path, an array, a pair (x, labels), a torch data set or a loader, but received "
        f"{type(source).__name__}; stack them to an array (N, ...) first"
    )


def load_split(
    source: Array | tuple[Array, Array] | Dataset[Any] | DataLoader[Any],
    *,
    name: str | None = None,
    levels: int | None = None,
    seed: int = 0,
) -> Split:
    """Load data as one split, all of them and in their order, such as a test set that is a loader.

    Args:
        source: an array ``(N, *x_shape)``, a pair (x, labels), or a torch data set or loader, as in `from_dataset`.
        name: of the split; "arrays", or the class of the data set, where None.
        levels: as in `from_arrays`.
        seed: of the reading, and of the noise of `Split.fixed`.

    Returns:
        The data as they are; ``.with_transform(data.train.transform)`` lets them be seen as others are.

    Raises:
        TypeError: if the source is of another kind.

    Example:
        >>> test = pyrovae.data.load_split(test_loader).with_transform(data.train.transform)
        >>> print(pyrovae.evaluate(vae.model, vae.guide, test))

    """
    x: Array
    labels: Array | None = None
    kind = "arrays"
    if isinstance(source, Dataset | DataLoader):
        x, labels, kind = read_dataset(source, seed=seed)
    elif isinstance(source, tuple) and len(source) == 2:
        x, labels = source
    elif isinstance(source, Tensor | np.ndarray):
        x = source
    else:
        raise TypeError(
            f"a split is made of an array, a pair (x, labels), a torch data set or a loader, but received "
            f"{type(source).__name__}; of Data take a part, such as data.test, and of files what load(path) returns"
        )
    stored, levels = store(x, levels=levels)
    labels = None if labels is None else to_tensor(labels)
    return Split(stored, labels=labels, name=name or kind, levels=levels, seed=seed)


def _idx(kind: str, name: str, *, root: str | Path | None, download: bool, num_validation: int, seed: int) -> Data:
    from torchvision import datasets

    folder = Path(root or os.environ.get("PYROVAE_DATA") or "~/.cache/pyrovae").expanduser()
    try:
        train, test = (getattr(datasets, kind)(folder, train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError, EOFError, HTTPException) as error:
        failed = f"the download failed ({type(error).__name__})" if download else "download=False"
        raise ValueError(
            f"{name} needs a copy of its files, but {folder / kind / 'raw'} holds none and {failed}; either set root= "
            f"or the environment variable PYROVAE_DATA to a folder that holds {kind}/raw, or allow the download "
            f"(download=True) where there is a network"
        ) from None
    x, labels = train.data[:, None], train.targets  # (N, 1, 28, 28), (N,)
    if not 1 <= num_validation < len(x):
        raise ValueError(
            f"{name}: validation takes 1 to {len(x) - 1} of the {len(x)} training images, but received "
            f"num_validation={num_validation}; the usual number is 10000"
        )
    return from_splits(
        (x[:-num_validation], labels[:-num_validation]),
        (x[-num_validation:], labels[-num_validation:]),
        (test.data[:, None], test.targets),
        name=name,
        levels=256,
        seed=seed,
    )
