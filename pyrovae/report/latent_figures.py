"""Latent space: posterior moments of data, the place of the prior, the importance of each dimension, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.style import DASHES, FAINT, INK, PALETTE, legend_below, panel, styled
from pyrovae.runtime.annotations import NonNegativeInt
from pyrovae.runtime.context import forked_random, module_mode, stream_seed
from pyrovae.vae import VAE

ROWS = 4096  # data encoded at once
PRIOR_DRAWS = 20_000  # draws from a prior that is not a diagonal normal
TAIL = 0.001  # share of the draws at either end that is clamped before moments, which a Student t may not have
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

    The dimensions are the most important ones, by `latent_importance`. Dashed lines
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


def first_tensor(vae: VAE) -> Tensor:
    """Return a tensor of the model, for its device and dtype."""
    return next(chain(vae.parameters(), vae.buffers()), torch.empty(0))


def device_of(vae: VAE) -> torch.device:
    """Return the device of a model."""
    return first_tensor(vae).device


@torch.no_grad()
def encode(vae: VAE, x: Tensor, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of q(z | x) for each datum ``(N, *x_shape)``, each ``(N, D)``, on the CPU."""
    moments = []
    with module_mode([vae], training=False):
        for args in zip(*(tensor.split(ROWS) for tensor in (x, *covariates)), strict=True):
            q = vae.encode(*(rows.to(device_of(vae)) for rows in args))
            moments.append(torch.stack([q.mean, q.stddev]).cpu().double())
    mean, stddev = torch.cat(moments, 1)
    return mean, stddev


def first_rows(tensor: Tensor, num: int) -> Tensor:
    """Return the first `num` rows of ``(N, ...)``, from the start again after the last one."""
    return tensor[torch.arange(num, device=tensor.device) % len(tensor)]


@dataclass(frozen=True)
class Importance:
    """Importance of each latent dimension for the data."""

    values: Tensor  # (D,)
    name: str  # of the values
    form: str  # format of a value

    @property
    def ranked(self) -> list[int]:
        """The dimensions, the most important first."""
        return self.values.argsort(descending=True, stable=True).tolist()

    def text(self, dim: int) -> str:
        """Return the value of one dimension as text."""
        return self.form.format(self.values[dim].item())


@torch.no_grad()
def latent_importance(vae: VAE, mean: Tensor, stddev: Tensor, covariates: Sequence[Tensor] = ()) -> Importance:
    """Return the mean KL of each latent dimension; a ratio of variances if no KL per dimension exists.

    The KL needs a diagonal normal prior. Under another prior no dimension has a KL of its own, and the importance is
    the variance of the codes over the data divided by the mean posterior variance, 0 for a dimension that the posterior
    ignores. A posterior of another form counts by mean and standard deviation of each dimension.

    Args:
        vae: model.
        mean: ``(N, D)``, from `encode`.
        stddev: ``(N, D)``.
        covariates: ``(N, ...)`` each, of a conditional model.

    """
    normal = normal_prior(vae, covariates)
    if normal is None:
        ratio = mean.var(0, correction=0) / stddev.square().mean(0)
        return Importance(ratio, "variance of the codes over posterior variance", "ratio {:.2f}")
    loc, scale = normal
    ratio = stddev / scale
    kl = 0.5 * (((mean - loc) / scale) ** 2 + ratio**2 - 1) - ratio.log()  # (N, D)
    return Importance(kl.mean(0), "mean KL to the prior", "{:.2f} nats")


@torch.no_grad()
def normal_prior(vae: VAE, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor] | None:
    """Return location and scale of a diagonal normal prior, on the CPU; None for any other prior.

    Each is ``(D,)``, or ``(N, D)`` for a conditional prior and N rows of covariates.
    """
    with module_mode([vae], training=False):
        p_z = _prior(vae, covariates)
    base = p_z.base_dist if isinstance(p_z, torch.distributions.Independent) else None
    if not isinstance(base, torch.distributions.Normal):
        return None
    return base.loc.detach().cpu().double(), base.scale.detach().cpu().double()


@torch.no_grad()
def prior_draws(vae: VAE, covariates: Sequence[Tensor] = ()) -> Tensor:
    """Return draws from the prior ``(20000, D)``, the same in every call; of a conditional prior, given all rows."""
    repeated = [first_rows(covariate, PRIOR_DRAWS) for covariate in covariates]
    with module_mode([vae], training=False), forked_random(stream_seed(0, "prior"), device_of(vae)):
        p_z = _prior(vae, repeated)
        return p_z.sample(() if vae.prior.conditional else (PRIOR_DRAWS,)).cpu().double()


def prior_moments(vae: VAE, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent dimension under the prior, ``(D,)`` each, given one datum.

    The moments of a diagonal normal are exact, others are moments of draws.
    """
    normal = normal_prior(vae, covariates)
    if normal is not None:
        loc, scale = normal
        return loc.reshape(-1), scale.reshape(-1)
    draws = prior_draws(vae, covariates)
    draws = draws.clamp(*draws.quantile(torch.tensor([TAIL, 1 - TAIL], dtype=draws.dtype), dim=0))
    return draws.mean(0), draws.std(0)


def prior_quantiles(vae: VAE, probabilities: Tensor, covariates: Sequence[Tensor] = ()) -> Tensor:
    """Return quantiles ``(P, D)`` of each latent dimension under the prior, for one datum and P probabilities."""
    normal = normal_prior(vae, covariates)
    if normal is None:
        return prior_draws(vae, covariates).quantile(probabilities.double(), dim=0)
    loc, scale = normal
    return loc + scale * torch.special.ndtri(probabilities.double()).unsqueeze(-1)


def check_dims(dims: Sequence[int], latent_dim: int, *, numbers: Sequence[int] = (1, 2)) -> list[int]:
    """Return the dimensions of a figure; raise a ValueError if they are not so many different ones of a model."""
    if len(set(dims)) != len(dims) or len(dims) not in numbers or not all(0 <= dim < latent_dim for dim in dims):
        raise ValueError(
            f"`dims` must be {' or '.join(map(str, numbers))} different latent dimensions from 0 to {latent_dim - 1}, "
            f"got {tuple(dims)}"
        )
    return list(dims)


def _prior(vae: VAE, covariates: Sequence[Tensor]) -> torch.distributions.Distribution:
    return vae.prior(*(c.to(device_of(vae)) for c in covariates)) if vae.prior.conditional else vae.prior()
