"""Style of the figures: palette, type sizes and panels, without a change of matplotlib's settings."""

from __future__ import annotations

import argparse
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib.style
import PIL.Image
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from pyrovae.runtime.annotations import checked

P = ParamSpec("P")
R = TypeVar("R")

INK, FAINT, GRID = "#333333", "#737373", "#e4e4e4"
DASHES = (0, (4, 3))
DOTTED: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (1, 2))}

# *Accessible color sequences for data visualization (Petroff 2021)*, https://arxiv.org/abs/2107.02270
PALETTE = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
FIRST, SECOND = PALETTE[0], PALETTE[6]

# Shades on a dark screen; other colors are legible on both
DARK = {
    **{"#ffffff": "#16181b", INK: "#d9dbde", FAINT: "#9a9ea4", GRID: "#2e3237"},
    **{PALETTE[2]: "#dd4030", PALETTE[4]: "#a966d9"},
}

STYLE: Any = {  # beyond matplotlib's defaults
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.titlesize": 10.5,
    "figure.labelsize": 9.5,
    "figure.titlesize": 10.5,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "legend.title_fontsize": 9.0,
    "svg.hashsalt": "pyrovae",
    "text.color": INK,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws or saves a figure to do so in this style, whatever matplotlib's settings.

    Its arguments are checked by `pyrovae.runtime.annotations.checked`.
    """
    draw = checked(draw)

    @functools.wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return drawing


class NotebookFigure(Figure):
    """Figure that a notebook displays without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Return a PNG file with two dots per pixel of the screen, and its size on the screen."""
        width, height = size_in_pixels(self)
        return to_png(self, dots_per_inch=192), {"width": width, "height": height}


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, with space between its panels."""
    return NotebookFigure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04))


def panel(ax: Axes | None, width: float, height: float, *, title: str = "", grid: bool = False) -> tuple[Figure, Axes]:
    """Return the given axes and their figure, or the only axes of a new figure of a size in inches, with a title."""
    axes = blank(width, height).add_subplot() if ax is None else ax
    dress(axes, title=title if ax is None else "", grid=grid)
    return axes.figure.figure, axes  # the figure that holds all subfigures


def dress(axes: Axes, *, title: str = "", grid: bool = False) -> Axes:
    """Add a title, small ticks and optionally horizontal grid lines to a panel, and return it."""
    if title:
        axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=9, length=3, width=0.8, direction="out")
    if grid:
        axes.set_axisbelow(True)  # axes of the caller may have been made in another style
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8, linestyle="-", alpha=1.0)
    return axes


@styled
def legend_below(figure: Figure, labels: Sequence[str], *, columns: int = 4) -> None:
    """Add one legend below all panels, with the given labels that occur in a panel."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= zip(*reversed(axes.get_legend_handles_labels()), strict=True)
    drawn = [label for label in labels if label in handles]
    figure.legend([handles[label] for label in drawn], drawn, loc="outside lower center", ncols=columns)


def minus_signs(text: str) -> str:
    """Return a number with a minus sign in the place of a hyphen, and with a sign for infinity."""
    return text.replace("-", "\N{MINUS SIGN}").replace("inf", "\N{INFINITY}")


def size_in_pixels(figure: Figure) -> tuple[int, int]:
    """Return width and height of a figure on a page or in a notebook."""
    width, height = figure.get_size_inches()
    return round(96 * width), round(96 * height)


@styled
def to_png(figure: Figure, dots_per_inch: int = 150, *, num_colors: int | None = None) -> bytes:
    """Return a figure as the content of a PNG file, with at most 256 colors for a smaller file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    if num_colors is None:
        return buffer.getvalue()
    image, small = PIL.Image.open(buffer).convert("RGB"), io.BytesIO()
    image.quantize(num_colors, method=PIL.Image.Quantize.MAXCOVERAGE, kmeans=1).save(small, format="png", optimize=True)
    return small.getvalue()


def picture_file(text: str) -> Path:
    """Return the path of a PNG file, as the type of an option of argparse; create its folder."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"a picture is a file that ends in .png, got {text!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@styled
def to_svg(figure: Figure) -> bytes:
    """Return a figure as the content of an SVG file, without background, with shades for light and dark screens.

    The same figure gives the same bytes. Text is drawn as paths.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=192, facecolor="none", edgecolor="none", metadata={"Date": None})
    shades = (
        f'[style*="{name}: {light}"] {{ {name}: {dark} !important }}'
        for light, dark in DARK.items()
        for name in ("fill", "stroke")
    )
    dark = f"@media (prefers-color-scheme: dark) {{ {' '.join(shades)} }}"
    return buffer.getvalue().replace("</style>", f"{dark}</style>", 1).encode()
