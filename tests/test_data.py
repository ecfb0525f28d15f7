"""Transforms, splits, and sources of data."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pandas
import pytest
import torch
import torchvision.datasets
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyrovae import data
from pyrovae.data import Data, Split, transforms
from pyrovae.data.loader import Loader
from pyrovae.data.transforms import (
    Dequantization,
    DynamicBinarization,
    Grey,
    Identity,
    Standardization,
    StaticBinarization,
    Threshold,
    Transform,
    default_transform,
)


@pytest.fixture(autouse=True)
def _float32() -> None:
    torch.set_default_dtype(torch.float32)


BYTES = torch.randint(256, (700, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
COLUMNS = torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5 + 2

EXAMPLES = {  # an instance of each transform, stored values, levels
    "Dequantization": (Dequantization(), BYTES, 256),
    "DynamicBinarization": (DynamicBinarization(), BYTES, 256),
    "Grey": (Grey(), BYTES, 256),
    "Identity": (Identity(), BYTES, 256),
    "Standardization": (Standardization.fit(COLUMNS), COLUMNS, None),
    "StaticBinarization": (StaticBinarization(), BYTES, 256),
    "Threshold": (Threshold(level=0.3), BYTES, 256),
}
NAMES = [name for name in transforms.__all__ if isinstance(getattr(transforms, name), type) and name != "Transform"]


@pytest.mark.parametrize("name", NAMES)
def test_transforms_conform(name: str) -> None:
    transform, stored, levels = EXAMPLES[name]
    mean = transform.mean(stored, levels=levels)
    repeated = stored[:5].repeat(3000, *[1] * (stored.ndim - 1))
    x = transform(repeated, levels=levels, generator=torch.Generator().manual_seed(2))
    expected = stored.dtype if stored.is_floating_point() else torch.get_default_dtype()
    assert x.dtype == mean.dtype == expected
    assert mean.shape == stored.shape
    x = x.double().unflatten(0, (3000, 5))
    assert ((x.mean(0) - mean[:5]).abs() <= 4 * x.std(0) / math.sqrt(3000) + 1e-6).all()
    first, again = (transform(stored, levels=levels) for _ in range(2))
    assert torch.equal(first, again) is not transform.random
    seeded = [transform(stored, levels=levels, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*seeded)
    assert transform.apply(stored.to("meta"), levels=levels).shape == stored.shape, "it reads no values"
    described = json.loads(json.dumps(transform.describe()))
    assert getattr(transforms, described.pop("class"))(**described) == transform


@pytest.mark.parametrize("name", NAMES)
def test_jacobian_is_the_slope_of_the_mean(name: str) -> None:
    transform, stored, levels = EXAMPLES[name]
    log_det = transform.log_abs_det_jacobian(stored.shape[1:], levels=levels)
    if log_det is None:
        assert transform.base_measure == "counting" or not transform.random
        return
    u = stored[:1].clamp(max=200)
    slope = transform.mean(u + 1, levels=levels) - transform.mean(u, levels=levels)
    assert slope.abs().log().sum().item() == pytest.approx(log_det, abs=1e-2)


def test_values_of_transforms() -> None:
    u = torch.tensor([[0, 8, 16]], dtype=torch.uint8)
    assert Grey()(u, levels=17).tolist() == [[0, 0.5, 1]]
    assert Threshold()(u, levels=17).tolist() == [[0, 0, 1]]
    assert Threshold(level=0.25)(u / 16, levels=None).tolist() == [[0, 1, 1]]
    assert Identity()(u, levels=17).tolist() == [[0, 8, 16]]
    assert Dequantization().mean(u, levels=17).tolist() == [pytest.approx([0.5 / 17, 8.5 / 17, 16.5 / 17])]
    assert Grey()(u > 0, levels=None).tolist() == [[0, 1, 1]]
    largest = Dequantization()(torch.full((2**20, 1), 255, dtype=torch.uint8), levels=256)
    assert 255 / 256 <= largest.min()
    assert largest.max() < 1
    assert Dequantization().log_abs_det_jacobian((3, 5), levels=256) == pytest.approx(-15 * 8 * math.log(2), rel=1e-14)
    x = Standardization.fit(COLUMNS)(COLUMNS, levels=None)
    assert torch.allclose(x.mean(0), torch.zeros(3).double(), atol=1e-12)
    assert torch.allclose(x.var(0, correction=0), torch.ones(3).double(), atol=1e-12)


@pytest.mark.parametrize(
    ("form", "stored", "levels", "expected"),
    [
        ("binary", BYTES, 256, DynamicBinarization()),
        ("binary", BYTES > 99, None, Identity()),
        ("binary", (BYTES > 99).float(), None, Identity()),
        ("unit", BYTES, 256, Dequantization()),
        ("continuous", BYTES, 256, Dequantization()),
        ("continuous", COLUMNS, None, Standardization.fit(COLUMNS)),
        ("continuous", COLUMNS[:, None], None, Identity()),
        ("levels", BYTES, 256, Identity()),
        ("counts", BYTES.long(), None, Identity()),
    ],
)
def test_each_form_of_data_has_its_transform(
    form: transforms.Form, stored: Tensor, levels: int | None, expected: Transform
) -> None:
    assert default_transform(form, stored, levels=levels) == expected


TRAIN = Split(BYTES, name="a/train")
COLORS = pandas.DataFrame({"size": np.ones(20), "color": ["red"] * 20})


def of_parts(test: Split) -> Data:
    return Data(train=TRAIN, validation=TRAIN, test=test, name="a")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Grey()(torch.tensor([[-1.0, 2.0]]), levels=None), r"in \[0, 1\], but received -1 to 2; rescale"),
        (lambda: DynamicBinarization()(torch.tensor([[math.nan]]), levels=None), "but received nan to nan"),
        (lambda: Threshold()(BYTES.long(), levels=None), "number of levels, two or more, but levels is None; load"),
        (lambda: StaticBinarization()(BYTES, levels=17), "from 0 to 16, but received 0 to 255; give the number"),
        (lambda: Grey()(-BYTES.long(), levels=256), "received -255 to 0"),
        (lambda: Dequantization()(COLUMNS, levels=None), "floats are continuous already"),
        (lambda: Standardization([0.0], [1.0])(COLUMNS, levels=None), r"for 1 columns, but the data have shape \(500,"),
        (lambda: Threshold(level=1.0), r"threshold lies in \[0, 1\), but level is 1"),
        (lambda: Standardization([0.0] * 3, [1.0])(COLUMNS, levels=None), "expected sequence of length 3"),
        (lambda: Standardization([0.0, 0.0], [1.0, 0.0]), "`scale` of Standardization must be finite numbers > 0"),
        (lambda: Standardization.fit(torch.tensor([[1.0, 7.0], [2.0, 7.0]])), r"constant at 7 .*: \[1\]\); drop it"),
        (lambda: Standardization.fit(BYTES), r"shape \(N, columns\), but received \(700, 1, 4, 4\); flatten"),
        (lambda: default_transform("gray", BYTES, levels=256), "one of binary, unit, .* but received 'gray'"),  # type: ignore[arg-type]
        (lambda: Split(BYTES[:0], name="a/x"), r"a/x: .* one datum or more, but received shape \(0, 1, 4, 4\)"),
        (lambda: Split(torch.arange(9), name="a/x"), r"a/x: data of shape \(9,\) look like labels; give the images"),
        (lambda: Split(BYTES, labels=torch.arange(9), name="a"), r"shape \(700,\), one per datum, but received \(9,\)"),
        (lambda: Split(torch.tensor([[1, math.nan], [math.inf, 0]]), name="a"), "but 2 of 4 values are NaN or infinit"),
        (lambda: Split(BYTES, name="a").first(0), "`n` of first must be an integer >= 1, got 0"),
        (lambda: Split(torch.tensor([[2**24 + 1], [3]]), name="a"), "up to 16777216, but received 3 to 16777217"),
        (lambda: Split(COLUMNS, name="a", covariates=torch.zeros(499, 2)), r"\(500, C\), one row per datum, but"),
        (lambda: Split(COLUMNS, name="a", covariates=torch.zeros(500, 2).long()), "of torch.int64; give rows of"),
        (lambda: Split(COLUMNS, name="a", covariates=COLUMNS[:, :2] / 0), "1000 of 1000 values are NaN or infinite;"),
        (lambda: data.from_arrays(np.array([["a"], ["b"]])), "real numbers, but received an array of <U1; encode"),
        (lambda: data.from_arrays(torch.ones(9, 2, dtype=torch.complex64)), "an array of torch.complex64"),
        (lambda: data.from_arrays(np.zeros((2, 3))), r"2 data with validation=0.1 and test=0.1 leave 0 to train on"),
        (lambda: data.from_arrays(np.zeros((9, 3)), validation=0.0), r"shares in \(0, 1\) or integers .* received 0.0"),
        (lambda: data.from_arrays(np.zeros((9, 3)), levels=256), "only integers have levels, .* with levels=256"),
        (lambda: of_parts(Split(BYTES[..., :2], name="a/odd")), r"one shape, dtype, .* a/odd of shape \(1, 4, 2\),"),
        (
            lambda: of_parts(TRAIN.with_covariates(torch.zeros(700, 2))),
            "of covariates, but received .*, 2 covariates; ",
        ),
        (lambda: data.load(Stream([{"image": BYTES[0]}])), "a dictionary of image; pick x from it"),
        (lambda: data.load(COLUMNS, validation="0.1"), "received '0.1'; try 0.1"),  # type: ignore[arg-type]
        (lambda: data.load(COLORS), "data are real numbers, but received an array of object; encode or drop"),
        (lambda: data.from_arrays(BYTES, levels=10**20), "more than 16 bits have, 65,536; such integers are counts"),
    ],
)
def test_invalid_arguments_are_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        make()


class Noisy(Identity):
    """u plus normal noise, which torch draws otherwise for a short tensor than for a long one."""

    random = True

    def apply(self, stored: Tensor, *, levels: int | None, generator: torch.Generator | None = None) -> Tensor:
        return stored + torch.randn(stored.shape, generator=generator)

    def mean(self, stored: Tensor, *, levels: int | None) -> Tensor:
        return stored.float()


@pytest.mark.parametrize("transform", [DynamicBinarization(), Dequantization(), Noisy()], ids=str)
def test_fixed_noise_is_drawn_once_and_shared_with_the_first_rows(
    transform: Transform, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = BYTES[..., :3]  # torch draws normal noise otherwise if there are fewer than 16 elements, or not 16 n
    monkeypatch.setattr("pyrovae.data.splits.BLOCK", 12 * 100)  # several blocks
    split = Split(stored, transform=transform, name="a/test", levels=256)
    assert split.fixed() is split.fixed()
    assert split.hash() == dataclasses.replace(split).hash()
    expected = transform.mean(stored, levels=256).double().mean(0).float()  # the mean of all blocks
    assert torch.allclose(split.mean(), expected, rtol=1e-5)
    for rows in (1, 37, 300):
        assert split.first(rows).name == f"a/test[:{rows}]"
        assert torch.equal(split.first(400).first(rows).fixed(), split.fixed()[:rows])
    for other in ({"name": "a/validation"}, {"seed": 1}):
        assert not torch.equal(split.fixed(), dataclasses.replace(split, **other).fixed())
    assert not torch.equal(split.fixed()[:100] - stored[:100], split.fixed()[100:200] - stored[100:200])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_noise_is_the_same_in_every_process_and_leaves_the_stream_alone(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    state = torch.get_rng_state()
    with torch.inference_mode():
        split = data.digits().test.with_transform(StaticBinarization())
        fixed = split.fixed()
    assert data.fingerprint(fixed.float()) == "51ed4e35ffe7055517a12c16465d70718c277390db4f5edbfda853e3cb61e564"
    assert fixed.dtype == dtype
    assert torch.equal(state, torch.get_rng_state())
    (fixed[:10] * torch.ones(8, 8, requires_grad=True)).sum().backward()  # fails for a tensor made in inference mode


@pytest.mark.parametrize("transform", [DynamicBinarization(), Dequantization(), StaticBinarization(), Grey()], ids=str)
def test_draws_are_fresh_unless_the_transform_draws_once(transform: Transform) -> None:
    split, rows = Split(BYTES, transform=transform, name="a/train", levels=256), torch.tensor([5, 2, 5])
    first, second = split.draw(rows), split.draw(rows)
    is_fresh = transform.random and not transform.once
    assert torch.equal(first, second) is not is_fresh
    assert torch.equal(first[0], first[2]) is not is_fresh
    if not is_fresh:
        assert torch.equal(first, split.fixed()[rows])


def test_fingerprints_depend_on_dtypes_shapes_values_and_order() -> None:
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)
    tried = [(zeros,), (ones,), (zeros.double(),), (zeros.T,), (zeros, ones), (ones, zeros), (zeros[:0],), (ones > 0,)]
    assert len({data.fingerprint(*tensors) for tensors in tried}) == len(tried)
    assert data.fingerprint(BYTES.mT) == data.fingerprint(BYTES.mT.contiguous())


def covariates_of(split: Split) -> Tensor:
    """Return as covariates the row number of each datum, and its square."""
    row = torch.arange(len(split)).float()
    return torch.stack([row, row**2], 1)


def test_covariates_travel_with_their_data() -> None:
    made = data.from_arrays(BYTES, validation=100, test=100).with_covariates(covariates_of)
    train, c = made.train, covariates_of(made.train)
    assert train.given == (train.covariates,)
    assert repr(train).endswith("Identity(), 2 covariates)")
    for split in (train, train.with_transform(Grey()), made.to("cpu").train, made.for_form("binary").train):
        assert torch.equal(split.covariates, c)
    assert torch.equal(train.first(7).covariates, c[:7])
    rows, loader = torch.tensor([3, 1, 1]), Loader(train)
    assert all(map(torch.equal, loader.draw(rows), (train.draw(rows), c[rows])))
    assert torch.equal(loader.fixed()[1], c)
    assert loader.num_bytes == train.stored.numel() + 2 * 4 * len(train)
    assert train.hash() == data.fingerprint(*loader.fixed()) == data.fingerprint(train.fixed(), c)
    bare = train.with_covariates(None)
    assert len({split.hash() for split in (bare, train, bare.with_covariates(c.flip(0)))}) == 3


def test_digits_are_bundled() -> None:
    made = data.digits()
    assert str(made).startswith("digits: 1,297 + 200 + 300 (train + validation + test) of shape (1, 8, 8), uint8 (17 l")
    everything = torch.cat([part.stored for part in (made.train, made.validation, made.test)])
    assert everything.double().mean().item() == pytest.approx(4.884164579855314)  # of sklearn's load_digits().data
    assert not torch.equal(made.test.stored, data.digits(seed=1).test.stored)
    assert made.test.labels[made.test.stored[:, 0, 3, 3] < 3].bincount().argmax() == 0  # zeros are hollow


def test_a_form_is_fitted_to_the_training_split_alone() -> None:
    made = data.from_arrays(COLUMNS).for_form("continuous")
    expected = Standardization.fit(made.train.stored)
    assert made.test.transform == made.validation.transform == expected
    assert torch.allclose(made.test.fixed(), expected(made.test.stored, levels=None))
    assert str(made).startswith("arrays: 400 + 50 + 50 (train + validation + test) of shape (3,), float32, Standardi")
    assert made.train.base_measure == "Lebesgue"
    assert Split(COLUMNS, name="a").base_measure == "Lebesgue"
    assert Split(COLUMNS.round(), name="a").base_measure == "counting"


@pytest.mark.parametrize("folder", ["MNIST", "FashionMNIST", "KMNIST"])
def test_without_a_copy_both_remedies_are_named(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", offline)
    remedies = rf"set root .* or the environment variable PYROVAE_DATA to a folder that holds {folder}/raw, or allow"
    for download, reason in ((False, "download=False"), (True, r"the download failed \(RuntimeError\)")):
        with pytest.raises(ValueError, match=rf" needs .*{folder}/raw holds none and {reason}; either {remedies}"):
            data.load(folder, root=tmp_path, download=download)


@pytest.mark.parametrize(
    ("x", "dtype", "levels"),
    [
        (np.zeros((20, 2), bool), torch.uint8, 2),
        (np.arange(40).reshape(20, 2), torch.uint8, None),  # they may be counts
        (np.arange(40).reshape(20, 2) * 4, torch.uint8, 256),
        (np.arange(40).reshape(20, 2) % 2, torch.uint8, 2),
        (np.arange(40).reshape(20, 2) - 1, torch.int64, None),
        (torch.arange(300, 340, dtype=torch.int16).view(20, 2), torch.int64, None),
        (np.arange(40, dtype=">u2").reshape(20, 2) * 9, torch.int64, None),
        (np.ones((20, 2), ">f4"), torch.float32, None),
        (torch.ones(20, 2, 2, requires_grad=True), torch.float32, None),
    ],
)
def test_arrays_are_stored_by_dtype_and_range(x: data.arrays.Array, dtype: torch.dtype, levels: int | None) -> None:
    made = data.from_arrays(x)
    for part, size in ((made.train, 16), (made.validation, 2), (made.test, 2)):
        assert (len(part), part.stored.dtype, part.levels) == (size, dtype, levels)
        assert part.x_shape == tuple(x.shape[1:])
        assert not part.stored.requires_grad


def test_arrays_are_shuffled_by_the_seed_with_their_labels() -> None:
    x = np.arange(100)[:, None].repeat(2, 1)
    x.flags.writeable = False
    made = data.from_arrays(x, np.arange(100), validation=0.2, test=5, seed=3)
    parts = [made.train, made.validation, made.test]
    assert {part.name: len(part) for part in parts} == {"arrays/train": 75, "arrays/validation": 20, "arrays/test": 5}
    values = torch.cat([part.stored[:, 0] for part in parts])
    assert values.sort().values.tolist() == list(range(100))
    assert values.tolist() != list(range(100))
    for part in parts:
        assert torch.equal(part.labels, part.stored[:, 0].long())
    assert torch.equal(data.from_arrays(x, validation=0.2, test=5, seed=3).test.stored, made.test.stored)
    assert not torch.equal(data.from_arrays(x, validation=0.2, test=5).test.stored, made.test.stored)


def test_given_splits_of_integers_are_stored_alike(tmp_path: Path) -> None:
    file = tmp_path / "counts.npz"
    few, many = np.arange(6).reshape(3, 2), np.arange(998, 1004).reshape(3, 2)
    np.savez(file, x_train=many, x_validation=few, x_test=few + 1, y_train=np.arange(3))
    made = data.load(str(file))
    assert made.name == "counts"
    assert {made.train.stored.dtype, made.test.stored.dtype} == {torch.int64}
    assert made.train.levels is None
    assert made.test.stored.tolist() == (few + 1).tolist()
    assert made.train.labels.tolist() == [0, 1, 2]
    assert made.test.labels is None


def test_files_of_numbers(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30)
    np.savez(tmp_path / "pair.npz", x=x, y=y)
    np.savez(tmp_path / "one.npz", anything=x)
    np.save(tmp_path / "x.npy", x)
    lines = "".join(f"{a!r},{b!r}\n" for a, b in x.tolist())
    (tmp_path / "with.csv").write_text("height,width\n" + lines, encoding="utf-8-sig")
    (tmp_path / "without.csv").write_text(lines)
    expected = data.from_arrays(x, y).train
    for name in ("pair.npz", "one.npz", "x.npy", "with.csv", "without.csv"):
        assert torch.equal(data.load(tmp_path / name).train.stored, expected.stored)
    assert torch.equal(data.load(tmp_path / "pair.npz").train.labels, expected.labels)


def test_a_column_without_a_name_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = pandas.DataFrame({"height": np.arange(20.0), "width": np.ones(20)})
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert data.load(tmp_path / "x.csv").x_shape == (2,)
    assert not caplog.text
    frame.to_csv(tmp_path / "x.csv")
    assert data.load(tmp_path / "x.csv").x_shape == (3,)
    assert "frame.to_csv(path, index=False)" in caplog.text


INVALID_FILES = {  # content, and the error
    "half.npz": ({"x_train": COLUMNS, "x_test": COLUMNS}, "or one array, but half.npz holds x_train, x_test; rename"),
    "two.npz": ({"a": COLUMNS, "b": COLUMNS}, "but two.npz holds a, b; rename"),
    "objects.npz": ({"x": np.array([{}, None])}, r"objects.npz cannot be read \(Object arrays cannot be loaded"),
    "broken.npz": ("PK\x03\x04 cut off", r"broken.npz cannot be read \(.*save it anew"),
    "empty.csv": ("a,b\n", "empty.csv holds none"),
    "text.csv": ("a,b\n1,2\n3,red\n", "text.csv could not convert string 'red' .*; drop or encode"),
    "ragged.csv": ("1,2\n3\n", "numbers, as many in each line, but in .*ragged.csv"),
    "x.mat": ("", r"end in .npz, .npy or .csv, but x.mat ends in '.mat'; convert it"),
    "none.npz": (None, "none.npz' is neither; check the path"),
}


@pytest.mark.parametrize("name", INVALID_FILES)
def test_invalid_files_are_refused(name: str, tmp_path: Path) -> None:
    content, match = INVALID_FILES[name]
    if isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=match):
        data.load(tmp_path / name)


def _write(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def test_folders_of_images(tmp_path: Path) -> None:
    grey = BYTES[:10, 0].numpy()
    for index, image in enumerate(grey):
        _write(tmp_path / "grey" / f"{index:02}.png", image)
    (tmp_path / "grey" / "notes.txt").write_text("not an image")
    made = data.load(tmp_path / "grey")
    assert torch.equal(made.train.stored, data.from_arrays(grey[:, None]).train.stored)
    assert (made.name, made.train.levels, made.train.labels) == ("grey", 256, None)
    for index in range(10):
        _write(tmp_path / "two" / "hot" / f"{index}.png", np.full((2, 5, 3), (200, 10, index), np.uint8))
        _write(tmp_path / "two" / "cold" / f"{index}.BMP", np.full((2, 5, 3), (10, 200, index), np.uint8))
    train = data.load(tmp_path / "two").train
    assert train.x_shape == (3, 2, 5)
    assert torch.equal(train.labels, (train.stored[:, 0, 0, 0] == 200).long())


def test_invalid_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no image"):
        data.load(tmp_path)
    for index in range(3):
        _write(tmp_path / f"{index}.png", np.zeros((4, 4 + index // 2), np.uint8))
    with pytest.raises(ValueError, match=r"2.png has \(1, 4, 5\) and 0.png has \(1, 4, 4\); resize or convert it"):
        data.load(tmp_path)
    _write(tmp_path / "sub" / "3.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="0.png lies beside sub/; move it into a subfolder"):
        data.load(tmp_path)
    (tmp_path / "sub" / "3.png").unlink()
    _write(tmp_path / "0.png", np.zeros((4, 4), np.uint16))
    with pytest.raises(ValueError, match=r"8 bits a channel, but .*0.png has mode I;16; convert it"):
        data.load(tmp_path)
    (tmp_path / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")  # another program's
    with pytest.raises(ValueError, match=r"0.png is not an image that can be read \(UnidentifiedImageError\)"):
        data.load(tmp_path)
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(ValueError, match="0.png is not an image that can be read"):
        data.load(tmp_path)


class Pictures(Dataset[object]):
    """Pillow images with labels."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> object:
        return Image.fromarray(BYTES[index, 0].numpy()), index, "more"


