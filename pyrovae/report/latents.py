"""Where the posterior puts the data in latent space, against the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.codes import codes
from pyrovae.report.dimensions import carried, normal_prior, prior_draws
from pyrovae.report.style import INK, PALETTE, blank, dress, legend_below, styled
from pyrovae.vae import VAE

MARKERS = ("o", "^", "s", "D", "v")  # of labels 0 to 9, 10 to 19, ..., whose colors repeat
KINDS = 20  # of labels at most
RASTERIZED = 1000  # points above which they are pixels in vector formats too
CELLS, BANDWIDTH = 128, 3.0  # of the grid on which draws from the prior are counted; cells that they are smoothed over
HELD = (1 - math.exp(-0.5), 1 - math.exp(-2.0))  # of a normal in the plane, within one and two standard deviations
DASHED: dict[str, Any] = {"color": INK, "alpha": 0.7, "linewidth": 0.9, "linestyle": (0, (4, 3))}
CIRCLES, REGIONS = "Prior, one and two standard deviations", "Prior, where 39 % and 86 % of its draws lie"


@styled
def latent_space(vae: VAE, x: Tensor, labels: Tensor | None = None, *, covariates: Sequence[Tensor] = ()) -> Figure:
    """Draw the posterior means of data, in color by their labels, against the prior.

    For one latent dimension a histogram, else a scatter of the two that carry most, by
    `pyrovae.report.dimensions.carried`. Dashed lines are one and two standard deviations of a normal prior; for another
    one the smallest regions that hold as many of its draws. A label has its color and marker whatever others there are.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``.
        labels: ``(N,)``; whole numbers of at most 20 kinds (10 in a histogram); others do not color, and neither do
            those of which two would look alike, such as 3 and 53.
        covariates: ``(N, ...)`` each, of a conditional model; a prior given them is drawn with all of them.

    """
    mean, stddev = codes(vae, x, covariates)
    carry = carried(vae, mean, stddev, covariates)
    dims = sorted(carry.ranked[:2])
    groups = _groups(labels, len(x), markers=1 if len(dims) == 1 else len(MARKERS))
    title = f"Posterior means of {len(x):,} data" + (" given their covariates" if covariates else "")
    if mean.shape[1] > 2:
        title += f", the 2 of {mean.shape[1]} dimensions\nwith the largest {carry.name}"
    figure = blank(6.4, 4.0 if len(dims) == 1 else 5.4)
    axes = dress(figure.add_subplot(), title=title)
    names = [f"z[{dim}]  ({carry.name}: {carry.text(dim).removeprefix('ratio ')})" for dim in dims]
    if mean.shape[1] > 2:
        names = [f"z[{dim}]  ({carry.text(dim)})" for dim in dims]
    axes.set_xlabel(names[0])
    if len(dims) == 1:
        _histogram(axes, vae, mean[:, 0], groups, covariates)
        axes.set_ylabel("Density")
    else:
        _scatter(axes, vae, mean[:, dims], groups, dims, covariates)
        axes.set_ylabel(names[1])
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend_below(figure, [label for label in handles if label not in groups])
    if len(groups) > 1:
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        axes.legend(
            [handles[kind] for kind in groups],
            list(groups),
            title="Label",
            handletextpad=0.4,
            ncols=1 + (len(groups) > 12),
            **beside,
        )
    return figure


def _groups(labels: Tensor | None, num: int, *, markers: int) -> dict[str, Tensor]:
    """Return the rows of each label, all rows where labels are none, too many, alike or not whole numbers."""
    everything = {"Data": torch.ones(num, dtype=torch.bool)}
    if labels is None:
        return everything
    labels = labels.cpu()
    kinds = labels.unique()
    most = min(KINDS, markers * len(PALETTE))
    if len(kinds) > most or bool((kinds != kinds.double().round()).any()):
        return everything
    if len({int(kind) % (markers * len(PALETTE)) for kind in kinds}) < len(kinds):
        return everything
    return {f"{int(kind)}": labels == kind for kind in kinds}


def _look(label: str) -> tuple[str, str]:
    """Return color and marker of a label, or of all data."""
    value = int(label) if label != "Data" else 0
    return PALETTE[value % len(PALETTE)], MARKERS[value // len(PALETTE) % len(MARKERS)]


def _histogram(axes: Axes, vae: VAE, mean: Tensor, groups: dict[str, Tensor], covariates: Sequence[Tensor]) -> None:
    """Stack the histograms of the groups of means ``(N,)`` below the density of the prior."""
    normal = None if vae.prior.conditional else normal_prior(vae)
    if normal is not None:
        loc, scale = (moment.item() for moment in normal)
        ends = (loc - 3 * scale, loc + 3 * scale)
    else:
        draws = prior_draws(vae, covariates)[:, 0]
        ends = (draws.quantile(0.002).item(), draws.quantile(0.998).item())
    low, high = min(mean.min().item(), ends[0]), max(mean.max().item(), ends[1])
    axes.hist(
        [mean[rows].numpy() for rows in groups.values()],
        bins=torch.linspace(low, high, 41, dtype=mean.dtype).tolist(),
        density=True,
        stacked=True,
        color=[_look(label)[0] for label in groups],
        label=list(groups),
    )
    if normal is not None:
        z = torch.linspace(low, high, 301, dtype=mean.dtype)
        density = (-0.5 * ((z - loc) / scale) ** 2).exp() / (scale * math.sqrt(2 * math.pi))
        label = "Prior N(0, 1)" if (loc, scale) == (0, 1) else "Prior"
        axes.plot(z.numpy(), density.numpy(), color=INK, linewidth=1.2, label=label)
    else:
        bins = torch.linspace(low, high, 81, dtype=mean.dtype)
        counts = torch.histogram(draws, bins).hist
        axes.stairs((counts / len(draws) / bins.diff()).numpy(), bins.numpy(), color=INK, linewidth=1.2, label="Prior")


def _scatter(
    axes: Axes, vae: VAE, mean: Tensor, groups: dict[str, Tensor], dims: list[int], covariates: Sequence[Tensor]
) -> None:
    """Scatter means ``(N, 2)`` in an order that hides no group behind another."""
    normal = None if vae.prior.conditional else normal_prior(vae)
    if normal is not None:
        angle = torch.linspace(0, 2 * math.pi, 181, dtype=mean.dtype)
        circle = torch.stack([angle.cos(), angle.sin()], 1)  # (181, 2)
        for radius, label in (1, CIRCLES), (2, ""):
            x, y = (normal[0][dims] + radius * normal[1][dims] * circle).T.numpy()
            axes.plot(x, y, label=label, **DASHED)
    else:
        _regions(axes, prior_draws(vae, covariates)[:, dims])
    order = torch.randperm(len(mean), generator=torch.Generator().manual_seed(0))
    size = min(26.0, max(5.0, 12000 / len(mean)))
    looks = [_look(label) for label in groups]
    rank = torch.stack([rows.int() for rows in groups.values()]).argmax(0)[order].tolist()  # N
    for shape in dict.fromkeys(marker for _, marker in looks):
        chosen = [i for i, kind in enumerate(rank) if looks[kind][1] == shape]
        colors = [matplotlib.colors.to_rgb(looks[rank[i]][0]) for i in chosen]
        x, y = mean[order[chosen]].T.numpy()
        dots: dict[str, Any] = {"alpha": 0.8, "linewidths": 0, "rasterized": len(mean) > RASTERIZED}
        axes.scatter(x, y, s=size, c=colors, marker=shape, **dots)
    for label, (color, shape) in zip(groups, looks, strict=True) if len(groups) > 1 else ():
        axes.scatter([], [], s=26, color=color, marker=shape, label=label)
    axes.set_aspect("equal", adjustable="datalim")


def _regions(axes: Axes, draws: Tensor) -> None:
    """Draw around the smallest regions that hold the shares `HELD` of draws ``(S, 2)``, smoothed a little."""
    ends = draws.quantile(torch.tensor([0.002, 0.998], dtype=draws.dtype), dim=0)  # (2, 2)
    margin = 0.15 * (ends[1] - ends[0]) + 1e-9
    low, high = ends[0] - margin, ends[1] + margin
    edges = [torch.linspace(low[i].item(), high[i].item(), CELLS + 1, dtype=draws.dtype) for i in range(2)]
    counts = torch.histogramdd(draws, edges).hist  # (CELLS, CELLS)
    offset = torch.arange(CELLS, dtype=draws.dtype)
    kernel = (-0.5 * ((offset - offset[:, None]) / BANDWIDTH) ** 2).exp()
    density = kernel @ counts @ kernel  # blurred along both axes
    ranked, order = density.flatten().sort(descending=True)
    held = counts.flatten()[order].cumsum(0) / len(draws)  # of the draws themselves, which the blur spreads
    levels = sorted({ranked[min(int((held < share).sum()), len(ranked) - 1)].item() for share in HELD})
    middle = [(edge[:-1] + edge[1:]).numpy() / 2 for edge in edges]
    elsewhere = Figure().add_subplot()  # its limits would be those of the grid
    for path in elsewhere.contour(*middle, density.T.numpy(), levels=levels).get_paths():
        for line in path.to_polygons(closed_only=False):
            axes.plot(*np.asarray(line).T, label=REGIONS, **DASHED)
