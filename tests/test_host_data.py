"""Data that do not fit on the device have the numbers of data that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import make_vae, numbers
from torch import Tensor, nn

from pyrovae import data
from pyrovae.data import Data, loader, transforms
from pyrovae.data.arrays import from_splits
from pyrovae.data.loader import Loader, Source
from pyrovae.objectives import IWAE
from pyrovae.runtime import memory
from pyrovae.training import Training, fit, step

ON_HOST = "the data stay in host memory, from which minibatches are copied"
BYTES = torch.randint(0, 256, (90, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def keep_on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "RESIDENT_SHARE", 0.0)


def of_bytes(transform: transforms.Transform, *, covariates: bool = False) -> Data:
    """Return 53 data to train on, which no usual batch size divides, and 20 to watch."""
    found = data.from_arrays(BYTES, levels=256, validation=20, test=17).with_transform(transform)
    return found.with_covariates(lambda split: split.stored.flatten(1)[:, :3].double()) if covariates else found


class Conditional(nn.Module):
    """A pair of images, as they are, and what travels with them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 2), nn.Linear(5, 64)

    def model(self, x: Tensor, c: Tensor) -> None:
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = self.decoder(torch.cat([z, c.expand(*z.shape[:-1], -1)], -1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor, c: Tensor) -> None:
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 0.5).to_event(1))


def tuple_of_tensors() -> tuple[Tensor, Tensor]:
    x = BYTES[:53].double() / 255
    return x, x.flatten(1)[:, :3]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Data | Source]]] = {
    "dynamic": (make_vae, lambda: of_bytes(transforms.DynamicBinarization())),
    "static": (make_vae, lambda: of_bytes(transforms.StaticBinarization())),
    "covariates": (Conditional, lambda: of_bytes(transforms.Dequantization(), covariates=True)),
    "tensors": (Conditional, tuple_of_tensors),
}


def trained(
    case: str, *, engine: str = "eager", batch_size: int = 16, epochs: int = 3, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Return the history without times, and all parameters and buffers."""
    torch.manual_seed(1)
    make, given = CASES[case]
    pair = make()
    training = Training(epochs=epochs, batch_size=batch_size, learning_rate=0.01, device="cpu", engine=engine)
    history = fit(pair.model, pair.guide, given(), training=training, show_progress=False, **options)
    return numbers(history), pair.state_dict()


def assert_same(a: tuple[Any, dict[str, Tensor]], b: tuple[Any, dict[str, Tensor]]) -> None:
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(value, b[1][name]) for name, value in a[1].items())


@pytest.mark.parametrize(("case", "engine"), [*((case, "eager") for case in CASES), ("covariates", "captured")])
def test_data_in_host_memory_give_the_numbers_of_resident_ones(
    case: str, engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(step, "has_compiler", lambda: False)
    resident = trained(case, engine=engine)
    assert ON_HOST not in caplog.text
    keep_on_host(monkeypatch)
    assert_same(trained(case, engine=engine), resident)
    assert ON_HOST in caplog.text
    assert "run eagerly" not in caplog.text


def test_validation_batches_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.training.validation_bounds.VALIDATION_ROWS", 7)
    options = {"batch_size": 1000, "objective": IWAE(num_particles=3)}
    resident = trained("dynamic", **options)
    keep_on_host(monkeypatch)
    assert_same(trained("dynamic", **options), resident)


def test_a_run_is_resumed_wherever_its_data_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resident = trained("dynamic", epochs=4)
    trained("dynamic", epochs=4, folder=tmp_path / "run", on_epoch=lambda epoch: epoch.epoch == 2)
    keep_on_host(monkeypatch)
    assert_same(trained("dynamic", epochs=4, folder=tmp_path / "run", resume=True), resident)


# which data stay in host memory


def test_size_decides_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    given = of_bytes(transforms.DynamicBinarization())
    size = 73 * 64 + 20 * 64 * 8  # bytes of both parts, and the validation data as they are scored
    vae = make_vae()
    training = Training(epochs=1, device="cpu")
    for free in (2 * size, 2 * size - 1):
        assert ON_HOST not in caplog.text
        monkeypatch.setattr(memory, "available", lambda device, free=free: free)
        fit(vae.model, vae.guide, given, training=training, show_progress=False)
    assert caplog.messages == [f"{ON_HOST}: they take 14.6 KiB, and 29.1 KiB are free on cpu"]


def test_what_is_made_once_for_all_epochs_has_to_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()
    monkeypatch.setattr(memory, "available", lambda device: 53 * 64 * 8)
    with pytest.raises(ValueError, match="the data, transformed once for all epochs, needs about 36.5 KiB on cpu"):
        fit(vae.model, vae.guide, of_bytes(transforms.StaticBinarization()), training=Training(device="cpu"))


# memory-mapped data


def test_mapped_files_are_read_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for number, count in enumerate((53, 20, 17)):
        np.save(tmp_path / f"{number}.npy", BYTES[:count].numpy())
        parts.append((np.load(tmp_path / f"{number}.npy", mmap_mode="c"), None))
    mapped = from_splits(*parts, name="mapped", levels=256)
    assert mapped.train.stored.data_ptr() == parts[0][0].ctypes.data
    rows = Loader(mapped.with_transform(transforms.DynamicBinarization()).train)
    assert rows.stored_rows()[0].data_ptr() == parts[0][0].ctypes.data
    monkeypatch.setitem(CASES, "mapped", (make_vae, lambda: mapped.with_transform(transforms.DynamicBinarization())))
    resident = trained("mapped")
    keep_on_host(monkeypatch)
    assert_same(trained("mapped"), resident)
