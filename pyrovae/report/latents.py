"""Where the posterior puts the data in latent space, against the prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.priors import StandardNormal
from pyrovae.report.codes import codes, device_of, first_rows, kl_to_standard_normal
from pyrovae.report.style import FAINT, INK, PALETTE, blank, dress, legend_below, styled
from pyrovae.sandbox import forked_random, stream_seed
from pyrovae.vae import VAE

DRAWS = 5000  # from a prior that is not a standard normal
MARKERS = ("o", "^")  # of the first ten labels and of the others, which have the colors of the first again


@styled
def latent_space(vae: VAE, x: Tensor, labels: Tensor | None = None, *, covariates: Sequence[Tensor] = ()) -> Figure:
    """Draw the posterior means of data, in color by their labels, against the prior.

    For one latent dimension a histogram, else a scatter of the two with the largest mean KL to N(0, 1). Circles are one
    and two standard deviations of a standard normal prior; another prior is shown by draws from it.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``.
        labels: ``(N,)``; whole numbers of at most 20 kinds (10 in a histogram); others do not color.
        covariates: ``(N, ...)`` each, of a conditional model; a prior given them is drawn with all of them.

    """
    mean, stddev = codes(vae, x, covariates)
    kl = kl_to_standard_normal(mean, stddev)
    dims = sorted(kl.argsort(descending=True, stable=True)[:2].tolist())
    groups = _groups(labels, len(x), most=len(PALETTE) * (1 if len(dims) == 1 else len(MARKERS)))
    title = f"Posterior means of {len(x):,} data"
    if mean.shape[1] > 2:
        title += f", the 2 of {mean.shape[1]} dimensions with the largest KL"
    figure = blank(6.4, 4.0 if len(dims) == 1 else 5.4)
    axes = dress(figure.add_subplot(), title=title)
    names = [f"z[{dim}]  (mean KL to N(0, 1): {kl[dim]:.2f} nats)" for dim in dims]
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


def _groups(labels: Tensor | None, num: int, *, most: int) -> dict[str, Tensor]:
    """Return the rows of each label, all rows where the labels are none, too many or not whole numbers."""
    everything = {"Data": torch.ones(num, dtype=torch.bool)}
    if labels is None:
        return everything
    labels = labels.cpu()
    kinds = labels.unique()
    if len(kinds) > most or bool((kinds != kinds.double().round()).any()):
        return everything
    return {f"{int(kind)}": labels == kind for kind in kinds}


def _histogram(axes: Axes, vae: VAE, mean: Tensor, groups: dict[str, Tensor], covariates: Sequence[Tensor]) -> None:
    """Stack the histograms of the groups of means ``(N,)`` below the density of the prior."""
    edge = max(3.0, mean.abs().max().item())
    axes.hist(
        [mean[rows].numpy() for rows in groups.values()],
        bins=torch.linspace(-edge, edge, 41).tolist(),
        density=True,
        stacked=True,
        color=[PALETTE[i % len(PALETTE)] for i in range(len(groups))],
        label=list(groups),
    )
    if isinstance(vae.prior, StandardNormal):
        z = torch.linspace(-edge, edge, 301)
        density = (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)
        axes.plot(z.numpy(), density.numpy(), color=FAINT, linewidth=1.4, label="Prior N(0, 1)")
    else:
        draws = _prior_draws(vae, covariates)[:, 0].numpy()
        axes.hist(draws, bins=60, density=True, histtype="step", color=FAINT, linewidth=1.4, label="Prior")


def _scatter(
    axes: Axes,
    vae: VAE,
    mean: Tensor,
    groups: dict[str, Tensor],
    dims: list[int],
    covariates: Sequence[Tensor],
) -> None:
    """Scatter means ``(N, 2)`` in an order that hides no group behind another."""
    if isinstance(vae.prior, StandardNormal):
        angle = torch.linspace(0, 2 * math.pi, 181)
        for radius, label in (1, "Prior, one and two standard deviations"), (2, ""):
            circle = radius * torch.stack([angle.cos(), angle.sin()])  # (2, 181)
            axes.plot(*circle.numpy(), color=INK, alpha=0.6, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
    else:
        draws = _prior_draws(vae, covariates)[:, dims].numpy()
        axes.scatter(draws[:, 0], draws[:, 1], s=4, color="#dddddd", linewidths=0, zorder=0, label="Prior, draws")
    order = torch.randperm(len(mean), generator=torch.Generator().manual_seed(0))
    size = min(26.0, max(5.0, 12000 / len(mean)))
    rank = torch.stack([rows.int() for rows in groups.values()]).argmax(0)  # (N,)
    colors = [matplotlib.colors.to_rgb(color) for color in PALETTE]
    for decade, marker in enumerate(MARKERS):
        rows = order[rank[order] // len(PALETTE) == decade]
        if len(rows):
            color = [colors[i % len(PALETTE)] for i in rank[rows].tolist()]
            x, y = mean[rows].T.numpy()
            axes.scatter(x, y, s=size, c=color, marker=marker, alpha=0.8, linewidths=0)
    for i, label in enumerate(groups if len(groups) > 1 else ()):
        axes.scatter([], [], s=26, color=colors[i % len(PALETTE)], marker=MARKERS[i // len(PALETTE)], label=label)
    axes.set_aspect("equal", adjustable="datalim")


def _prior_draws(vae: VAE, covariates: Sequence[Tensor]) -> Tensor:
    """Return draws from the prior, ``(DRAWS, D)``, the same at every call."""
    with torch.no_grad(), forked_random(stream_seed(0, "prior"), device_of(vae)):
        if vae.prior.conditional:
            return vae.prior(*(first_rows(c, DRAWS).to(device_of(vae)) for c in covariates)).sample().cpu()
        return vae.prior().sample((DRAWS,)).cpu()