class Stream(IterableDataset[object]):
    """Elements of a list, one by one."""

    def __init__(self, elements: list[object]) -> None:
        self.elements = elements

    def __iter__(self) -> Iterator[object]:
        return iter(self.elements)


def test_torch_data_sets_give_the_arrays_they_hold() -> None:
    expected = data.from_arrays(BYTES[:20], torch.arange(20))
    for source in (DataLoader(TensorDataset(BYTES[:20], torch.arange(20)), batch_size=7), Pictures()):
        made = data.load(source)
        assert torch.equal(made.train.stored, expected.train.stored)
        assert torch.equal(made.train.labels, expected.train.labels)
    assert data.load(Pictures()).name == "Pictures"
    unlabeled = data.load(Stream([(x, x) for x in BYTES[:20].numpy()]))
    assert torch.equal(unlabeled.test.stored, expected.test.stored)
    assert unlabeled.test.labels is None


def test_a_shuffling_loader_gives_one_order_and_leaves_the_stream_alone() -> None:
    loader = DataLoader(TensorDataset(BYTES[:50]), batch_size=8, shuffle=True)
    state = torch.get_rng_state()
    first = data.load(loader)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(1)
    assert data.load(loader).train.hash() == first.train.hash()


ROWS, ANSWERS = torch.rand(103, 4).double(), torch.arange(103)
PAIRS = TensorDataset(ROWS, ANSWERS)
SOURCES = [(ROWS, ANSWERS), (ROWS.numpy(), ANSWERS.numpy()), PAIRS, DataLoader(PAIRS, 10), DataLoader(PAIRS, None)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_load_split_keeps_all_data_in_order(source: Any) -> None:
    split = data.load_split(source, name="mine")
    assert torch.equal(split.stored, ROWS)
    assert torch.equal(split.labels, ANSWERS)
    assert split.name == "mine"
    with pytest.raises(TypeError, match=r"pyrovae.data.load_split makes one split of an array"):
        Loader([source])  # type: ignore[arg-type]


def test_a_loader_that_drops_data_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert len(data.load_split(DataLoader(TensorDataset(ROWS), batch_size=10, drop_last=True))) == 100
    assert "3 data are left out" in caplog.text


def test_load_takes_names_arrays_pairs_and_data() -> None:
    digits = data.load("Digits", seed=4)
    assert digits.test.hash() == data.digits(seed=4).test.hash()
    assert data.load(digits) is digits
    pair = data.load((BYTES.numpy(), torch.arange(700)), validation=100, test=0.5)
    assert [len(part) for part in (pair.train, pair.validation, pair.test)] == [250, 100, 350]
    assert torch.equal(data.load(BYTES).train.stored, data.from_arrays(BYTES).train.stored)
    rows = [[float(i), 1.0] for i in range(20)]
    assert data.load_split(rows).stored.tolist() == rows


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("minst", ValueError, "mnist, fashion_mnist, kmnist, or by .* but 'minst' is neither; did you mean mnist"),
        (Path("/nowhere/x.npz"), ValueError, "'/nowhere/x.npz' is neither; check the path"),
        (3, TypeError, "`source` must be a name, .* got int; stack the data"),
        ({"x": ROWS}, TypeError, "`source` must be a name, .* got dict; stack the data"),
    ],
)
def test_unknown_sources_are_refused(source: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        data.load(source)
    is_name = isinstance(source, str | Path)
    with pytest.raises(TypeError, match=f"`source` must be an array, .*; {'give load' if is_name else 'stack'}"):
        data.load_split(source)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"form": "binary"}, "DynamicBinarization takes floats"),
        ({"images": True}, "images are (C, H, W) with C of 1 or 3, but data of 'arrays' are (2,)"),
        ({"labels": True}, "labels are needed, but 'arrays' has none"),
    ],
)
def test_data_that_do_not_fit_end_a_script_with_one_line(
    needs: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        data.load_or_exit(torch.linspace(-3, 3, 40).view(20, 2), **needs)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    fitting = data.load_or_exit("digits", form="binary", images=True, labels=True)
    assert fitting.train.transform == DynamicBinarization()
