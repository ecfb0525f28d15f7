"""Pictures of data that are columns of numbers: a scatter for each column, and a table of a few data."""

from __future__ import annotations

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from pyrovae.report.style import FAINT, FIRST, SECOND, blank, dress, legend_below

COLUMNS = 9  # shown
RASTERIZED = 500  # points in a panel above which they are pixels in vector formats too
PART = 0.1  # of the data that are told from the others
FAR = 4.0  # standard deviations from the mean of a column at which a cell has its full color


def scatter(x: Tensor, means: Tensor, *, title: str, values: Tensor | None = None, what: str = "") -> Figure:
    """Draw E[x | z] over x, both ``(N, *x_shape)``, column by column.

    Args:
        x: the data.
        means: E[x | z] of each.
        title: above the panels.
        values: ``(N,)``; the tenth of the data with the largest is in a color of its own.
        what: the values are.

    """
    x, means = x.flatten(1), means.flatten(1)
    num = min(x.shape[1], COLUMNS)
    across = min(num, 3)
    down = math.ceil(num / across)
    figure = blank(max(2.5 * across + 0.5, 5.5), 2.5 * down + (0.8 if values is None else 1.1))
    title += f", the first {num} of {x.shape[1]:,} columns" if num < x.shape[1] else ""
    figure.suptitle(title, x=0.012, ha="left")
    groups = {"": torch.ones(len(x), dtype=torch.bool)}
    if values is not None:
        largest = torch.zeros(len(x), dtype=torch.bool)
        largest[values.argsort(descending=True, stable=True)[: math.ceil(PART * len(values))]] = True
        groups = {"The others": ~largest, f"The {int(largest.sum())} data with the largest {what}": largest}
    for column in range(num):
        axes = dress(figure.add_subplot(down, across, column + 1), title=f"x[{column}]")
        axes.axline((0, 0), slope=1, color=FAINT, linewidth=0.8, zorder=1)
        for (label, rows), color in zip(groups.items(), (FIRST, SECOND), strict=False):
            dots: dict[str, Any] = {
                "s": 8,
                "alpha": 0.5 if color == FIRST else 0.9,
                "linewidths": 0,
                "rasterized": len(x) > RASTERIZED,
            }
            axes.scatter(x[rows, column].numpy(), means[rows, column].numpy(), color=color, label=label, **dots)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel("Data $x$" if column + across >= num else "")
        axes.set_ylabel("" if column % across else "Reconstruction")
    if values is not None:
        legend_below(figure, list(groups), columns=2)
    return figure


def table(x: Tensor, *, rows: Tensor, names: list[str], title: str, note: str = "") -> Figure:
    """Draw a few of the data as a table, each cell colored by how far it lies from the mean of its column.

    Args:
        x: ``(N, *x_shape)``, all the data.
        rows: ``(R,)``, those that are shown.
        names: of the rows.
        title: above.
        note: below.

    """
    x = x.flatten(1).double().cpu()
    num = min(x.shape[1], COLUMNS)
    spread = x.std(0, correction=0)
    far = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
    figure = blank(max(1.9 + 0.75 * num, 6.0), 1.1 + 0.26 * len(rows))
    axes = dress(figure.add_subplot(), title=title)
    for i, row in enumerate(rows.tolist()):
        for column in range(num):
            z = far[row, column].item()
            color, alpha = (FIRST if z < 0 else SECOND), 0.6 * min(abs(z) / FAR, 1.0)
            axes.add_patch(Rectangle((column, i), 1, 1, facecolor=color, alpha=alpha, linewidth=0))
            text = f"{x[row, column].item():.3g}".replace("-", "\N{MINUS SIGN}")
            axes.text(column + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8.5)
    axes.set_xlim(0, num)
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([column + 0.5 for column in range(num)], [f"x[{column}]" for column in range(num)])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    lines = ["Color: how far below (blue) or above (orange) the mean of its column", note]
    lines += [f"{x.shape[1] - num:,} more columns not shown"] if num < x.shape[1] else []
    axes.set_xlabel("\n".join(line for line in lines if line))
    return figure
