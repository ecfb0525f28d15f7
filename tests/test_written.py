"""The report of an evaluation with all its checks: numbers, files, and how a browser sees it."""

from __future__ import annotations

import html
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import arviz
import browser
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from conftest import TwoLayers, make_vae

import pyrovae
from pyrovae import Checks, Training
from pyrovae.report import read_report, write_report
from pyrovae.results import Evaluation

FILES = {"index.html", "evaluation.json", "evaluation.nc", "per_datum.safetensors"}
FEW = Checks(num_annealed=20, num_simulated=10, num_refined=8, num_encoded=30, num_temperatures=8, refit_epochs=2)
SECTIONS = [
    "Bounds",
    "Sandwich",
    "Where the gap comes from",
    "Is the guide any good?",
    "Latent units",
    "Data and the model",
    "Training",
    "Configuration, versions, hashes",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation, Any, Any]:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    vae, data = make_vae(), pyrovae.data.digits().for_form("binary")
    history = pyrovae.fit(vae.model, vae.guide, data, training=Training(epochs=3, device="cpu"), show_progress=False)
    part = data.test.first(40)
    found = pyrovae.evaluate(vae.model, vae.guide, part, ks=(1, 5, 50), checks=FEW, show_progress=False)
    folder = write_report(
        tmp_path_factory.mktemp("written"),
        found,
        model=vae.model,
        guide=vae.guide,
        data=part,
        history=history,
        settings={"latent_dim": 3, "a < b": None},
    )
    return folder, found, vae, part


def text_of(page: str) -> str:
    """Return what is read on a page, without its pictures, one line for each row or paragraph."""
    bare = re.sub(r"<img[^>]*>|<style>.*?</style>", "", page, flags=re.S)
    lines = re.sub(r"</(tr|p|dt|dd|caption|h\d)>|<br>", "\n", bare)
    return html.unescape(re.sub(r"<(/t[dh]|t[dh][^>]*)>", " ", lines)).replace("±", "+-")


def test_numbers_are_those_of_terminal_and_json(report: tuple[Path, Evaluation, Any, Any]) -> None:
    folder, found, _, _ = report
    assert {path.name for path in folder.iterdir()} == FILES
    page = (folder / "index.html").read_text()
    assert re.findall(r"<h2 id=[^>]*>(.*?)</h2>", page) == SECTIONS
    read = re.sub(r"<[^>]*>", "", text_of(page))
    rows = {" ".join(line.split()) for line in read.splitlines()}
    saved = read_report(folder.parent)
    assert saved == found
    assert str(saved) == str(found)
    tables = found.tables()
    assert len(tables) >= 9
    for table in tables:
        for row in table.rows:
            cells = " ".join(" ".join(str(cell) for cell in row).split())
            assert cells in rows, f"{cells!r} of the terminal is not on the page"
    plain = json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert f"{plain['elbo']['value']:.3f}" in read
    assert f"{plain['checked']['annealing']['bound']['value']:.3f}" in read
    for word in (found.data_hash, *found.versions.values(), found.weights.verdict):
        assert word in read
    assert page.count(found.date) == 1


def test_the_same_evaluation_gives_the_same_files(report: tuple[Path, Evaluation, Any, Any], tmp_path: Path) -> None:
    folder, found, vae, part = report
    again = pyrovae.evaluate(vae.model, vae.guide, part, ks=(1, 5, 50), checks=FEW, show_progress=False)
    history = pyrovae.results.History((), 1, "")
    one, two = (
        write_report(
            tmp_path / name, evaluation, model=vae.model, guide=vae.guide, data=part, history=history, settings={}
        )
        for name, evaluation in (("one", found), ("two", again))
    )
    for name in FILES:
        first, second = ((place / name).read_bytes() for place in (one, two))
        assert first.replace(found.date.encode(), b"") == second.replace(again.date.encode(), b""), name
    assert (one / "evaluation.nc").read_bytes() == (folder / "evaluation.nc").read_bytes()


def test_draws_are_read_by_arviz(report: tuple[Path, Evaluation, Any, Any]) -> None:
    folder, found, _, part = report
    tree = xarray.open_datatree(io.BytesIO((folder / "evaluation.nc").read_bytes()), engine="h5netcdf")
    z = tree["posterior"]["z"]
    assert z.dims[:3] == ("chain", "draw", "datum")
    assert z.sizes["datum"] == 40
    assert tree["sample_stats"]["log_weights"].sizes["particle"] == 50
    np.testing.assert_array_equal(tree["observed_data"]["x"].values, part.fixed().numpy())
    np.testing.assert_allclose(tree["sample_stats"]["khat"].values, found.per_datum["khat"].numpy())
    assert tree.attrs["data_hash"] == found.data_hash
    assert tree.attrs["L_50"] == found.iwae[-1].value
    data = arviz.from_netcdf(folder / "evaluation.nc")
    table = arviz.summary(data.posterior.isel(datum=slice(0, 2)), kind="stats")
    assert len(table) == 6


