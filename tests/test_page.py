"""A report is one file that needs nothing else, says what its tables say, and reads on screens and on paper."""

from __future__ import annotations

import base64
import io
import re
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import matplotlib
import numpy as np
import pytest
import torch
from browser import Sight
from conftest import make_vae
from matplotlib.figure import Figure
from PIL import Image

import pyrovae
from pyrovae import likelihoods, report
from pyrovae.report.content import Caution, Definitions, Headline, Picture, Section
from pyrovae.report.page import render
from pyrovae.report.style import INK, PALETTE, SHADES, STYLE, blank, dress, styled
from pyrovae.report.vector import POINTS, shades, to_svg
from pyrovae.results import Epoch, History, Number, Table, Tabled

DATE = "2026-11-21 16:30"
NASTY = '<b onclick="x()">&amp; $x_{$ `\'</script> --> ]]>'
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
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append((tag, text))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)

    def named(self, tag: str) -> list[tuple[dict[str, str], str]]:
        return [(attributes, "".join(text)) for name, attributes, text in self.elements if name == tag]


class Record(Tabled):
    """A record of two tables."""

    def tables(self) -> tuple[Table, ...]:
        return TABLE, BROAD


def curves() -> Figure:
    epochs = tuple(Epoch(i, i, -30 + i / 3, -35 + i / 3, 5 - i / 9, None, 0.001, 1.0) for i in range(1, 11))
    return report.training_curves(History(epochs, 10, "all done"))


@styled
def crowd(num: int = POINTS + 1) -> Figure:
    figure = blank(4.0, 3.0)
    axes = dress(figure.add_subplot(), title="Crowd", grid=True)
    axes.scatter(np.linspace(0, 1, num), np.linspace(0, 1, num) ** 2, color=PALETTE[2], s=4)
    axes.text(0.1, 0.8, "black", color="black")  # which is no attribute in an SVG
    return figure


@styled
def cells() -> Figure:
    figure = blank(4.0, 3.0)
    axes = dress(figure.add_subplot())
    axes.pcolormesh(np.arange(4.0).reshape(2, 2), cmap=matplotlib.colormaps["viridis"])
    axes.text(0.5, 0.5, "low", color="white")
    axes.text(1.5, 1.5, "high", color=INK)
    return figure


def sections() -> list[Section]:
    images = report.samples(make_vae())
    assert images is not None
    return [
        Section(
            "Bounds on log p(x)",
            "L_K has K particles (https://arxiv.org/abs/1509.00519).\n\nOf `bounds` a second paragraph.",
            [
                TABLE,
                Picture(curves(), "Three curves that rise", "The ELBO, better than L_1."),
                Caution("L_50 is loose."),
            ],
        ),
        Section(
            f"Nasty {NASTY}", NASTY, [Record(), NASTY, Picture(images, NASTY, NASTY), Picture(crowd(), "A parabola")]
        ),
        Section(
            "Provenance",
            parts=[
                Picture(cells(), "Four cells", "Text on colors."),
                Definitions(
                    {"hash": "0123456789abcdef" * 4, "sizes": (3, 4), "net": {"hidden": [8, 8], NASTY: NASTY}}, NASTY
                ),
            ],
        ),
    ]


def sample(*, date: str = DATE) -> str:
    summary = [
        Headline("ELBO", Number(-24.259, 2, error=0.2), "nats per datum"),
        Headline("L_50", Number(-23.83, 2), NASTY),
        Headline(NASTY, NASTY, doubtful=True),
    ]
    return render(sections(), title=NASTY, date=date, summary=summary, lead=f"Read this.\n\n{NASTY}")


@pytest.fixture(scope="module")
def page() -> str:
    return sample()


@pytest.fixture(scope="module")
def parsed(page: str) -> Parsed:
    return Parsed(page)


