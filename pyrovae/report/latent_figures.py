"""Posterior means of data in latent space, against the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.latent_dimensions import check_dims, encode, latent_importance, normal_prior, prior_draws
from pyrovae.report.style import DASHES, FAINT, INK, PALETTE, legend_below, panel, styled
from pyrovae.runtime.annotations import NonNegativeInt
from pyrovae.vae import VAE

RASTERIZED = 1000  # points from which they are pixels in vector formats too
DOTS, SHARES = 2000, (0.002, 0.998)  # draws from a prior without a formula, and the quantiles between them
ANGLE = torch.linspace(0, 2 * math.pi, 181, dtype=torch.float64)
CIRCLE = torch.stack([ANGLE.cos(), ANGLE.sin()], 1)  # (181, 2), of radius 1
DASHED: dict[str, Any] = {"color": INK, "alpha": 0.7, "linewidth": 0.9, "linestyle": DASHES}
CIRCLES, DRAWS = "Prior, one and two standard deviations", "Draws from the prior"
ELLIPSES = "Posterior, one standard deviation"


@styled
def latent_space(
    vae: VAE,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    covariates: Sequence[Tensor] = (),
    dims: Sequence[int] | None = None,
    limits: Sequence[float] | None = None,
    num_ellipses: NonNegativeInt = 0,
    ax: Axes | None = None,
) -> Figure | None:
    """Draw the posterior means of data in two latent dimensions, in color by their labels, against the prior.

    The dimensions are the most important ones, by `pyrovae.report.latent_dimensions.latent_importance`. Dashed lines
    are one and two standard deviations of a normal prior; of another prior, draws are dots. A label has the same color
    in every figure. To compare models, give all of them the same dimensions and limits.

    Args:
        vae: model.
        x: ``(N, *x_shape)``.
        labels: ``(N,)``; at most 10 different integers, such as 0 to 9. Other labels are ignored, and so are labels of
            which two would have the same color, such as 3 and 13.
        covariates: ``(N, ...)`` each, of a conditional model; a conditional prior is drawn given all of them.
        dims: two latent dimensions; None for the most important ones.
        limits: ends of both axes; means outside are counted in the panel. None for limits around all means.
        num_ellipses: number of data, the first ones, whose posterior is an ellipse of one standard deviation.
        ax: axes to draw into, without title and legend; None for a new figure.

    Returns:
        The figure, or None for a model with one latent dimension.

    Raises:
        ValueError: if dimensions are not two different ones of the model, there are no data, labels are not one per
            datum, or limits not two finite numbers, the smaller one first.

    """
    if not len(x) or (labels is not None and labels.shape != x.shape[:1]):
        shape = None if labels is None else (*labels.shape,)
        raise ValueError(
            f"`x` holds one datum or more, and `labels` one per datum, got {len(x)} data and labels of {shape}"
        )
    if limits is not None and not (len(limits) == 2 and -math.inf < limits[0] < limits[1] < math.inf):
        raise ValueError(f"`limits` are two finite numbers, the smaller one first, got {limits}")
    if vae.prior.latent_dim < 2:
        return None
    mean, stddev = encode(vae, x, covariates)
    importance = latent_importance(vae, mean, stddev, covariates)
    dims = check_dims(sorted(importance.ranked[:2]) if dims is None else dims, mean.shape[1], numbers=(2,))
    groups = _group_rows(labels, len(x))
    title = f"Posterior means of {len(x):,} data{' given their covariates' if covariates else ''}\n"
    figure, axes = panel(ax, 6.4, 5.4, title=f"{title}(on the axes: {importance.name})")
    axes.set_xlabel(f"z[{dims[0]}]  ({importance.text(dims[0])})")
    axes.set_ylabel(f"z[{dims[1]}]  ({importance.text(dims[1])})")
    _draw_scatter(axes, mean[:, dims], groups)
    for center, half_axes in zip(mean[:num_ellipses, dims], stddev[:num_ellipses, dims], strict=True):
        axes.plot(*(center + half_axes * CIRCLE).T.numpy(), color=INK, linewidth=0.8, label=ELLIPSES)
    _draw_prior(axes, vae, dims, covariates)
    if limits is not None:
        _limit(axes, mean[:, dims], limits)
    if ax is not None:
        return figure
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend_below(figure, [label for label in handles if label not in groups])
    if len(groups) > 1:
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend([handles[label] for label in groups], list(groups), title="Label", handletextpad=0.4, **beside)
    return figure


def _group_rows(labels: Tensor | None, num: int) -> dict[str, Tensor]:
    """Return the rows of each label, or all rows without usable labels."""
    values = [] if labels is None else labels.cpu().unique().tolist()
    usable = all(float(value).is_integer() for value in values)
    if labels is None or not usable or len({value % len(PALETTE) for value in values}) < len(values):
        return {"Data": torch.ones(num, dtype=torch.bool)}
    return {f"{int(value)}": labels.cpu() == value for value in values}


def _limit(axes: Axes, mean: Tensor, limits: Sequence[float]) -> None:
    """Set the limits of the axes of means ``(N, 2)``, and note how many lie outside."""
    low, high = limits
    axes.set_xlim(low, high)
    axes.set_yticks(axes.get_xticks())
    axes.set_ylim(low, high)
    axes.set_aspect("equal", adjustable="box")
    if outside := int(((mean < low) | (mean > high)).any(1).sum()):
        axes.text(0.98, 0.02, f"{outside:,} outside", ha="right", transform=axes.transAxes, color=FAINT, fontsize=8)


def _draw_scatter(axes: Axes, mean: Tensor, groups: dict[str, Tensor]) -> None:
    """Draw means ``(N, 2)`` in an order that hides no group behind another."""
    order = torch.randperm(len(mean), generator=torch.Generator().manual_seed(0))
    colors = [PALETTE[int(label) % len(PALETTE)] if label != "Data" else PALETTE[0] for label in groups]
    group = torch.stack([rows.int() for rows in groups.values()]).argmax(0)[order].tolist()  # N
    width = axes.get_window_extent().width / axes.figure.dpi  # inches
    size = min(26.0, max(5.0, 12000 / len(mean))) * min(1.0, width / 4)
    dots: dict[str, Any] = {"alpha": 0.8, "linewidths": 0, "rasterized": len(mean) > RASTERIZED}
    x, y = mean[order].T.numpy()
    axes.scatter(x, y, s=size, c=[colors[index] for index in group], **dots)
    for label, color in zip(groups, colors, strict=True) if len(groups) > 1 else ():
        axes.scatter([], [], s=26, color=color, label=label)  # entry of the legend
    axes.set_aspect("equal", adjustable="datalim")


def _draw_prior(axes: Axes, vae: VAE, dims: Sequence[int], covariates: Sequence[Tensor]) -> None:
    """Draw circles of a normal prior, or draws from another one, without the farthest."""
    normal = None if vae.prior.conditional else normal_prior(vae)
    if normal is None:
        draws = prior_draws(vae, covariates)[:DOTS, dims]
        ends = draws.quantile(torch.tensor(SHARES, dtype=draws.dtype), dim=0)  # (2, 2)
        inside = draws[((draws >= ends[0]) & (draws <= ends[1])).all(1)]
        dots: dict[str, Any] = {"color": INK, "alpha": 0.3, "linewidths": 0, "zorder": 0, "rasterized": True}
        axes.scatter(inside[:, 0].numpy(), inside[:, 1].numpy(), s=2, **dots)
        axes.scatter([], [], s=12, color=INK, label=DRAWS)  # entry of the legend
        return
    for radius in (1, 2):
        axes.plot(*(normal[0][dims] + radius * normal[1][dims] * CIRCLE).T.numpy(), label=CIRCLES, **DASHED)
