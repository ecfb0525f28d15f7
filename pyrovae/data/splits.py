"""Splits: one part of a data set, its values as stored and as a likelihood sees them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pyrovae.data.transform import BaseMeasure, Transform
from pyrovae.data.transforms import Form, Identity, default_transform

BLOCK = 2**20  # entries transformed at once


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One part of a data set, such as the test set.

    Args:
        stored: the values as they are kept, ``(N, *x_shape)``, on any device.
        transform: how they become what a likelihood scores.
        labels: one per datum, ``(N,)``; nothing here learns from them.
        name: such as "mnist/test"; together with `seed` it fixes the noise of `fixed`.
        levels: number of values an integer can take, 0 to levels - 1; None for floats and counts.
        seed: of the noise of `fixed`.
        covariates: what a conditional model p(x | z, c) is given, floating point, ``(N, C)``, such as one-hot labels.

    Raises:
        ValueError: if there are no data, labels in their place, NaNs among them, labels or covariates of another
            number, or values that the transform does not take.

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
        if bad := count_not_finite(self.stored):
            raise ValueError(
                f"{self.name}: data are finite, but {bad} of {self.stored.numel()} values are NaN or infinite; "
                f"drop or fill them in first"
            )
        self.transform.check(self.stored, levels=self.levels)
        self._check_covariates()

    def _check_covariates(self) -> None:
        if self.covariates is None:
            return
        shape = (*self.covariates.shape,)
        if not self.covariates.is_floating_point() or len(shape) != 2 or shape[0] != len(self) or shape[1] < 1:
            raise ValueError(
                f"{self.name}: covariates are floating point, of shape ({len(self)}, C), one row per datum, but "
                f"received {shape} of {self.covariates.dtype}; give rows of numbers, such as "
                f"one_hot(labels, 10).float()"
            )
        if self.covariates.device != self.stored.device:
            raise ValueError(
                f"{self.name}: data and covariates lie on one device, but the data are on {self.stored.device} and the "
                f"covariates on {self.covariates.device}; move one of them by .to(device)"
            )
        if bad := count_not_finite(self.covariates):
            raise ValueError(
                f"{self.name}: covariates are finite, but {bad} of {self.covariates.numel()} values are NaN or "
                f"infinite; drop or fill them in first"
            )

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        given = "" if self.covariates is None else f", {self.covariates.shape[1]} covariates"
        return f"Split({self.name!r}, {len(self)} of {self.storage}, {self.transform}{given})"

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return (*self.stored.shape[1:],)

    @property
    def storage(self) -> str:
        """Shape, dtype and levels in words."""
        levels = "" if self.levels is None else f" ({self.levels} levels)"
        return f"shape {self.x_shape}, {str(self.stored.dtype).removeprefix('torch.')}{levels}"

    @cached_property
    def base_measure(self) -> BaseMeasure:
        """The transform's, but Lebesgue where floats that are not whole numbers are kept as they are."""
        kept = self.stored.is_floating_point() and isinstance(self.transform, Identity)
        return "Lebesgue" if kept and bool((self.stored != self.stored.round()).any()) else self.transform.base_measure

    def draw(self, rows: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Transform some data with fresh noise, or take them from `fixed` where the transform draws but once.

        Args:
            rows: indices, ``(B,)``.
            generator: source of the noise, on the device of `stored`; torch's default stream where None.

        Returns:
            x, ``(B, *x_shape)``, on the device of `stored`.

        """
        if self.transform.once:
            return self._fixed[rows]
        return self.transform.apply(self.stored[rows], levels=self.levels, generator=generator)

    def fixed(self) -> Tensor:
        """Return the whole split, ``(N, *x_shape)``, its noise drawn once.

        It is the same at every call, on every device and in every process.
        """
        return self._fixed

    @cached_property
    def _fixed(self) -> Tensor:
        stream = f"{self.seed}:{self._whole_name}".encode(errors="surrogatepass")  # names of files need not be text
        digest = hashlib.sha256(stream).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        with torch.inference_mode(mode=False), torch.no_grad():
            stored = self.stored.cpu()
            if not self.transform.random:
                return self.transform.apply(stored, levels=self.levels).to(self.stored.device)
            blocks = []
            for start in range(0, len(self), self._block):
                rows = torch.arange(start, start + self._block).clamp(max=len(self) - 1)
                filled = stored[rows]  # noise for a full block wherever the split ends, so that first(n) draws the same
                blocks.append(self.transform.apply(filled, levels=self.levels, generator=generator))
            return torch.cat(blocks)[: len(self)].clone().to(self.stored.device)

    def mean(self) -> Tensor:
        """Return the expected x, averaged over the split, ``(*x_shape)``, float32."""
        total = torch.zeros(self.x_shape, dtype=torch.float64)
        for start in range(0, len(self), self._block):
            block = self.stored[start : start + self._block]
            total += self.transform.mean(block, levels=self.levels).sum(0).cpu()
        return (total / len(self)).float().to(self.stored.device)

    def hash(self) -> str:
        """Return the fingerprint of `fixed`, and of the covariates if there are any."""
        return fingerprint(self.fixed(), *self.given)

    def to(self, device: torch.device | str) -> Split:
        """Return the same split on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        covariates = None if self.covariates is None else self.covariates.to(device)
        return replace(self, stored=self.stored.to(device), labels=labels, covariates=covariates)

    def with_transform(self, transform: Transform) -> Split:
        """Return the same stored values, seen in another way."""
        return replace(self, transform=transform)

    def with_covariates(self, covariates: Tensor | None) -> Split:
        """Return the same data with covariates ``(N, C)`` beside them, moved to their device, or with none."""
        return replace(self, covariates=None if covariates is None else covariates.to(self.stored.device))

    @property
    def given(self) -> tuple[Tensor, ...]:
        """What a conditional model is called with beside x: the covariates, or nothing."""
        return () if self.covariates is None else (self.covariates,)

    def first(self, n: int) -> Split:
        """Return the first n data, with the noise they have in the whole split; all of them where n reaches the end."""
        if n < 1:
            raise ValueError(f"{self.name}: a split holds one datum or more, but received first({n}); give n >= 1")
        if n >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:n]
        covariates = None if self.covariates is None else self.covariates[:n]
        name = f"{self._whole_name}[:{n}]"
        return replace(self, stored=self.stored[:n], labels=labels, covariates=covariates, name=name)

    @property
    def _whole_name(self) -> str:
        return re.sub(r"\[:\d+\]$", "", self.name)

    @property
    def _block(self) -> int:
        return max(1, BLOCK // math.prod(self.x_shape))


@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """A data set in three parts, of the same shape and stored alike.

    Args:
        train: what is learned from.
        validation: what decides when to stop.
        test: what is reported.
        name: such as "mnist".

    Raises:
        ValueError: if the parts differ in shape, dtype, levels or number of covariates.

    """

    train: Split
    validation: Split
    test: Split
    name: str

    def __post_init__(self) -> None:
        if len({split.storage for split in self._splits}) > 1:
            received = ", ".join(f"{split.name} of {split.storage}" for split in self._splits)
            raise ValueError(
                f"{self.name}: the splits have one shape, dtype and number of levels, but received {received}; "
                f"bring them to one, or split a single array with from_arrays(x)"
            )
        numbers = [0 if split.covariates is None else split.covariates.shape[1] for split in self._splits]
        if len({*numbers}) > 1:
            received = ", ".join(f"{split.name} with {c}" for split, c in zip(self._splits, numbers, strict=True))
            raise ValueError(
                f"{self.name}: the splits have one number of covariates, but received {received}; give them to all by "
                f"data.with_covariates(...)"
            )

    def __str__(self) -> str:
        sizes = " + ".join(f"{len(split):,}" for split in self._splits)
        transforms = " / ".join(dict.fromkeys(str(split.transform) for split in self._splits))
        return f"{self.name}: {sizes} (train + validation + test) of {self.train.storage}, {transforms}"

    @property
    def _splits(self) -> tuple[Split, Split, Split]:
        return self.train, self.validation, self.test

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.train.x_shape

    def to(self, device: torch.device | str) -> Data:
        """Return the same data on another device."""
        train, validation, test = (split.to(device) for split in self._splits)
        return replace(self, train=train, validation=validation, test=test)

    def with_transform(self, transform: Transform) -> Data:
        """Return the same stored values, seen in another way."""
        train, validation, test = (split.with_transform(transform) for split in self._splits)
        return replace(self, train=train, validation=validation, test=test)

    def with_covariates(self, make: Callable[[Split], Tensor]) -> Data:
        """Return the same data with covariates beside them.

        Args:
            make: returns those of one split, ``(N, C)``, for instance
                ``lambda split: one_hot(split.labels, 10).float()``.

        """
        train, validation, test = (split.with_covariates(make(split)) for split in self._splits)
        return replace(self, train=train, validation=validation, test=test)

    def for_form(self, form: Form) -> Data:
        """Return the data as a likelihood of this form wants them; what is fitted is fitted to the training split."""
        return self.with_transform(default_transform(form, self.train.stored, levels=self.train.levels))


def count_not_finite(values: Tensor) -> int:
    """Return how many of some values ``(N, ...)`` are NaN or infinite, without a copy as large as they are."""
    if not values.is_floating_point() and not values.is_complex():
        return 0
    bad = torch.zeros((), dtype=torch.int64, device=values.device)
    for block in values.split(max(1, BLOCK // max(1, math.prod(values.shape[1:])))):
        bad += (~block.isfinite()).sum()
    return int(bad)


def fingerprint(*tensors: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the dtypes, shapes and bytes of tensors on any device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {(*tensor.shape,)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
