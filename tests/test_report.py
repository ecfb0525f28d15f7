"""The report of an evaluation: its numbers, its files, and the page as a browser shows it."""

from __future__ import annotations

import functools
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

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
from pyrovae.diagnostics import gaps
from pyrovae.evaluation import checks as evaluation_checks
from pyrovae.report import read_report, write_report
from pyrovae.results import Evaluation

FILES = {"index.html", "evaluation.json", "evaluation.nc", "per_datum.safetensors"}
FEW = Checks(
    num_annealed=8, num_simulated=4, num_refined=4, num_encoded=12, num_chains=2, num_leapfrog=1, refit_epochs=1
)
NASTY = '=a\x1b[31m\x00\u202e\udc80 $x_{$ <b onclick="x()">&amp; `\'</script> --> ]]> {{ 1 }}'
SHOWN = r"=a\x1b[31m\x00\u202e\udc80" + NASTY[NASTY.index(" $") :]
pytestmark = pytest.mark.usefixtures("quick_gaps")
VOID = {"meta", "link", "br", "img", "hr", "input"}
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


class Parsed(HTMLParser):
    """The elements of a page with their attributes, in order, and the text below each; every one must be closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, {name: value or "" for name, value in attrs}, text))
        if tag not in VOID:
            self.open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        found = [(a, text) for name, a, text in self.elements if name == tag]
        return ["".join(text) for a, text in found if attributes.items() <= a.items()]

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation, dict[str, Any]]:
    """Return the folder of a report with all its sections, its evaluation, and the programs and data."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    vae, data = make_vae(), pyrovae.data.digits().for_form("binary")
    training = Training(epochs=2, device="cpu", engine="eager")
    history = pyrovae.fit(vae.model, vae.guide, data, training=training, show_progress=False)
    part = data.test.first(30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_checks, "gaps", functools.partial(gaps, num_steps=10))
        evaluation = pyrovae.evaluate(vae.model, vae.guide, part, ks=(1, 5, 50), checks=FEW, show_progress=False)
    programs = {"model": vae.model, "guide": vae.guide, "data": part}
    settings = {"latent_dim": 3, NASTY: NASTY, "unset": None, "net": {"hidden": [8, 9]}}
    folder = tmp_path_factory.mktemp("written")
    return write_report(folder, evaluation, history=history, settings=settings, **programs), evaluation, programs


@pytest.fixture(scope="module")
def page(written: tuple[Path, Evaluation, Any]) -> str:
    return (written[0] / "index.html").read_text()


@pytest.fixture(scope="module")
def parsed(page: str) -> Parsed:
    return Parsed(page)


def draws_of(folder: Path) -> xarray.DataTree:
    return xarray.open_datatree(io.BytesIO((folder / "evaluation.nc").read_bytes()), engine="h5netcdf")


def test_numbers_are_those_of_terminal_and_json(written: tuple[Path, Evaluation, Any], parsed: Parsed) -> None:
    folder, evaluation, _ = written
    assert {path.name for path in folder.iterdir()} == FILES
    saved = read_report(folder.parent)
    assert saved == evaluation
    assert str(saved) == str(evaluation)
    assert [heading for heading in parsed.texts("h2") if heading != "Contents"] == SECTIONS
    rows = {" ".join("".join(text).replace("±", "+-").split()) for tag, _, text in parsed.elements if tag == "tr"}
    for table in evaluation.tables():
        for row in (table.header, *table.rows):
            assert "".join("".join(map(str, row)).split()) in {"".join(text.split()) for text in rows}
    plain = json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert f"{plain['checked']['annealing']['bound']['value']:.3f}" in "".join(rows)
    text = parsed.texts("body")[0]
    for word in (evaluation.data_hash, *evaluation.versions.values(), evaluation.weights.verdict, "hidden8, 9"):
        assert word in " ".join(text.split())
    assert text.count(evaluation.date) == 1
    assert "unset" not in text