def test_nothing_is_fetched_and_nothing_runs(page: str, parsed: Parsed) -> None:
    links = set()
    for tag, attributes, text in parsed.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "animate", "set", "foreignobject"}
        assert not any(name.startswith("on") for name in attributes)
        for name in attributes.keys() & {"src", "href", "xlink:href", "srcset", "data", "action"}:
            if tag == "a" and attributes[name].startswith("https://"):
                links.add(attributes[name])
                assert "".join(text) == attributes[name]
            else:
                assert attributes[name].startswith(("#", "data:image/png;base64,")) or attributes[name] == "data:,"
    assert links == {"https://arxiv.org/abs/1509.00519"}
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", page))
    assert "@import" not in page
    assert "http" not in page.replace("https://arxiv.org/abs/1509.00519", "").replace("http-equiv", "")
    (policy,) = (a["content"] for a, _ in parsed.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_every_string_is_escaped(parsed: Parsed) -> None:
    assert not parsed.named("b") or all(not attributes for attributes, _ in parsed.named("b"))
    assert [text for _, text in parsed.named("title")] == [NASTY]
    assert [text for _, text in parsed.named("h1")] == [NASTY]
    assert f"Nasty {NASTY}" in [text for _, text in parsed.named("h2")]
    assert NASTY in [text for _, text in parsed.named("h3")]
    assert [text for _, text in parsed.named("p")].count(NASTY) == 3
    assert f"Figure 2. {NASTY}" in [text for _, text in parsed.named("figcaption")]
    assert NASTY in [text for _, text in parsed.named("dt")]
    assert [text for _, text in parsed.named("dd")].count(NASTY) == 3
    assert NASTY in [attributes["aria-label"] for attributes, _ in parsed.named("svg")]


def test_no_control_character_reaches_the_page() -> None:
    name = "a\x1b[31m\x00\x07\u202e\udc80b"
    table = Table(("", name), ((name, Number(1.0)),), title=(name,), notes=(name,))
    parts = [table, Picture(curves(), name, name), Definitions({name: name}, name), Caution(name), name]
    page = render([Section(name, name, parts)], title=name, date=DATE, summary=[Headline(name, name, name)], lead=name)
    assert page.replace("\n", "").isprintable()
    page.encode()
    for tag, *_, text in Parsed(page).elements:
        assert tag not in ("title", "h1") or "".join(text) == r"a\x1b[31m\x00\x07\u202e\udc80b"


def test_the_document_says_what_it_is(parsed: Parsed) -> None:
    assert parsed.elements[0][:2] == ("html", {"lang": "en"})
    metas = {attributes.get("name"): attributes for attributes, _ in parsed.named("meta")}
    assert metas["viewport"]["content"] == "width=device-width, initial-scale=1"
    assert metas["color-scheme"]["content"] == "light dark"
    headings = [int(tag[1]) for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert headings.count(1) == 1
    assert len(parsed.named("style")) == 1  # none of a figure, which would be of the whole page
    assert all(after <= before + 1 for before, after in pairwise(headings))
    (contents,) = (text for _, text in parsed.named("nav"))
    for section in sections():
        assert section.title in contents
    assert all(attributes.get("aria-label") for attributes, _ in parsed.named("svg"))
    assert [text.split(".")[0] for _, text in parsed.named("figcaption")] == [f"Figure {i}" for i in (1, 2, 3, 4)]


def test_ids_are_unique_and_found(page: str, parsed: Parsed) -> None:
    ids = [attributes["id"] for _, attributes, _ in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 100
    used = {target for _, a, _ in parsed.elements for target in re.findall(r"^#([^\s]+)$", a.get("href", ""))}
    used |= set(re.findall(r"url\(#([^)]*)\)", page))
    used |= {a["aria-labelledby"] for _, a, _ in parsed.elements if "aria-labelledby" in a}
    assert used <= set(ids)
    svg_ids = {name for name in ids if re.fullmatch(r"figure-\d+-\d+", name)}
    assert svg_ids <= used  # none is there for nothing


def test_the_same_input_gives_the_same_bytes(page: str) -> None:
    torch.manual_seed(0)  # which the untrained decoder draws its weights with
    one, other = sample(), None
    torch.manual_seed(0)
    other = sample(date="1999-01-01")
    assert one.count(DATE) == 1
    assert one.replace(DATE, "1999-01-01") == other


def rows_of(table: Table) -> list[list[str]]:
    """Return the cells of a table as its text has them."""
    lines = str(Table(table.header, table.rows)).splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines]


@pytest.mark.parametrize("table", [TABLE, BROAD], ids=["mixed", "numbers"])
def test_tables_have_the_numbers_of_their_text(table: Table) -> None:
    parsed = Parsed(render([Section("One", parts=[table])], title="Title", date=DATE))
    cells = [(tag, a, "".join(text)) for tag, a, text in parsed.elements if tag in ("td", "th")]
    width = len(table.header)
    assert len(cells) == width * (1 + len(table.rows))
    rows = [[text.strip().replace("±", "+-") for *_, text in cells[i : i + width]] for i in range(0, len(cells), width)]
    assert [[text for text in row if text] for row in rows] == [[t for t in row if t] for row in rows_of(table)]
    for index, (tag, attributes, _) in enumerate(cells):
        expected = "col" if index < width else "row" if index % width == 0 else None
        assert (tag, attributes.get("scope")) == ("th" if expected else "td", expected)
    ((_, caption),) = parsed.named("caption")
    assert caption == "".join(table.title)
    assert all(note.replace("+-", "±") in [text for _, text in parsed.named("p")] for note in table.notes)


def test_columns_of_words_are_flush_left_and_numbers_are_not() -> None:
    parsed = Parsed(render([Section("One", parts=[TABLE])], title="Title", date=DATE))
    cells = [a.get("class") for tag, a, _ in parsed.elements if tag in ("td", "th")]
    assert cells == [None, None, None, None, "words"] * 4


def test_a_table_without_rows_and_a_page_without_sections() -> None:
    parsed = Parsed(render([Section("One", parts=[Table(("a", "b"), ())])], title="Title", date=DATE))
    assert [text for _, text in parsed.named("th")] == ["a", "b"]
    assert Parsed(render([], title="Title", date=DATE)).named("main")


def test_definitions_keep_their_form() -> None:
    entries = {"a": {"b": {"c": 1.5}, "d": None}, "e": [1, "two"], "f": "ab" * 16, "g": "decade"}
    parsed = Parsed(render([Section("One", parts=[Definitions(entries)])], title="Title", date=DATE))
    assert [text for _, text in parsed.named("dt")] == list("abcdefg")
    assert [text for _, text in parsed.named("dd")] == [
        "bc1.5dNone",
        "c1.5",
        "1.5",
        "None",
        "1, two",
        "ab" * 16,
        "decade",
    ]
    assert [text for _, text in parsed.named("code")] == ["ab" * 16]


def test_a_headline_has_its_error_and_a_true_minus() -> None:
    headlines = [
        Headline("ELBO", Number(-1.25, 2, error=0.5)),
        Headline("Gap", Number(0.5, 1, signed=True)),
        Headline("x", "-y"),
    ]
    parsed = Parsed(render([], title="Title", date=DATE, summary=headlines))
    assert [text for _, text in parsed.named("strong")] == ["−1.25 ± 0.50", "+0.5", "-y"]


def test_a_title_with_an_address_is_no_link_in_a_link() -> None:
    parsed = Parsed(render([Section("On https://pyro.ai")], title="https://pyro.ai", date=DATE))
    assert [(attributes["href"], text) for attributes, text in parsed.named("a")] == [
        ("#section-1", "On https://pyro.ai")
    ]


def test_sentences_have_code_links_and_subscripts() -> None:
    lead = "Of `x < y`, L_50 and L_K +- 1 (https://pyro.ai/a?b=1&c=2), see https://pyro.ai. HTTPS://x, L_x and ` stay."
    page = render([], title="Title", date=DATE, lead=lead)
    parsed = Parsed(page)
    assert [text for _, text in parsed.named("code")] == ["x < y"]
    links = ["https://pyro.ai/a?b=1&c=2", "https://pyro.ai"]
    assert [(attributes, text) for attributes, text in parsed.named("a")] == [({"href": link}, link) for link in links]
    assert [text for _, text in parsed.named("sub")] == ["_50", "_K"]
    ((_, date), (_, sentence)) = parsed.named("p")
    assert (date, sentence) == (DATE, lead.replace("`x < y`", "x < y").replace("+-", "±"))


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a part of a section is a Table.* but 'One' has a Figure; wrap it in one"):
        render([Section("One", parts=[curves()])], title="Title", date=DATE)  # type: ignore[list-item]


def colors_of(svg: str) -> set[str]:
    return set(re.findall(r"#[0-9a-f]{6}\b|var\(--\w+\)", re.sub(r'href="[^"]*"', "", svg)))


def test_a_figure_has_the_colors_of_the_screen() -> None:
    svg = to_svg(curves(), prefix="a", alt="curves")
    assert {"var(--ink)", "var(--faint)", "var(--grid)", "var(--paper)", PALETTE[0]} <= colors_of(svg)
    assert not colors_of(svg) & {light for light, _ in SHADES.values()}
    assert 'class="clear"' in svg
    ground = re.search(r"<path [^>]*>", svg)
    assert ground is not None
    assert "fill: none" in ground[0]  # the figure's own ground, drawn first


def test_text_on_colors_keeps_its_own() -> None:
    svg = to_svg(cells(), prefix="a", alt="cells")
    assert 'class="card"' in svg
    assert "var(" not in svg
    assert {"#ffffff", INK} <= colors_of(svg)


def test_a_crowd_is_drawn_as_pixels_and_left_as_it_was() -> None:
    few, many = crowd(POINTS), crowd(POINTS + 1)
    before = dict(matplotlib.rcParams)
    assert to_svg(few, prefix="a", alt="few").count("<use") > POINTS
    svg = to_svg(many, prefix="a", alt="many")
    assert svg.count("<use") < 100
    assert svg.count("<image") == 1
    assert not many.axes[0].collections[0].get_rasterized()
    assert dict(matplotlib.rcParams) == before


@styled
def image(pixels: np.ndarray) -> Figure:
    figure = blank(2.0, 2.0)
    dress(figure.add_subplot()).imshow(pixels, interpolation="nearest")
    return figure


def embedded(svg: str) -> Image.Image:
    (source,) = re.findall(r'href="data:image/png;base64,([^"]*)"', svg, re.DOTALL)
    return Image.open(io.BytesIO(base64.b64decode(source)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_lose_no_pixel(channels: int, mode: str) -> None:
    pixels = np.random.default_rng(0).uniform(size=(8, 8, channels))
    figure = image(pixels.repeat(3 // channels, -1) if channels < 4 else pixels)
    drawn = embedded(to_svg(figure, prefix="a", alt="pixels"))
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", dpi=192)
    original = embedded(buffer.getvalue())
    assert drawn.mode == mode
    assert np.array_equal(np.asarray(drawn.convert("RGBA")), np.asarray(original.convert("RGBA")))


def test_a_grid_of_images_is_small() -> None:
    figure = report.samples(make_vae(likelihood=likelihoods.Bernoulli((1, 28, 28))))
    assert figure is not None
    assert len(to_svg(figure, prefix="a", alt="samples")) < 500_000


def luminance(color: str) -> float:
    values = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_colors_stand_out_on_light_and_dark() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for name in ("ink", "faint", "black"):
        assert all(contrast(shade, paper) >= 4.5 for shade, paper in zip(SHADES[name], SHADES["paper"], strict=True))
    swapped = {light: dark for light, dark in SHADES.values()}
    for color in PALETTE:
        assert contrast(swapped.get(color, color), SHADES["paper"][1]) >= 3
    assert f"--ink: {INK};" in shades(dark=False)
    assert f"--ink: {SHADES['ink'][1]};" in shades(dark=True)


def test_the_style_sheet_is_part_of_the_package() -> None:
    root = Path(pyrovae.__file__).parent
    settings: dict[str, Any] = tomllib.loads((root.parent / "pyproject.toml").read_text())
    assert "report/page.css" in settings["tool"]["setuptools"]["package-data"]["pyrovae"]
    used = set(re.findall(r"var\(--(\w+)\)", (root / "report" / "page.css").read_text()))
    own = set(re.findall(r"--(\w+):", (root / "report" / "page.css").read_text()))
    assert used - own - {"least"} <= set(SHADES)


def num_colors(pixels: np.ndarray) -> int:
    return len(np.unique(pixels.astype(int) @ (65536, 256, 1)))


needs_chromium = pytest.mark.skipif(
    browser.chromium() is None, reason="no Chromium on this machine to look at the page"
)


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def seen(request: pytest.FixtureRequest, page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("seen")
    sights, console = browser.look(page, folder, widths=(WIDE, NARROW), height=TALL, dark=request.param)
    return request.param, sights, console


@needs_chromium
def test_it_opens_in_silence_and_fits_its_window(seen: tuple[bool, list[Sight], list[str]]) -> None:
    _, sights, console = seen
    assert console == []
    for sight, width in zip(sights, (WIDE, NARROW), strict=True):
        assert sight.found["width"] == sight.found["scrollWidth"] == width
        assert sight.found["height"] <= TALL
        for box in sight.found["boxes"]:
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["height"] > 0


@needs_chromium
def test_figures_are_seen(seen: tuple[bool, list[Sight], list[str]]) -> None:
    for sight, least in zip(seen[1], (1.3, 0.99), strict=True):
        assert len(sight.found["figures"]) == 4
        for box in sight.found["figures"]:
            assert min(box["width"], box["height"]) > 100
            assert num_colors(sight.crop(box)) > 20
        assert all(scale >= least for scale in sight.found["scales"])  # pixels of a point


@needs_chromium
def test_colors_follow_the_screen(seen: tuple[bool, list[Sight], list[str]]) -> None:
    dark, sights, _ = seen
    expected = SHADES["paper"][dark]
    for sight in sights:
        corner = "#" + bytes(sight.pixels[-1, 0]).hex()
        assert corner == expected
        assert min(ratio for _, ratio in sight.found["contrasts"]) >= 4.5
        assert len(sight.found["glyphs"]) > 100
        assert min(sight.found["glyphs"]) >= 4.5
        curves = sight.crop(sight.found["figures"][0])
        assert "#" + bytes(curves[0, 0]).hex() == expected  # the ground of the page, not one of its own
        ink = (
            "#"
            + bytes(
                curves.reshape(-1, 3)[np.abs(curves.reshape(-1, 3) - curves[0, 0].astype(int)).sum(1).argmax()]
            ).hex()
        )
        assert contrast(ink, expected) >= 4.5


@needs_chromium
def test_it_prints(page: str, tmp_path: Path) -> None:
    for name in ("light", "dark"):
        (tmp_path / name).mkdir()
    (light, console), (dark, _) = (
        browser.to_pdf(page, tmp_path / name, dark=name == "dark") for name in ("light", "dark")
    )
    assert console == []
    assert light.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", light)) <= 8
    assert abs(len(light) - len(dark)) < 1000  # paper is white
    paper = page.replace("@media print", "@media all").replace(
        "@media screen and (prefers-color-scheme: dark)", "@media not all"
    )
    (sight,), console = browser.look(paper, tmp_path, widths=(673,), height=TALL, dark=True)  # A4 between its margins
    assert sight.found["scrollWidth"] == 673  # no table is cut off
    assert set(sight.found["overflows"]) == {"visible"}
    assert sight.found["paper"] == "rgb(255, 255, 255)"


@needs_chromium
def test_faults_are_seen(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html lang="en"><head><title>Faults</title></head><body><p style="color: #eee">Pale</p>
<figure><svg width="200" height="150" viewBox="0 0 200 150"></svg></figure><div style="width: 900px">Wide</div>
<script>nonsense()</script></body></html>"""
    (sight,), console = browser.look(page, tmp_path, widths=(NARROW,), height=600, dark=False)
    assert any("nonsense" in line for line in console)
    assert sight.found["scrollWidth"] > 900
    assert num_colors(sight.crop(sight.found["figures"][0])) == 1
    assert min(ratio for _, ratio in sight.found["contrasts"]) < 1.5
