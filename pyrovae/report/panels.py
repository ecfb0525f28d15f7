"""Panels of data: images side by side, and a scatter for each column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.style import FAINT, FIRST, GRID, blank, dress, panel
from pyrovae.vae import VAE

WIDTH, TALL = 8.0, 1.2  # inches, width of a full row of tiles and height of the tallest tile
PIXELS = 64  # minimum number on the longer side of a tile, so that its frame can be thin
FRAME = 0.02  # width of the frame, as a share of a tile's side
LINE, LETTER = 0.18, 0.07  # inches, height of a line of labels and width of a letter
COLUMNS = 9  # columns of the data in a figure
RASTERIZED = 500  # points in a panel from which they are pixels in vector formats too


def is_image(vae: VAE) -> bool:
    """Return whether data are ``(H, W)``, or ``(C, H, W)`` with one channel or three."""
    shape = vae.likelihood.x_shape
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def image_limits(vae: VAE, x: Tensor) -> tuple[float, float]:
    """Return the values drawn white and black: 0 and 1 for probabilities, else the range of the images."""
    low, high = x.min().item(), x.max().item()
    if vae.likelihood.form in ("binary", "unit") or (low >= 0 and high <= 1):
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def draw_tiles(
    images: Tensor,
    *,
    limits: tuple[float, float],
    title: str,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    note: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Draw images ``(rows, columns, *x_shape)``, one unit of the axes per tile.

    Args:
        images: images; NaN leaves a tile empty.
        limits: values drawn white and black, or dark and light in color.
        title: text above the images.
        row_labels: one label per row, or none.
        column_labels: one label per column, or none.
        note: text below the images.
        ax: axes to draw into, without the title; None for a new figure.

    """
    canvas = _tile(images)
    rows, columns = images.shape[:2]
    ratio = (canvas.shape[0] / rows) / (canvas.shape[1] / columns)
    low, high = limits
    if canvas.ndim == 3:
        opaque = canvas.isfinite().all(-1, keepdim=True).to(canvas)
        canvas = torch.cat([((canvas - low) / (high - low)).clamp(0, 1).nan_to_num(nan=0.0), opaque], -1)
    side = min(0.8, WIDTH / columns, TALL / ratio)  # inches
    lines = max((label.count("\n") + 1 for label in column_labels), default=0) + len(note.splitlines())
    letters = max((len(line) for label in row_labels for line in label.splitlines()), default=0)
    height = side * ratio * rows + 0.48 + LINE * (lines + title.count("\n")) + 0.1 * bool(lines)
    figure, axes = panel(ax, max(side * columns + 0.3 + LETTER * letters, 6.0), height)
    if ax is None:
        figure.suptitle(title, x=0.012, ha="left")  # wider than a row of few tiles
    axes.set_facecolor(GRID)  # color of the frames and of missing tiles
    axes.imshow(
        canvas.numpy(),
        cmap=matplotlib.colormaps["gray_r"].with_extremes(bad=(0, 0, 0, 0)),
        vmin=low,
        vmax=high,
        extent=(0, columns, rows, 0),
        aspect=ratio,
        interpolation="none",  # embedded without resampling in vector formats
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks([i + 0.5 for i in range(len(row_labels))], row_labels)
    axes.set_xticks([i + 0.5 for i in range(len(column_labels))], column_labels)
    axes.set_xlabel(note)
    return figure


def _tile(images: Tensor) -> Tensor:
    """Return images ``(rows, columns, *x_shape)`` in one canvas, small ones enlarged, each in a thin frame of NaN."""
    rows, columns, *_, height, width = images.shape
    factor = math.ceil(PIXELS / max(height, width))
    frame = math.ceil(factor * max(height, width) * FRAME)
    large = images.reshape(rows, columns, -1, height, width)
    large = large.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    large = torch.nn.functional.pad(large, (frame, frame, frame, frame), value=math.nan)
    return large.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).squeeze(-1)  # (rows * height, columns * width[, 3])


def draw_scatters(x: Tensor, means: Tensor, *, title: str) -> Figure:
    """Draw E[x | z] over x, each ``(N, *x_shape)``, one panel per column of the data."""
    x, means = x.flatten(1), means.flatten(1)
    num = min(x.shape[1], COLUMNS)
    across = min(num, 3)
    down = math.ceil(num / across)
    figure = blank(max(2.5 * across + 0.5, 5.5), 2.5 * down + 0.8)
    title += f", the first {num} of {x.shape[1]:,} columns" if num < x.shape[1] else ""
    figure.suptitle(title, x=0.012, ha="left")
    dots: dict[str, Any] = {"s": 8, "linewidths": 0, "alpha": 0.5, "rasterized": len(x) > RASTERIZED}
    for column in range(num):
        axes = dress(figure.add_subplot(down, across, column + 1), title=f"x[{column}]")
        axes.axline((0, 0), slope=1, color=FAINT, linewidth=0.8, zorder=1)
        axes.scatter(x[:, column].numpy(), means[:, column].numpy(), color=FIRST, **dots)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel("Data $x$" if column + across >= num else "")
        axes.set_ylabel("" if column % across else "Reconstruction")
    return figure
