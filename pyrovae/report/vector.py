"""A figure as an SVG element inside a page: one picture for light and dark screens, the same bytes every time."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from PIL import Image

from pyrovae.report.style import SHADES, STYLE

DOTS_PER_INCH = 192  # of what is made of pixels: two for each pixel of a page
POINTS = 2000  # that a scatter may have before it is made of pixels
LEAST = 0.75  # a picture shrinks to this and no further, so that its smallest type can be read
SVG = {"svg.fonttype": "path", "svg.hashsalt": "pyrovae", "svg.image_inline": True}
NO_GROUND: Any = {"facecolor": "none", "edgecolor": "none"}
VARIABLES = {light: f"var(--{name})" for name, (light, _) in SHADES.items()}
REFERENCE = re.compile(r"((?:^|url\()#)([\w.-]+)")
HREF = "{http://www.w3.org/1999/xlink}href"
PNG = "data:image/png;base64,"


def to_svg(figure: Figure, *, prefix: str, alt: str) -> str:
    """Return a figure as an ``<svg>`` element to stand inside HTML.

    Its text is drawn as paths, so that it looks the same everywhere. Colors that do not read well on a dark screen
    are CSS variables, which `shades` defines, unless lines or text lie over colored cells or images: such a figure
    keeps its colors, stands on white and has the class ``card``. The custom property ``--least`` is the width in pixels
    below which it should scroll, not shrink.

    Args:
        figure: drawn in the package's style.
        prefix: of every id in it; a page may have each id once.
        alt: what the figure shows, in words, for those who do not see it.

    """
    card = _writes_over_cells(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | SVG), _pixels_for_crowds(figure):
        figure.savefig(buffer, format="svg", dpi=DOTS_PER_INCH, **NO_GROUND)
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    _rename(root, prefix)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", element.get("style", "") if card else _shaded(element.get("style", "")))
        for name in ("d", "x", "y"):
            if name in element.attrib:
                element.set(name, _rounded(element.get(name, "")))
        if element.get("href", "").startswith(PNG):
            element.set("href", _lean(element.get("href", "")))
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    root.attrib = {
        **{"class": "card" if card else "clear", "role": "img", "aria-label": alt, "viewBox": root.get("viewBox", "")},
        "preserveAspectRatio": "xMinYMid",
        **{"width": f"{width}", "height": f"{height}", "style": f"--least: {round(LEAST * width)}px"},
    }
    return ElementTree.tostring(root, encoding="unicode")


def shades(*, dark: bool) -> str:
    """Return the CSS declarations of the colors that differ between light and dark screens."""
    return " ".join(f"--{name}: {shade[dark]};" for name, shade in SHADES.items())


def _shaded(style: str) -> str:
    return re.sub(r"#[0-9a-f]{6}\b", lambda color: VARIABLES.get(color[0], color[0]), style)


def _writes_over_cells(figure: Figure) -> bool:
    """Return whether some panel has text or lines over an image or colored cells, chosen to be seen on those."""
    return any(
        (axes.images or any(isinstance(artist, QuadMesh) for artist in axes.collections)) and (axes.texts or axes.lines)
        for axes in figure.axes
    )


@contextmanager
def _pixels_for_crowds(figure: Figure) -> Iterator[None]:
    """Let scatters of many points be drawn as pixels meanwhile."""
    crowds = [
        artist
        for axes in figure.axes
        for artist in axes.collections
        if max(len(np.atleast_2d(artist.get_offsets())), len(artist.get_paths())) > POINTS
        and not artist.get_rasterized()
    ]
    for artist in crowds:
        artist.set_rasterized(True)
    try:
        yield
    finally:
        for artist in crowds:
            artist.set_rasterized(False)


def _strip(root: ElementTree.Element) -> None:
    """Take away namespaces, which HTML does without, blanks, the date, and styles, which would reach the whole page."""
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
        element.text = element.tail = None
        if HREF in element.attrib:
            element.set("href", element.attrib.pop(HREF))
        for child in [child for child in element if child.tag.endswith(("}style", "}metadata"))]:
            element.remove(child)


def _rename(root: ElementTree.Element, prefix: str) -> None:
    """Give the ids that something refers to the prefix and a number, and drop the others."""
    used = {
        found[2] for element in root.iter() for value in element.attrib.values() for found in REFERENCE.finditer(value)
    }
    names: dict[str, str] = {}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name is not None and name in used:
            element.set("id", names.setdefault(name, f"{prefix}-{len(names) + 1}"))
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, REFERENCE.sub(lambda found: found[1] + names.get(found[2], found[2]), value))


def _rounded(numbers: str) -> str:
    """Return coordinates in points with at most two digits behind the point."""
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", numbers).replace("\n", " ").strip()


def _lean(source: str) -> str:
    """Return the data URI of an image without the channels that carry nothing."""
    image: Image.Image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix(PNG))))
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    if image.mode == "RGB":
        red, green, blue = image.split()
        image = red if red.tobytes() == green.tobytes() == blue.tobytes() else image
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return PNG + base64.b64encode(buffer.getvalue()).decode()
