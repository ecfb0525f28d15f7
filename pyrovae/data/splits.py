"""Splits: one part of a data set, with its stored values and a transform."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, overload

import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.data.transforms import BaseMeasure, Form, Identity, Transform, default_transform
from pyrovae.runtime.annotations import CheckedFields, PositiveInt, checked

BLOCK = 2**20  # elements transformed at once


@dataclass(frozen=True, eq=False, repr=False)
class Split(CheckedFields):
    """One part of a data set, such as the test set.

    Args:
        stored: the stored values, ``(N, *x_shape)``, on any device.
        transform: map from stored values to the values that a likelihood scores.
        labels: one per datum, ``(N,)``; not used for training.
        name: such as "mnist/test"; together with `seed` it determines the noise of `fixed`.
        levels: number of values an integer can take, 0 to levels - 1; None for floats and counts.
        seed: of the noise of `fixed`.
        covariates: inputs c of a conditional model p(x | z, c), floating point, ``(N, C)``, such as one-hot labels.

    Raises:
        ValueError: if there are no data, labels in place of data, values that are not finite, labels or covariates of
            another length, or values outside the domain of the transform.

    """

    stored: Tensor
    _: KW_ONLY
    transform: Transform = Identity()
    labels: Tensor | None = None
    name: str
    levels: int | None = None
    seed: int = 0
    covariates: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = (*self.stored.shape,)
        if self.stored.numel() == 0:
            raise ValueError(f"{self.name}: a data set holds one datum or more, but received shape {shape}; give data")
        if self.stored.ndim < 2:
            raise ValueError(
                f"{self.name}: data of shape {shape} look like labels; give the images, of shape (N, ...), "
                f"or numbers as columns, x[:, None]"
            )
        if self.labels is not None and self.labels.shape != shape[:1]:
            raise ValueError(
                f"{self.name}: labels have shape ({shape[0]},), one per datum, but received {(*self.labels.shape,)}; "
                f"give the labels of these data, or none"
            )
        if (c := self.covariates) is not None and not (c.is_floating_point() and c.ndim == 2 and len(c) == len(self)):
            raise ValueError(
                f"{self.name}: covariates are floating point, of shape ({len(self)}, C), one row per datum, but "
                f"received {(*c.shape,)} of {c.dtype}; give rows of numbers, such as one_hot(labels, 10).float()"
            )
        for values in (self.stored, *self.given):
            if invalid := count_not_finite(values):
                raise ValueError(
                    f"{self.name}: data and covariates are finite, but {invalid} of {values.numel()} values are NaN or "
                    "infinite; drop or fill them in first"
                )
        self.transform.check(self.stored, levels=self.levels)

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} of {self.storage}, {self.transform}{self.covariates_text})"

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return (*self.stored.shape[1:],)

    @property
    def storage(self) -> str:
        """Shape, dtype and levels as text."""
        levels = "" if self.levels is None else f" ({self.levels} levels)"
        return f"shape {self.x_shape}, {str(self.stored.dtype).removeprefix('torch.')}{levels}"

    @property
    def covariates_text(self) -> str:
        """Number of covariates as text, empty without any."""
        return "" if self.covariates is None else f", {self.covariates.shape[1]} covariates"

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Further arguments of a conditional model beside x: the covariates, if any."""
        return () if self.covariates is None else (self.covariates,)

    @cached_property
    def base_measure(self) -> BaseMeasure:
        """The measure of the transform, but Lebesgue for untransformed floats that are not integers."""
        untransformed = self.stored.is_floating_point() and isinstance(self.transform, Identity)
        fractional = untransformed and bool((self.stored != self.stored.round()).any())
        return "Lebesgue" if fractional else self.transform.base_measure

    def draw(
        self, rows: Tensor | NDArray[Any] | Sequence[int] | slice | int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return transformed rows, with fresh noise or, if the transform draws once, with the noise of `fixed`.

        Args:
            rows: indices, ``(B,)``, a mask ``(N,)``, a slice or a number.
            generator: source of the noise, on the device of `stored`; torch's default stream if None.

        Returns:
            x, ``(B, *x_shape)``, on the device of `stored`.

        """
        if self.transform.once:
            return self.fixed()[rows]
        return self.transform.apply(self.stored[rows], levels=self.levels, generator=generator)

    def fixed(self) -> Tensor:
        """Return the transformed split, ``(N, *x_shape)``, with fixed noise.

        It is the same at every call, on every device and in every process.
        """
        return self._fixed

    @cached_property
    def _fixed(self) -> Tensor:
        stream = f"{self.seed}:{_without_range(self.name)}".encode(errors="surrogatepass")  # file names may be bytes
        seed = int.from_bytes(hashlib.sha256(stream).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(mode=False), torch.no_grad():
            stored = self.stored.cpu()
            if not self.transform.random:
                return self.transform.apply(stored, levels=self.levels).to(self.stored.device)
            blocks, size = [], rows_per_block(stored)
            for start in range(0, len(self), size):
                rows = torch.arange(start, start + size).clamp(max=len(self) - 1)
                filled = stored[rows]  # every block is full, so that first(n) draws the same noise
                blocks.append(self.transform.apply(filled, levels=self.levels, generator=generator))
            return torch.cat(blocks)[: len(self)].clone().to(self.stored.device)

    def mean(self) -> Tensor:
        """Return the expected x, averaged over the split, ``(*x_shape)``, float32."""
        total = torch.zeros(self.x_shape, dtype=torch.float64)
        for block in self.stored.split(rows_per_block(self.stored)):
            total += self.transform.mean(block, levels=self.levels).sum(0).cpu()
        return (total / len(self)).float().to(self.stored.device)

    def hash(self) -> str:
        """Return the fingerprint of `fixed`, and of the covariates if there are any."""
        return fingerprint(self.fixed(), *self.given)

    @checked
    def to(self, device: torch.device | str | int) -> Split:
        """Return the split on another device."""
        return self._map(lambda x: x.to(device))

    @overload
    def __getitem__(self, rows: int) -> Tensor: ...

    @overload
    def __getitem__(self, rows: slice | Tensor | NDArray[Any] | list[int]) -> Split: ...

    def __getitem__(self, rows: int | slice | Tensor | NDArray[Any] | list[int]) -> Tensor | Split:
        """Return one datum of `fixed`, ``x_shape``, or a split of some rows, such as ``split[:100]``.

        The first rows keep their noise in the whole split; other rows draw their own.

        Args:
            rows: a number, a slice, indices ``(B,)`` or a mask ``(N,)``, as a tensor, an array or a list.

        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if (start, step) == (0, 1):
                return self.first(stop)
            rows, text = torch.arange(start, stop, step), f"{start}:{stop}:{step}"
        else:
            rows = torch.as_tensor(rows)
            if not rows.ndim:
                return self.fixed()[rows]
            text = f"rows {fingerprint(rows)[:8]}"
        return replace(self._map(lambda x: x[rows.to(x.device)]), name=f"{self.name}[{text}]")

    @checked
    def first(self, n: PositiveInt) -> Split:
        """Return the first n data with their noise in the whole split; all data if there are no more than n."""
        if n >= len(self):
            return self
        return replace(self._map(lambda x: x[:n]), name=f"{_without_range(self.name)}[:{n}]")

    @checked
    def with_transform(self, transform: Transform) -> Split:
        """Return the same stored values with another transform."""
        return replace(self, transform=transform)

    @checked
    def with_covariates(self, covariates: Tensor | None) -> Split:
        """Return the same data with covariates ``(N, C)``, moved to the device of the data, or without."""
        return replace(self, covariates=None if covariates is None else covariates.to(self.stored.device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Split:
        """Return the split with a function applied to data, labels and covariates."""
        tensors = {"stored": self.stored, "labels": self.labels, "covariates": self.covariates}
        return replace(self, **{name: None if x is None else function(x) for name, x in tensors.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Data:
    """A data set in three parts of the same shape and storage.

    Args:
        train: split to train on.
        validation: split that decides when to stop.
        test: split to report.
        name: such as "mnist".

    Raises:
        ValueError: if the parts differ in shape, dtype, levels or number of covariates.

    """

    train: Split
    validation: Split
    test: Split
    name: str

    def __post_init__(self) -> None:
        splits = (self.train, self.validation, self.test)
        storages = [f"{split.storage}{split.covariates_text}" for split in splits]
        if len({*storages}) > 1:
            received = "; ".join(f"{split.name} of {text}" for split, text in zip(splits, storages, strict=True))
            raise ValueError(
                f"{self.name}: the splits have one shape, dtype, number of levels and number of covariates, but "
                f"received {received}; convert them, split a single array with from_arrays(x), or give covariates to "
                "all by data.with_covariates(...)"
            )

    def __repr__(self) -> str:
        splits = (self.train, self.validation, self.test)
        sizes = " + ".join(f"{len(split):,}" for split in splits)
        transforms = " / ".join(dict.fromkeys(str(split.transform) for split in splits))
        return f"{self.name}: {sizes} (train + validation + test) of {self.train.storage}, {transforms}"

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.train.x_shape

    @checked
    def first(self, n: PositiveInt) -> Data:
        """Return the first n data of each part, as `Split.first`."""
        return self._map(lambda split: split.first(n))

    @checked
    def to(self, device: torch.device | str | int) -> Data:
        """Return the data on another device."""
        return self._map(lambda split: split.to(device))

    @checked
    def with_transform(self, transform: Transform) -> Data:
        """Return the same stored values with another transform."""
        return self._map(lambda split: split.with_transform(transform))

    @checked
    def with_covariates(self, make: Callable[[Split], Tensor]) -> Data:
        """Return the same data with covariates.

        Args:
            make: returns the covariates of one split, ``(N, C)``, for instance
                ``lambda split: one_hot(split.labels, 10).float()``.

        """
        return self._map(lambda split: split.with_covariates(make(split)))

    @checked
    def for_form(self, form: Form) -> Data:
        """Return the data with the default transform of a form, fitted to the training split if it has parameters."""
        return self.with_transform(default_transform(form, self.train.stored, levels=self.train.levels))

    def _map(self, function: Callable[[Split], Split]) -> Data:
        """Return the data with a function applied to each split."""
        train, validation, test = map(function, (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)


def rows_per_block(values: Tensor) -> int:
    """Return the number of rows of values ``(N, ...)`` that are processed at once."""
    return max(1, BLOCK // max(1, math.prod(values.shape[1:])))


def count_not_finite(values: Tensor) -> int:
    """Return the number of values ``(N, ...)`` that are NaN or infinite, block by block to save memory."""
    if not values.is_floating_point() and not values.is_complex():
        return 0
    count = torch.zeros((), dtype=torch.int64, device=values.device)
    for block in values.split(rows_per_block(values)):
        count += (~block.isfinite()).sum()
    return int(count)


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the dtypes, shapes and bytes of tensors on any device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {(*tensor.shape,)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_range(name: str) -> str:
    """Return the name of the whole split, without the range that `Split.first` appends."""
    return re.sub(r"\[:\d+\]$", "", name)