def test_other_data_than_those_evaluated_are_refused(report: tuple[Path, Evaluation, Any, Any], tmp_path: Path) -> None:
    _, found, vae, part = report
    with pytest.raises(ValueError, match="the data that were evaluated, digits/test.*, but received others"):
        write_report(tmp_path, found, model=vae.model, guide=vae.guide, data=part.first(3))


def test_a_pair_written_by_hand_has_a_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = TwoLayers(bottom_up=True)
    x = torch.bernoulli(torch.full((12, 4), 0.5))
    found = pyrovae.evaluate(pair.model, pair.guide, x, ks=(1, 5, 50), checks=FEW, show_progress=False)
    folder = write_report(tmp_path, found, model=pair.model, guide=pair.guide, data=x)
    page = (folder / "index.html").read_text()
    titles = re.findall(r"<h2 id=[^>]*>(.*?)</h2>", page)
    assert titles == [title for title in SECTIONS if title not in ("Data and the model", "Training")]
    tree = xarray.open_datatree(io.BytesIO((folder / "evaluation.nc").read_bytes()), engine="h5netcdf")
    assert set(tree["posterior"].data_vars) == {"z1", "z2"}


def test_weights_that_cannot_be_trusted_are_cautioned_against(tmp_path: Path) -> None:
    vae = make_vae()
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(40)  # a posterior that no encoder knows of
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    found = pyrovae.evaluate(vae.model, vae.guide, x, ks=(1, 5, 50), show_progress=False)
    assert found.weights.verdict != "K is enough"
    page = (write_report(tmp_path, found, model=vae.model, guide=vae.guide, data=x) / "index.html").read_text()
    assert f'<div class="caution" role="note"><p>{found.weights.verdict}: ' in page
    assert 'class="doubtful"' in page


def test_a_model_that_is_nan_has_a_report_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()
    run = vae.decoder.run
    monkeypatch.setattr(vae.decoder, "run", lambda *args: run(*args) * math.nan)
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    checks = replace(FEW, num_encoded=12)
    found = pyrovae.evaluate(vae.model, vae.guide, x, ks=(1, 5, 50), checks=checks, show_progress=False)
    assert found.weights.num_nan == 12
    page = (write_report(tmp_path, found, model=vae.model, guide=vae.guide, data=x) / "index.html").read_text()
    cautions = re.findall('<div class="caution" role="note"><p>(.*?)</div>', page, flags=re.S)
    assert any("so that no data can be simulated" in caution for caution in cautions)
    left_out = [caution for caution in cautions if caution.startswith("A picture is left out")]
    assert len(left_out) == 4  # the waterfall, samples, traversals, interpolations; no datum has a gap to order by
    assert all(caution.count("</p>") == 1 for caution in cautions)
    assert ": 12 of 12 data have a value that is not finite, which no mean may hide" in page


@pytest.mark.skipif(browser.chromium() is None, reason="no Chromium on this machine to look at the page")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_all_of_it(report: tuple[Path, Evaluation, Any, Any], tmp_path: Path, *, dark: bool) -> None:
    page = (report[0] / "index.html").read_text()
    sights, console = browser.look(page, tmp_path, widths=(1280, 400), height=14000, dark=dark)
    assert console == []
    for sight, width in zip(sights, (1280, 400), strict=True):
        assert sight.found["scrollWidth"] == width
        assert sight.found["height"] <= 14000
        assert len(sight.found["figures"]) == page.count("<figure ") == 11
        for box in sight.found["figures"]:
            pixels = sight.crop(box).astype(int) @ (65536, 256, 1)
            assert len(np.unique(pixels)) > 20, "an empty picture"
        assert min(ratio for _, ratio in sight.found["contrasts"]) >= 4.5


def test_names_of_any_origin_reach_no_file_as_they_are(tmp_path: Path) -> None:
    """A name with control characters, a surrogate of a file name, a formula and mathematics, and a site in a scope."""
    name, site = "=a\x1b[31m\x00\n\u202e\udc80 $x_{$", "scope/z\x1b $a_{b$"

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(site, dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(site, dist.Normal(x / 2, 0.8).to_event(1))

    least = replace(FEW, num_annealed=0, num_simulated=0, num_refined=3, num_encoded=12, refit_epochs=0)
    split = pyrovae.data.Split(torch.randn(12, 2), name=name)
    found = pyrovae.evaluate(model, guide, split, ks=(1, 50), checks=least, show_progress=False)
    folder = write_report(tmp_path, found, model=model, guide=guide, data=split)
    page = (folder / "index.html").read_text()
    assert page.replace("\n", "").isprintable()
    assert r"=a\x1b[31m\x00\n\u202e\udc80 $x_{$" in page
    assert "A picture is left out" not in page
    assert str(found).replace("\n", "").isprintable()
    assert read_report(tmp_path).data == name, "the numbers keep the name as it is"
    tree = xarray.open_datatree(io.BytesIO((folder / "evaluation.nc").read_bytes()), engine="h5netcdf")
    assert tree.attrs["data"].isprintable()
    assert list(tree["posterior"].data_vars) == [r"scope.z\x1b $a_{b$"]
