"""Data from a torch data set or loader."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyrovae.data.arrays import from_arrays, to_tensor
from pyrovae.data.images import pixels
from pyrovae.data.splits import Data

logger = logging.getLogger("pyrovae")


def from_dataset(
    dataset: Dataset[Any] | DataLoader[Any],
    *,
    name: str | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    levels: int | None = None,
    seed: int = 0,
) -> Data:
    """Read a data set or loader to its end, stack what it gives, and split it as `from_arrays` does.

    Torch's CPU stream is seeded while reading and then restored, so that a shuffling loader gives one order each time.

    Args:
        dataset: gives x or (x, y, ...); x is a tensor, an array or a Pillow image; y is a label if it is one number.
        name: of the data; the class of the data set where None.
        validation: as in `from_arrays`.
        test: as in `from_arrays`.
        levels: as in `from_arrays`.
        seed: of the reading, of the shuffle, and of the noise of `Split.fixed`.

    """
    x, labels, source = read_dataset(dataset, seed=seed)
    return from_arrays(x, labels, name=name or source, validation=validation, test=test, levels=levels, seed=seed)


def read_dataset(dataset: Dataset[Any] | DataLoader[Any], *, seed: int = 0) -> tuple[Tensor, Tensor | None, str]:
    """Read a data set or loader to its end.

    Returns:
        x, ``(N, *x_shape)``; labels ``(N,)``, or None where not every datum has one; the class of the data set.

    """
    batched = isinstance(dataset, DataLoader) and dataset.batch_sampler is not None
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for index, element in enumerate(_elements(dataset)):
            x, y = _pair(element)
            xs.append(x if batched else x[None])
            if y is not None and y.ndim == int(batched):
                ys.append(y if batched else y[None])
            if xs[-1].shape[1:] != xs[0].shape[1:]:
                raise ValueError(
                    f"data have one shape, but {'batch' if batched else 'element'} {index} has {(*xs[-1].shape[1:],)} "
                    f"and the first has {(*xs[0].shape[1:],)}; resize or crop them"
                )
    if not xs:
        raise ValueError("a data set holds one datum or more, but this one gave none; check its files")
    source = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    x, labels = torch.cat(xs), torch.cat(ys) if len(ys) == len(xs) else None
    drops = isinstance(dataset, DataLoader) and dataset.drop_last and not isinstance(source, IterableDataset)
    left_out = len(dataset.sampler) - len(x) if drops else 0  # type: ignore[union-attr,arg-type]
    if left_out:
        logger.warning("%d data are left out, a last minibatch that is short: the loader has drop_last=True", left_out)
    return x, labels, type(source).__name__


def _elements(dataset: Dataset[Any] | DataLoader[Any]) -> Iterator[Any]:
    if isinstance(dataset, DataLoader | IterableDataset):
        yield from dataset
    elif hasattr(dataset, "__len__"):
        yield from (dataset[index] for index in range(len(dataset)))
    else:
        raise ValueError(f"{type(dataset).__name__} has no length; give it __len__, or derive it from IterableDataset")


def _pair(element: Any) -> tuple[Tensor, Tensor | None]:
    x, y = (*element, None)[:2] if isinstance(element, tuple | list) else (element, None)
    if isinstance(x, dict | str) or x is None:
        raise ValueError(
            f"a data set gives x or (x, y, ...), but this one gave {type(x).__name__}; pick x in its __getitem__"
        )
    number = isinstance(y, int | float) or hasattr(y, "dtype")
    return to_tensor(pixels(x) if hasattr(x, "convert") else x), to_tensor(y) if number else None
