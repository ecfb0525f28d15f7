"""Pictures of data: reconstructions, samples and traversals, each tiled into one canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.codes import codes, device_of, first_rows, kl_to_standard_normal
from pyrovae.report.style import FAINT, FIRST, blank, dress, styled
from pyrovae.vae import VAE

WIDTH = 8.0  # inches, of a full row of tiles
PIXELS = 64  # least number on the longer side of a tile, so that its frame can be thin
FRAME = 0.02  # of a tile's side
BACKGROUND = 0.88  # between black, 0, and white, 1
RECONSTRUCTIONS = "Data and their reconstructions from the posterior mean of z"
COLUMNS = 9  # of tabular data
POINTS = 2000  # in a scatter


@styled
def reconstructions(vae: VAE, x: Tensor, *, covariates: Sequence[Tensor] = (), num: int = 10) -> Figure:
    """Draw data above E[x | z] at the mean z of their posterior.

    Data that are not images are drawn as a scatter of E[x | z] over x, for the first 9 columns and the first 2000 data.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``; images are ``(C, H, W)`` with C of 1 or 3, or ``(H, W)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: how many images are shown.

    """
    _require_positive(num=num)
    args = [tensor[: num if is_image(vae) else POINTS].to(device_of(vae)) for tensor in (x, *covariates)]
    shown, means = args[0], vae.reconstruct(*args).cpu()
    shown = shown.cpu()
    if not is_image(vae):
        return _scatter(shown.flatten(1), means.flatten(1))
    return _draw(
        torch.stack([shown, means]),
        limits=_limits(vae, shown),
        title=RECONSTRUCTIONS,
        row_labels=["Data $x$", "$E[x \\mid z]$"],
    )


@styled
def samples(
    vae: VAE, *, covariates: Sequence[Tensor] = (), num: int = 64, seed: int = 0, mean: bool = True
) -> Figure | None:
    """Draw E[x | z] for z from the prior, or draws of x; None for data that are not images.

    Args:
        vae: the model.
        covariates: ``(N, ...)`` each, of a conditional model; sample i has those of row i, modulo N.
        num: how many.
        seed: of the draws.
        mean: show E[x | z]; otherwise draws of x.

    """
    if not is_image(vae):
        return None
    given = [first_rows(tensor, num).to(device_of(vae)) for tensor in covariates]
    images = vae.generate(num, *given, seed=seed, mean=mean).cpu()
    columns = math.ceil(math.sqrt(num))
    missing = images.new_full((-num % columns, *images.shape[1:]), math.nan)
    grid = torch.cat([images, missing]).unflatten(0, (-1, columns))  # (rows, columns, *x_shape)
    title = "Means $E[x \\mid z]$ (not draws of x) for z from the prior" if mean else "Draws of x from the model"
    return _draw(grid, limits=_limits(vae, images), title=title)


@styled
def traversals(
    vae: VAE, x: Tensor, *, covariates: Sequence[Tensor] = (), num_dims: int = 8, num_values: int = 9
) -> Figure | None:
    """Draw E[x | z] with one dimension of z moved at a time; None for data that are not images.

    Rows are the latent dimensions with the largest KL from the posterior to N(0, 1), averaged over the data. The
    others stay at the posterior mean of the first datum.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num_dims: how many latent dimensions are shown at most.
        num_values: how many values each takes, from -2.5 to 2.5.

    """
    if not is_image(vae):
        return None
    _require_positive(num_dims=num_dims, num_values=num_values)
    kl = kl_to_standard_normal(*codes(vae, x, covariates))
    dims = kl.argsort(descending=True, stable=True)[:num_dims].tolist()
    values = torch.linspace(-2.5, 2.5, num_values)
    datum = [tensor[0].to(device_of(vae)) for tensor in (x, *covariates)]
    moved = vae.traverse(*datum, dims=dims, values=values).cpu()
    figure = _draw(
        moved,
        limits=_limits(vae, moved),
        title="$E[x \\mid z]$ with one dimension of z moved at a time, by mean KL to N(0, 1)",
        row_labels=[f"z[{dim}]  ({kl[dim]:.2f} nats)" for dim in dims],
        column_labels=[f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in values.tolist()],
    )
    figure.axes[0].set_xlabel("Value of the moved dimension")
    return figure


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


def _draw(
    images: Tensor,
    *,
    limits: tuple[float, float],
    title: str,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Figure:
    """Draw images ``(rows, columns, *x_shape)`` in a figure of their own, one unit of its axes to a tile."""
    canvas = tile(images)
    rows, columns = images.shape[:2]
    ratio = (canvas.shape[0] / rows) / (canvas.shape[1] / columns)
    low, high = limits
    if canvas.ndim == 3:
        canvas = ((canvas - low) / (high - low)).clamp(0, 1).nan_to_num(nan=BACKGROUND)
    side = min(0.8, WIDTH / columns)  # inches
    figure = blank(max(side * columns + 1.0, 6.0), side * ratio * rows + (1.0 if column_labels else 0.55))
    axes = dress(figure.add_subplot(), title=title)
    axes.imshow(
        canvas.numpy(),
        cmap=matplotlib.colormaps["gray_r"].with_extremes(bad=str(BACKGROUND)),
        vmin=low,
        vmax=high,
        extent=(0, columns, rows, 0),
        aspect=ratio,
        interpolation="nearest",
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks([i + 0.5 for i in range(len(row_labels))], row_labels)
    axes.set_xticks([i + 0.5 for i in range(len(column_labels))], column_labels)
    return figure


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"a picture shows one image or more, but received {name}={number}; give {name} >= 1")


def _limits(vae: VAE, x: Tensor) -> tuple[float, float]:
    """Return the values drawn white and black: 0 and 1 for probabilities, else the range of the given images."""
    low, high = x.min().item(), x.max().item()
    if vae.likelihood.form in ("binary", "unit") or (low >= 0 and high <= 1):
        return 0.0, 1.0
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _scatter(x: Tensor, means: Tensor) -> Figure:
    """Draw E[x | z] over x, both ``(N, columns)``, column by column."""
    num = min(x.shape[1], COLUMNS)
    across = min(num, 3)
    down = math.ceil(num / across)
    figure = blank(2.5 * across + 0.5, 2.5 * down + 0.8)
    figure.suptitle(RECONSTRUCTIONS, x=0.012, ha="left")
    figure.supxlabel("Data $x$")
    figure.supylabel("$E[x \\mid z]$")
    for column in range(num):
        axes = dress(figure.add_subplot(down, across, column + 1), title=f"x[{column}]")
        axes.axline((0, 0), slope=1, color=FAINT, linewidth=0.8, zorder=1)
        axes.scatter(x[:, column].numpy(), means[:, column].numpy(), s=8, alpha=0.5, color=FIRST, linewidths=0)
        axes.set_aspect("equal", adjustable="datalim")
    return figure