def test_sentences_are_those_of_terminal_and_json(written: tuple[Path, Evaluation, Any], parsed: Parsed) -> None:
    folder, evaluation, _ = written
    plain = json.loads((folder / "evaluation.json").read_text())
    page, terminal = ("".join(t.replace("±", "+-").split()) for t in (parsed.texts("body")[0], str(evaluation)))
    sentences = [line for table in evaluation.tables() for line in (*table.title, *table.notes)]
    recommended = plain["recommendation"]
    for sentence in (*sentences, recommended["sentence"], recommended["reason"], *recommended["questions"]):
        assert "".join(sentence.split()) in page
        assert "".join(sentence.split()) in terminal
    (printed,) = re.findall(r"log p\(x\) is at least (\S+\d),", str(evaluation.bounds_table()))
    assert plain["certified"] - 1e-3 <= float(printed) <= plain["certified"]
    assert f"{plain['iwae'][-1]['value']:.3f} nats per datum" in recommended["sentence"]


def test_the_same_evaluation_gives_the_same_files(written: tuple[Path, Evaluation, Any], tmp_path: Path) -> None:
    folder, evaluation, programs = written
    later = replace(evaluation, date="1999-01-01")
    one, two = (write_report(tmp_path / e.date, e, **programs) for e in (evaluation, later))
    for name in FILES:
        first, second = (one / name).read_bytes(), (two / name).read_bytes()
        assert first.replace(evaluation.date.encode(), later.date.encode()) == second, name
    assert (one / "evaluation.nc").read_bytes() == (folder / "evaluation.nc").read_bytes()


def test_draws_stand_beside_the_numbers(written: tuple[Path, Evaluation, Any]) -> None:
    folder, evaluation, programs = written
    tree = draws_of(folder)
    assert tree["sample_stats"]["log_weights"].sizes == {"chain": 1, "particle": 50, "datum": 30}
    np.testing.assert_array_equal(tree["observed_data"]["x"].values, programs["data"].fixed().numpy())
    np.testing.assert_allclose(tree["sample_stats"]["khat"].values, evaluation.per_datum["khat"].numpy())
    assert tree.attrs["data_hash"] == evaluation.data_hash
    assert tree.attrs["L_50"] == evaluation.iwae[-1].value


def test_other_data_than_those_evaluated_are_refused(written: tuple[Path, Evaluation, Any], tmp_path: Path) -> None:
    _, evaluation, programs = written
    with pytest.raises(ValueError, match="the data that were evaluated, digits/test.*, but received others"):
        write_report(tmp_path, evaluation, **programs | {"data": programs["data"].first(3)})


def test_a_hand_written_pair_has_a_report(tmp_path: Path) -> None:
    pair, x = TwoLayers(bottom_up=True), torch.bernoulli(torch.full((12, 4), 0.5))
    evaluation = pyrovae.evaluate(pair.model, pair.guide, x, ks=(1, 5, 50), checks=FEW, show_progress=False)
    folder = write_report(tmp_path, evaluation, model=pair.model, guide=pair.guide, data=x)
    second = write_report(tmp_path, evaluation, model=pair.model, guide=pair.guide, data=x, name="again")
    assert '<a href="../report/index.html">report</a>' in (second / "index.html").read_text()
    assert "Earlier evaluations" not in (folder / "index.html").read_text()
    titles = Parsed((folder / "index.html").read_text()).texts("h2")
    assert titles == ["Contents", *(title for title in SECTIONS if title not in ("Data and the model", "Training"))]
    assert set(draws_of(folder)["posterior"].data_vars) == {"z1", "z2"}


def test_unreliable_weights_have_a_caution(tmp_path: Path) -> None:
    vae = make_vae()
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(40)  # a posterior that no encoder knows of
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    evaluation = pyrovae.evaluate(vae.model, vae.guide, x, ks=(1, 5, 50), show_progress=False)
    assert evaluation.weights.verdict != "K is enough"
    page = (write_report(tmp_path, evaluation, model=vae.model, guide=vae.guide, data=x) / "index.html").read_text()
    assert f'<div class="caution" role="note"><p>{evaluation.weights.verdict}: ' in page
    assert 'class="doubtful"' in page


