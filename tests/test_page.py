"""A report is one file that needs no other, says what its tables say, and reads on screens and on paper."""

from __future__ import annotations

import base64
import html
import re
import tomllib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browser
import numpy as np
import pytest
import torch
from conftest import make_vae
from matplotlib.figure import Figure

import pyrovae
from pyrovae import likelihoods, report
from pyrovae.report.page import Caution, Definitions, Headline, Picture, Section, render
from pyrovae.report.style import DARK, INK, PALETTE, blank, dress, styled, to_svg
from pyrovae.results import Epoch, History, Number, Table, Tabled

DATE = "2026-11-21 16:30"
NASTY = '<b onclick="x()">&amp; $x_{$ `\'</script> --> ]]> {{ 1 }}'
PAPER = "#16181b"  # of a dark screen
WIDE, NARROW, TALL = 1280, 400, 7000
VOID = {"meta", "link", "br", "img", "hr", "input"}
TABLE = Table(
    ("", "K", "nats", "over the ELBO", "verdict"),
    (
        ("ELBO", "", Number(-24.2589), "", "closed form"),
        ("  KL", "", Number(4.771), Number(None), ""),
        ("L_50", "50", Number(-23.828), Number(0.4301, signed=True, error=0.009), "tight <enough> & cheap"),
    ),
    ("digits <test> & co", "Nats per datum, a sentence that is longer than the table above which it stands is wide."),
    ("Bits at L_50, 1.5 +- 0.5.",),
)
BROAD = Table(
    tuple(f"column {i}" for i in range(10)), (tuple(Number(1234.5 + i, error=0.125) for i in range(10)),), ("Broad.",)
)


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

    def named(self, tag: str) -> list[tuple[dict[str, str], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for _, text in self.named(tag)]


def parse(*parts: Any, summary: list[Headline] | None = None, lead: str = "") -> Parsed:
    sections = [Section("One", parts=parts)] if parts else []
    return Parsed(render(sections, title="Title", date=DATE, summary=summary or [], lead=lead))


class Record(Tabled):
    """A record of two tables."""

    def tables(self) -> tuple[Table, ...]:
        return TABLE, BROAD


def curves() -> Figure:
    epochs = tuple(Epoch(i, i, -30 + i / 3, -35 + i / 3, 5 - i / 9, None, 0.001, 1.0) for i in range(1, 11))
    return report.training_curves(History(epochs, 10, "all done"))


@styled
def colors() -> Figure:
    figure = blank(4.0, 3.0)
    axes = dress(figure.add_subplot(), title="All colors", grid=True)
    for i, color in enumerate(PALETTE):
        axes.bar(i, i + 1.0, color=color)
    return figure


def sample(*, date: str = DATE) -> str:
    images = report.samples(make_vae())
    assert images is not None
    entries = {"hash": "0123456789abcdef" * 4, "sizes": (3, 4), "net": {"hidden": [8, 8], NASTY: NASTY}}
    prose = "L_K has K particles (https://arxiv.org/abs/1509.00519).\n\nOf `bounds` a second paragraph."
    rising = Picture(curves(), "Three curves that rise", "The ELBO, better than L_1.")
    sections = [
        Section("Bounds on log p(x)", prose, [TABLE, rising, Caution("L_50 is loose.")]),
        Section(f"Nasty {NASTY}", NASTY, [Record(), NASTY, Picture(images, NASTY, NASTY), Picture(colors(), "Bars")]),
        Section("Provenance", parts=[Definitions(entries, NASTY)]),
    ]
    summary = [
        Headline("ELBO", Number(-24.259, 2, error=0.2), "nats per datum"),
        Headline("L_50", Number(-23.83, 2), NASTY),
        Headline(NASTY, NASTY, doubtful=True),
    ]
    return render(sections, title=NASTY, date=date, summary=summary, lead=f"Read this.\n\n{NASTY}")


@pytest.fixture(scope="module")
def page() -> str:
    return sample()


@pytest.fixture(scope="module")
def parsed(page: str) -> Parsed:
    return Parsed(page)


def test_nothing_is_fetched_and_nothing_runs(page: str, parsed: Parsed) -> None:
    for tag, attributes, _ in parsed.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for name in attributes.keys() & {"src", "href", "srcset", "data", "action"}:
            own = attributes[name].startswith(("#", "data:image/svg+xml;base64,")) or attributes[name] == "data:,"
            assert own or (tag, attributes[name]) == ("a", "https://arxiv.org/abs/1509.00519")
    assert "@import" not in page
    assert "url(" not in page
    assert "http" not in page.replace("https://arxiv.org/abs/1509.00519", "").replace("http-equiv", "")
    (policy,) = (a["content"] for a, _ in parsed.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_every_string_is_escaped(parsed: Parsed) -> None:
    assert all(not attributes for attributes, _ in parsed.named("b"))
    assert parsed.texts("title") == parsed.texts("h1") == [NASTY]
    for tag in ("h3", "dt", "strong"):
        assert NASTY in parsed.texts(tag)
    assert f"Nasty {NASTY}" in parsed.texts("h2")
    assert parsed.texts("p").count(NASTY) == 3
    assert parsed.texts("dd").count(NASTY) == 3
    assert f"Figure 2. {NASTY}" in parsed.texts("figcaption")
    assert NASTY in [attributes["alt"] for attributes, _ in parsed.named("img")]


def test_no_control_character_reaches_the_page() -> None:
    name = "a\x1b[31m\x00\x07\u202e\udc80b"
    table = Table(("", name), ((name, Number(1.0)),), title=(name,), notes=(name,))
    parts = [table, Picture(curves(), name, name), Definitions({name: name}, name), Caution(name), name]
    page = render([Section(name, name, parts)], title=name, date=DATE, summary=[Headline(name, name, name)], lead=name)
    assert page.replace("\n", "").isprintable()
    page.encode()
    assert Parsed(page).texts("h1") == [r"a\x1b[31m\x00\x07\u202e\udc80b"]


def test_the_document_is_accessible(parsed: Parsed) -> None:
    assert parsed.elements[0][:2] == ("html", {"lang": "en"})
    metas = {attributes.get("name"): attributes.get("content") for attributes, _ in parsed.named("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"] == "light dark"
    headings = [int(tag[1]) for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all(title in parsed.texts("nav")[0] for title in parsed.texts("h2")[1:])
    assert all(attributes["alt"] for attributes, _ in parsed.named("img"))
    assert [text.split(".")[0] for text in parsed.texts("figcaption")] == [f"Figure {i}" for i in (1, 2, 3)]
    ids = [attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for a, _ in parsed.named("a") if a["href"].startswith("#")}
    assert used | {a["aria-labelledby"] for a, _ in parsed.named("section")} <= set(ids)


def test_the_same_input_gives_the_same_bytes() -> None:
    pages = []
    for date in (DATE, "1999-01-01"):
        torch.manual_seed(0)
        pages.append(sample(date=date))
    assert pages[0].count(DATE) == 1
    assert pages[0].replace(DATE, "1999-01-01") == pages[1]


@pytest.mark.parametrize("table", [TABLE, BROAD], ids=["mixed", "numbers"])
def test_tables_have_the_numbers_of_their_text(table: Table) -> None:
    parsed = parse(table)
    cells = [(tag, a.get("scope"), "".join(text)) for tag, a, text in parsed.elements if tag in ("td", "th")]
    width = len(table.header)
    rows = [[text.strip().replace("±", "+-") for *_, text in cells[i : i + width]] for i in range(0, len(cells), width)]
    lines = str(Table(table.header, table.rows)).splitlines()
    assert [[text for text in row if text] for row in rows] == [re.split(r"\s{2,}", line.strip()) for line in lines]
    for index, (tag, scope, _) in enumerate(cells):
        expected = "col" if index < width else "row" if index % width == 0 else None
        assert (tag, scope) == ("th" if expected else "td", expected)
    assert parsed.texts("caption") == ["".join(table.title)]
    assert all(note.replace("+-", "±") in parsed.texts("p") for note in table.notes)
    classes = [a.get("class") for tag, a, _ in parsed.elements if tag in ("td", "th")]
    assert classes == [None, None, None, None, "words" if table is TABLE else None] * (len(cells) // 5)


def test_a_page_without_sections_and_a_table_without_rows() -> None:
    assert parse(Table(("a", "b"), ())).texts("th") == ["a", "b"]
    assert parse().named("main")


def test_definitions_keep_their_form() -> None:
    digest = "ab" * 16
    parsed = parse(Definitions({"a": {"b": {"c": 1.5}, "d": None}, "e": [1, "two"], "f": digest, "g": "decade"}))
    assert parsed.texts("dt") == list("abcdefg")
    expected = ["bc1.5dNone", "c1.5", "1.5", "None", "1, two", digest, "decade"]
    assert ["".join(text.split("\n")) for text in parsed.texts("dd")] == expected
    assert parsed.texts("code") == [digest]


def test_headlines_and_sentences_have_signs_code_links_and_subscripts() -> None:
    summary = [Headline("ELBO", Number(-1.25, 2, error=0.5)), Headline("Gap", Number(0.5, 1, signed=True))]
    lead = "Of `x < y`, L_50 and L_K +- 1 (https://pyro.ai/a?b=1&c=2), see https://pyro.ai. HTTPS://x, L_x and ` stay."
    parsed = parse(summary=[*summary, Headline("x", "-y")], lead=lead)
    assert parsed.texts("strong") == ["−1.25 ± 0.50", "+0.5", "-y"]
    assert parsed.texts("code") == ["x < y"]
    links = ["https://pyro.ai/a?b=1&c=2", "https://pyro.ai"]
    assert [(attributes, text) for attributes, text in parsed.named("a")] == [({"href": link}, link) for link in links]
    assert parsed.texts("sub") == ["_50", "_K"]
    assert parsed.texts("p") == [DATE, lead.replace("`x < y`", "x < y").replace("+-", "±")]
    page = render([Section("On https://pyro.ai")], title="https://pyro.ai", date=DATE)
    assert [a["href"] for a, _ in Parsed(page).named("a")] == ["#section-1"], "no link in a link"


def test_other_types_of_parts_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a part of a section is a Table.* but 'One' has a Figure; wrap it in one"):
        parse(curves())


def test_a_figure_is_an_image_that_needs_no_other_file() -> None:
    large = report.samples(make_vae(likelihood=likelihoods.Bernoulli((1, 28, 28))))
    assert large is not None
    for figure in (curves(), colors(), large):
        svg = to_svg(figure)
        assert svg == to_svg(figure)
        assert len(svg) < 500_000
        root = ElementTree.fromstring(svg)
        assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # which would need a font
        for element in root.iter():
            links = [value for name, value in element.attrib.items() if name.endswith("href")]
            assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    parsed = parse(Picture(curves(), "Curves"))
    ((attributes, _),) = parsed.named("img")
    assert base64.b64decode(attributes["src"].partition(",")[2]) == to_svg(curves())
    assert int(attributes["width"]) == round(96 * curves().get_size_inches()[0])


def luminance(color: str) -> float:
    values = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colors_stand_out_on_light_and_dark() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for color in (INK, "#737373"):
        assert contrast(color, "#ffffff") >= 4.5
        assert contrast(DARK[color], PAPER) >= 4.5
    assert all(contrast(DARK.get(color, color), PAPER) >= 3 for color in PALETTE)


def test_template_and_style_sheet_are_part_of_the_package() -> None:
    root = Path(pyrovae.__file__).parent
    settings: dict[str, Any] = tomllib.loads((root.parent / "pyproject.toml").read_text())
    assert {"report/page.css", "report/page.html"} <= set(settings["tool"]["setuptools"]["package-data"]["pyrovae"])
    sheet = (root / "report" / "page.css").read_text()
    assert set(re.findall(r"var\(--(\w+)\)", sheet)) <= set(re.findall(r"--(\w+):", sheet)) | {"least"}
    assert PAPER in sheet


def num_colors(pixels: np.ndarray) -> int:
    return len(np.unique(pixels.astype(int) @ (65536, 256, 1)))


needs_chromium = pytest.mark.skipif(browser.chromium() is None, reason="no Chromium on this machine")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_seen_in_wide_and_narrow_windows(page: str, tmp_path: Path, *, dark: bool) -> None:
    sights, console = browser.look(page, tmp_path, widths=(WIDE, NARROW), height=TALL, dark=dark)
    paper = PAPER if dark else "#ffffff"
    assert console == []
    for sight, width, scale in zip(sights, (WIDE, NARROW), (1.0, 0.74), strict=True):
        assert sight.found["width"] == sight.found["scrollWidth"] == width
        assert sight.found["height"] <= TALL
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in sight.found["boxes"])
        assert min(ratio for _, ratio in sight.found["contrasts"]) >= 4.5
        assert "#" + bytes(sight.pixels[-1, 0]).hex() == paper
        assert len(sight.found["figures"]) == 3
        assert all(found >= scale for found in sight.found["scales"])
        for box in sight.found["figures"]:
            pixels = sight.crop(box)
            assert min(box["width"], box["height"]) > 100
            assert num_colors(pixels) > 20
            assert "#" + bytes(pixels[0, 0]).hex() == paper  # the ground of the page, not one of its own
        drawn = sight.crop(sight.found["figures"][0]).reshape(-1, 3)
        ink = "#" + bytes(drawn[np.abs(drawn - drawn[0].astype(int)).sum(1).argmax()]).hex()
        assert contrast(ink, paper) >= 4.5


@needs_chromium
def test_it_prints_on_white_paper(page: str, tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    light, console = browser.to_pdf(page, tmp_path, dark=False)
    dark, _ = browser.to_pdf(page, tmp_path / "dark", dark=True)
    assert console == []
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", light)) <= 8
    assert abs(len(light) - len(dark)) < 1000
    paper = page.replace("@media print", "@media all").replace(
        "@media screen and (prefers-color-scheme: dark)", "@media not all"
    )
    (sight,), console = browser.look(paper, tmp_path, widths=(673,), height=TALL, dark=True)  # A4 between its margins
    assert sight.found["scrollWidth"] == 673  # no table is cut off
    assert set(sight.found["overflows"]) == {"visible"}
    assert sight.found["paper"] == "rgb(255, 255, 255)"
    pixels = sight.crop(sight.found["figures"][0])
    assert bytes(pixels[0, 0]) == b"\xff\xff\xff"
    assert (pixels.reshape(-1, 3) < 128).all(1).any(), "dark ink"


@needs_chromium
def test_faults_are_seen(tmp_path: Path) -> None:
    empty = html.escape('<svg xmlns="http://www.w3.org/2000/svg" width="200" height="150"></svg>')
    page = f"""<!DOCTYPE html><html lang="en"><head><title>Faults</title></head><body><p style="color: #eee">Pale</p>
<figure><img src="data:image/svg+xml,{empty}" width="200" height="150"></figure><div style="width: 900px">Wide</div>
<script>nonsense()</script></body></html>"""
    (sight,), console = browser.look(page, tmp_path, widths=(NARROW,), height=600, dark=False)
    assert any("nonsense" in line for line in console)
    assert sight.found["scrollWidth"] > 900
    assert num_colors(sight.crop(sight.found["figures"][0])) == 1
    assert min(ratio for _, ratio in sight.found["contrasts"]) < 1.5
