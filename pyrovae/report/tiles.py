"""Images laid out in one canvas, with labels beside its rows and below its columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.style import GRID, blank, dress
from pyrovae.vae import VAE

WIDTH, TALL = 8.0, 1.2  # inches, of a full row of tiles and of the tallest tile
PIXELS = 64  # least number on the longer side of a tile, so that its frame can be thin
FRAME = 0.02  # of a tile's side
LINE, LETTER = 0.18, 0.07  # inches, of a line of labels and of a letter


def is_image(vae: VAE) -> bool:
    """Return whether data are ``(H, W)``, or ``(C, H, W)`` with one channel or three."""
    shape = vae.likelihood.x_shape
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def tile(images: Tensor) -> Tensor:
    """Lay images out in one, enlarged if they are small, each in a thin frame of NaN.

    Args:
        images: ``(rows, columns, *x_shape)``.

    Returns:
        ``(rows * height, columns * width)`` or, in color, ``(rows * height, columns * width, 3)``.

    """
    rows, columns, *_, height, width = images.shape
    factor = math.ceil(PIXELS / max(height, width))
    frame = math.ceil(factor * max(height, width) * FRAME)
    large = images.reshape(rows, columns, -1, height, width)
    large = large.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    large = torch.nn.functional.pad(large, (frame, frame, frame, frame), value=math.nan)
    return large.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).squeeze(-1)  # (rows * height, columns * width[, 3])


def draw_tiles(
    images: Tensor,
    *,
    limits: tuple[float, float],
    title: str,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """Draw images ``(rows, columns, *x_shape)`` in a figure of their own, one unit of its axes to a tile.

    Args:
        images: NaN where a tile is missing.
        limits: the values drawn white and black, or dark and light in color.
        title: above them.
        row_labels: one for each row, or none.
        column_labels: one for each column, or none.
        note: below them.

    """
    canvas = tile(images)
    rows, columns = images.shape[:2]
    ratio = (canvas.shape[0] / rows) / (canvas.shape[1] / columns)
    low, high = limits
    if canvas.ndim == 3:
        opaque = canvas.isfinite().all(-1, keepdim=True).to(canvas)
        canvas = torch.cat([((canvas - low) / (high - low)).clamp(0, 1).nan_to_num(nan=0.0), opaque], -1)
    side = min(0.8, WIDTH / columns, TALL / ratio)  # inches
    lines = max((label.count("\n") + 1 for label in column_labels), default=0) + len(note.splitlines())
    letters = max((len(line) for label in row_labels for line in label.splitlines()), default=0)
    height = side * ratio * rows + 0.42 + LINE * (lines + title.count("\n")) + 0.1 * bool(lines)
    figure = blank(max(side * columns + 0.3 + LETTER * letters, 6.0), height)
    figure.suptitle(title, x=0.012, ha="left")  # a row of few tiles is shorter than its title
    axes = dress(figure.add_subplot())
    axes.set_facecolor(GRID)  # seen through the frames, and where a tile is missing
    axes.imshow(
        canvas.numpy(),
        cmap=matplotlib.colormaps["gray_r"].with_extremes(bad=(0, 0, 0, 0)),
        vmin=low,
        vmax=high,
        extent=(0, columns, rows, 0),
        aspect=ratio,
        interpolation="none",  # drawn as it is into vector formats
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks([i + 0.5 for i in range(len(row_labels))], row_labels)
    axes.set_xticks([i + 0.5 for i in range(len(column_labels))], column_labels)
    axes.set_xlabel(note)
    return figure


def limits_of(vae: VAE, x: Tensor) -> tuple[float, float]:
    """Return the values drawn white and black: 0 and 1 for probabilities, else the range of the given images."""
    low, high = x.min().item(), x.max().item()
    if vae.likelihood.form in ("binary", "unit") or (low >= 0 and high <= 1):
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def require_positive(**numbers: int) -> None:
    """Refuse a picture of nothing."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"a picture shows one image or more, but received {name}={number}; give {name} >= 1")