def test_a_model_that_returns_nan_has_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()
    run = vae.decoder.run
    monkeypatch.setattr(vae.decoder, "run", lambda *args: run(*args) * math.nan)
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    evaluation = pyrovae.evaluate(vae.model, vae.guide, x, ks=(1, 5, 50), checks=FEW, show_progress=False)
    page = (write_report(tmp_path, evaluation, model=vae.model, guide=vae.guide, data=x) / "index.html").read_text()
    cautions = Parsed(page).texts("div", **{"class": "caution"})
    assert any("so that no data can be simulated" in caution for caution in cautions)
    left_out = [caution for caution in cautions if caution.startswith("A picture is left out")]
    assert len(left_out) == 3  # samples, traversals, interpolations; no datum has a gap to order by
    assert ": 12 of 12 data have a value that is not finite, which no mean may hide" in page


def test_names_of_any_origin_are_escaped_in_every_file(tmp_path: Path, parsed: Parsed) -> None:
    site = "scope/z\x1b $a_{b$"

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(site, dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(site, dist.Normal(x / 2, 0.8).to_event(1))

    least = replace(FEW, num_annealed=0, num_simulated=0, num_refined=3, num_encoded=12, refit_epochs=0)
    split = pyrovae.data.Split(torch.randn(12, 2), name=NASTY)
    evaluation = pyrovae.evaluate(model, guide, split, ks=(1, 50), checks=least, show_progress=False)
    folder = write_report(tmp_path, evaluation, model=model, guide=guide, data=split)
    page = (folder / "index.html").read_text()
    assert page.replace("\n", "").isprintable()
    assert "A picture is left out" not in page
    hostile = Parsed(page)
    assert hostile.texts("title") == hostile.texts("h1") == [f"log p(x) of {SHOWN}"]
    assert not any(name.startswith("on") for _, attributes, _ in hostile.elements for name in attributes)
    assert SHOWN in parsed.texts("dt")
    assert SHOWN in parsed.texts("dd")
    assert read_report(tmp_path).data == NASTY, "the numbers keep the name as it is"
    assert draws_of(folder).attrs["data"].isprintable()
    assert list(draws_of(folder)["posterior"].data_vars) == [r"scope.z\x1b $a_{b$"]


def test_nothing_is_fetched_and_nothing_runs(page: str, parsed: Parsed) -> None:
    for tag, attributes, _ in parsed.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in attributes.keys() & {"src", "href", "srcset", "data", "action"}:
            assert attributes[name].startswith(("#", "data:image/svg+xml;base64,")) or attributes[name] == "data:,"
    assert not any(word in page.replace("http-equiv", "") for word in ("@import", "url(", "http"))
    policies = [a["content"] for a in parsed.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0]


def test_the_document_is_accessible(parsed: Parsed) -> None:
    assert parsed.elements[0][:2] == ("html", {"lang": "en"})
    headings = [int(tag[1]) for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all(title in parsed.texts("nav")[0] for title in SECTIONS)
    assert all(attributes["alt"] for attributes in parsed.attributes("img"))
    assert [text.split(".")[0] for text in parsed.texts("figcaption")] == [f"Figure {i}" for i in range(1, 11)]
    ids = [attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for a in parsed.attributes("a")}
    assert used | {a["aria-labelledby"] for a in parsed.attributes("section")} <= set(ids)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("look", "width"), [("light", 1280), ("dark", 400), ("print", 673)])
def test_a_browser_shows_all_of_it(page: str, tmp_path: Path, look: str, width: int) -> None:
    paper = bytes.fromhex("16181b" if look == "dark" else "ffffff")
    if look == "print":  # A4 between its margins
        page = page.replace("@media screen and (prefers-color-scheme: dark)", "@media not all")
        page = page.replace("@media print", "@media all")
    found, sight = browser.look(page, tmp_path, width=width, height=14000, dark=look != "light")
    assert found["width"] == found["scrollWidth"] == width
    assert found["height"] <= 14000
    assert min(found["contrasts"]) >= 4.5
    assert len(found["figures"]) == page.count("<figure ") == 10
    for top, bottom, left, right in found["figures"]:
        pixels = sight[top:bottom, left:right]
        colors, numbers = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        assert len(colors) > 20, "an empty picture"
        assert bytes(pixels[0, 0]) == paper
        stands_out = np.abs(colors.mean(1) - pixels[0, 0].mean()) > 128
        assert numbers[stands_out].sum() > 100, "no ink that stands out"
