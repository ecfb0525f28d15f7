"""How pictures look: palette, sizes of type and bare panel, none of it left behind in matplotlib's settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

P = ParamSpec("P")
R = TypeVar("R")

PAPER, INK, FAINT, GRID, WASH = "#ffffff", "#333333", "#737373", "#e4e4e4", "#dddddd"

# *Accessible color sequences for data visualization (Petroff 2021)*, https://arxiv.org/abs/2107.02270
PALETTE = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
FIRST, SECOND = PALETTE[0], PALETTE[6]

# Colors by name, on white and on the dark of a screen at night; a color that is not here reads well on both.
SHADES = {
    "paper": (PAPER, "#16181b"),
    "ink": (INK, "#d9dbde"),
    "faint": (FAINT, "#9a9ea4"),
    "grid": (GRID, "#2e3237"),
    "wash": (WASH, "#43484f"),
    "black": ("#000000", "#f2f2f2"),
    "red": (PALETTE[2], "#dd4030"),
    "purple": (PALETTE[4], "#a966d9"),
}

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "white",
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "normal",
    "axes.unicode_minus": True,
    "figure.edgecolor": "white",
    "figure.facecolor": "white",
    "figure.labelsize": 9.5,
    "figure.titlesize": 10.5,
    "figure.titleweight": "normal",
    "font.size": 10.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "legend.title_fontsize": 9.0,
    "savefig.facecolor": "auto",
    "savefig.transparent": False,
    "text.color": INK,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let a function draw in the package's style, with matplotlib's settings as before afterwards."""

    @functools.wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawing


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, whose panels do not touch."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.04)
    return Figure(figsize=(width, height), layout=layout)


def dress(axes: Axes, *, title: str = "", grid: bool = False) -> Axes:
    """Give a panel its title, quiet ticks and, where values are read off it, horizontal lines."""
    axes.set_title(title)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=9, length=3, width=0.8, direction="out")
    if grid:
        axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8, linestyle="-", alpha=1.0)
    return axes


def legend_below(figure: Figure, labels: Sequence[str], *, columns: int = 4) -> None:
    """Put one legend for all panels below them, of those labels that are drawn in one of them."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= zip(*reversed(axes.get_legend_handles_labels()), strict=True)
    drawn = [label for label in labels if label in handles]
    figure.legend([handles[label] for label in drawn], drawn, loc="outside lower center", ncols=columns)
