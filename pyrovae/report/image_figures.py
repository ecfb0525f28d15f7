"""Figures of data and the model: reconstructions, samples, and paths through latent space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.latent_figures import (
    check_dims,
    device_of,
    encode,
    first_rows,
    first_tensor,
    latent_importance,
    prior_moments,
    prior_quantiles,
)
from pyrovae.report.panels import draw_scatters, draw_tiles, image_limits, is_image
from pyrovae.report.style import minus_signs, styled
from pyrovae.runtime.annotations import PositiveFloat, PositiveInt, Range
from pyrovae.runtime.context import module_mode
from pyrovae.vae import VAE

POINTS = 2000  # tabular data in a scatter
REACH = 2.5  # standard deviations of the prior that a traversal extends to either side
SHARE = 0.02  # share of pixels whose standard deviation may exceed the limit


@styled
def reconstructions(
    vae: VAE,
    x: Tensor,
    *,
    covariates: Sequence[Tensor] = (),
    num: PositiveInt = 10,
    order: Tensor | None = None,
    what: str = "gap (nats)",
) -> Figure | None:
    """Draw data above E[x | z] at the mean z of their posterior.

    Given one value per datum, images are chosen evenly over the order of the values, from the smallest to the largest,
    with the value below each. Data that are not images are drawn as a scatter of E[x | z] over x, for the first 9
    columns and 2000 data.

    Args:
        vae: model.
        x: ``(N, *x_shape)``; images are ``(C, H, W)`` with C of 1 or 3, or ``(H, W)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: number of images.
        order: ``(N,)``; data with a value that is not finite are left out and counted. None draws the first data.
        what: name of the values, with their unit.

    Returns:
        The figure, or None if no value is finite.

    """
    limit = num if is_image(vae) else POINTS
    rows = torch.arange(len(x))[:limit] if order is None else spread(order, limit)
    if not len(rows):
        return None
    chosen, *given = (tensor[rows.to(tensor.device)].to(device_of(vae)) for tensor in (x, *covariates))
    means, chosen = vae.reconstruct(chosen, *given).cpu(), chosen.cpu()
    mean = _mean_symbol(covariates)
    title = f"Data and their reconstructions {mean} from the posterior mean of z"
    if not is_image(vae):
        return draw_scatters(chosen, means, title=title)
    labels, note = [], ""
    if order is not None:
        labels = _numbers(order.cpu()[rows])
        known = int(order.isfinite().sum())
        left_out = f"; {len(order) - known} without a finite one left out" if known < len(order) else ""
        note = f"{what}: {len(rows)} data from the smallest to the largest of {known:,}{left_out}"
    return draw_tiles(
        torch.stack([chosen, means]),
        limits=image_limits(vae, chosen),
        title=title,
        row_labels=["Data $x$", mean],
        column_labels=labels,
        note=note,
    )


@styled
def samples(
    vae: VAE,
    *,
    covariates: Sequence[Tensor] = (),
    num: PositiveInt = 64,
    seed: int = 0,
    mean: bool = True,
    ax: Axes | None = None,
) -> Figure | None:
    """Draw E[x | z] for z from the prior, or draws of x; None for data that are not images.

    Args:
        vae: model.
        covariates: ``(N, ...)`` each, of a conditional model; sample i has the covariates of row i, modulo N.
        num: number of samples.
        seed: seed of the draws.
        mean: whether to draw E[x | z] instead of draws of x.
        ax: axes to draw into, without the title; None for a new figure.

    """
    if not is_image(vae):
        return None
    given = [first_rows(tensor, num).to(device_of(vae)) for tensor in covariates]
    images = vae.generate(num, *given, seed=seed, mean=mean).cpu()
    columns = math.ceil(math.sqrt(num))
    empty = images.new_full((-num % columns, *images.shape[1:]), math.nan)
    grid = torch.cat([images, empty]).unflatten(0, (-1, columns))  # (rows, columns, *x_shape)
    prior = "p(z | c)" if given and vae.prior.conditional else "the prior"
    title = f"Means {_mean_symbol(given)} (not draws of x) for z from {prior}" if mean else "Draws of x from the model"
    title += "\ngiven the covariates c of the first data" if given else ""
    return draw_tiles(grid, limits=image_limits(vae, images), title=title, ax=ax)


@styled
def traversals(
    vae: VAE,
    x: Tensor,
    *,
    covariates: Sequence[Tensor] = (),
    num_dims: PositiveInt = 8,
    num_values: PositiveInt = 9,
    ax: Axes | None = None,
) -> Figure | None:
    """Draw E[x | z] with one dimension of z moved at a time; None for data that are not images.

    Rows are the most important latent dimensions, by `pyrovae.report.latent_figures.latent_importance`. Each takes
    values from 2.5 standard deviations of the prior below its mean to 2.5 above; the others stay at the posterior mean
    of the first datum. A conditional model is given the covariates of that datum throughout.

    Args:
        vae: model.
        x: ``(N, *x_shape)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num_dims: maximum number of latent dimensions.
        num_values: number of values of each.
        ax: axes to draw into, without the title; None for a new figure.

    """
    if not is_image(vae):
        return None
    importance = latent_importance(vae, *encode(vae, x, covariates), covariates)
    dims = importance.ranked[:num_dims]
    loc, scale = prior_moments(vae, [covariate[:1] for covariate in covariates])
    steps = torch.linspace(-REACH, REACH, num_values, dtype=loc.dtype)
    datum = [tensor[0].to(device_of(vae)) for tensor in (x, *covariates)]
    images = torch.cat([vae.traverse(*datum, dims=[dim], values=loc[dim] + steps * scale[dim]) for dim in dims]).cpu()
    title = f"{_mean_symbol(covariates)} with one dimension of z moved at a time,\n"
    title += "given c of the first datum;\n" if covariates else ""
    row_labels = [f"z[{dim}]  ({importance.text(dim)})" for dim in dims]
    note = "Value of the moved dimension"
    if not bool((loc == 0).all() and (scale == 1).all()):
        places = [f"{_numbers(loc)[dim]} ± {scale[dim]:.2f}" for dim in dims]
        row_labels = [label.replace("  ", f"  {place}  ", 1) for label, place in zip(row_labels, places, strict=True)]
        note = "Standard deviations of the prior from its mean\n(mean $\\pm$ standard deviation beside each row)"
    return draw_tiles(
        images,
        limits=image_limits(vae, images),
        title=f"{title}those that carry most first, by {importance.name}",
        row_labels=row_labels,
        column_labels=_numbers(steps),
        note=note,
        ax=ax,
    )


@styled
def manifold(
    vae: VAE,
    *,
    covariates: Sequence[Tensor] = (),
    dims: Sequence[int] | None = None,
    num_values: Annotated[int, Range(1, 100)] = 15,
    ax: Axes | None = None,
) -> Figure | None:
    """Draw E[x | z] on a grid of one or two latent dimensions; None for data that are not images.

    A dimension takes the quantiles (i - 1/2) / num_values of the prior; under a normal prior all tiles are equally
    likely. The first dimension grows to the right and the second upwards, as in `latent_space`. All others stay at the
    mean of the prior.

    *Auto-encoding variational Bayes (Kingma, Welling 2014)*, https://arxiv.org/abs/1312.6114, figure 4

    Args:
        vae: model.
        covariates: ``(N, ...)`` each, of a conditional model, which is given those of the first datum.
        dims: one or two latent dimensions; None for the first two.
        num_values: number of values of each, at most 100.
        ax: axes to draw into, without the title; None for a new figure.

    Raises:
        ValueError: if dimensions are not one or two different ones of the model.

    """
    if not is_image(vae):
        return None
    latent_dim = vae.prior.latent_dim
    dims = check_dims(range(min(latent_dim, 2)) if dims is None else dims, latent_dim)
    given = [covariate[:1] for covariate in covariates]
    shares = (torch.arange(num_values, dtype=torch.float64) + 0.5) / num_values
    values = prior_quantiles(vae, shares, given)[:, dims]  # (V, len(dims))
    z = prior_moments(vae, given)[0].repeat(num_values if len(dims) == 2 else 1, num_values, 1)  # (rows, columns, D)
    z[..., dims[0]] = values[:, 0]
    for dim in dims[1:]:
        z[..., dim] = values.flip(0)[:, 1:]
    with torch.no_grad(), module_mode([vae], training=False):
        z = z.to(first_tensor(vae))
        images = vae.decode(z, *(c[0].to(z.device).expand(*z.shape[:2], *c.shape[1:]) for c in given)).mean.cpu()
    title = f"{_mean_symbol(given)} for z at quantiles of the prior"
    title += ", given c of the first datum" if given else ""
    title += "\nall other dimensions at the mean of the prior" if latent_dim > len(dims) else ""
    named = {0, (num_values - 1) / 2, num_values - 1}  # the middle one if there is one
    labels = [[text if i in named else "" for i, text in enumerate(_numbers(column))] for column in values.T]
    figure = draw_tiles(
        images,
        limits=image_limits(vae, images),
        title=title,
        row_labels=labels[1][::-1] if len(dims) == 2 else (),
        column_labels=labels[0],
        note=f"z[{dims[0]}]",
        ax=ax,
    )
    if len(dims) == 2:
        (ax or figure.axes[0]).set_ylabel(f"z[{dims[1]}]")
    if ax is None:
        figure.set_figwidth(figure.get_figwidth() + 0.3)  # for this label
    return figure


@styled
def interpolations(
    vae: VAE,
    x: Tensor,
    *,
    covariates: Sequence[Tensor] = (),
    num: PositiveInt = 6,
    num_steps: PositiveInt = 8,
    ax: Axes | None = None,
) -> Figure | None:
    """Draw E[x | z] on the straight line between the codes of two data, with the data at its ends.

    The two are neighbors in the data; for a conditional model, data with the same covariates.

    Args:
        vae: model.
        x: ``(N, *x_shape)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: maximum number of lines.
        num_steps: points on each line, both codes included.
        ax: axes to draw into, without the title; None for a new figure.

    Returns:
        The figure, or None for data that are not images or without two data of the same covariates.

    """
    ends = _matching_rows(len(x), covariates)[:num]
    if not is_image(vae) or not ends:
        return None
    first, second = torch.tensor(ends).T
    start, end = (x[rows.to(x.device)].to(device_of(vae)) for rows in (first, second))
    given = [covariate[first.to(covariate.device)].to(device_of(vae)) for covariate in covariates]
    along = vae.interpolate(start, end, *given, num_steps=num_steps).cpu()  # (num, num_steps, *x_shape)
    tiles = torch.cat([start.cpu().unsqueeze(1), along, end.cpu().unsqueeze(1)], 1)
    title = f"{_mean_symbol(covariates)} on the straight line between the posterior means of two data"
    return draw_tiles(
        tiles,
        limits=image_limits(vae, tiles),
        title=title + (" of the same c" if covariates else ""),
        column_labels=["Data", *_numbers(torch.linspace(0, 1, num_steps)), "Data"],
        note="Part of the way",
        ax=ax,
    )


@styled
@torch.no_grad()
def pixel_scale(
    vae: VAE,
    x: Tensor,
    *,
    covariates: Sequence[Tensor] = (),
    num: PositiveInt = 8,
    limit: PositiveFloat | None = None,
    ax: Axes | None = None,
) -> Figure | None:
    """Draw data, E[x | z] and the standard deviation of each pixel given z, at the posterior mean z of each datum.

    Standard deviations are drawn from white, 0, to black; their range is given below. To compare models, give all of
    them the same limit. None for data that are not images.

    Args:
        vae: model.
        x: ``(N, *x_shape)``; images are ``(C, H, W)`` with C of 1 or 3, or ``(H, W)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: number of images, the first ones.
        limit: smallest standard deviation drawn black, in units of x; None for one that 2 % of the pixels exceed.
        ax: axes to draw into, without the title; None for a new figure.

    Raises:
        NotImplementedError: if the likelihood has no formula for its standard deviation.

    """
    if not is_image(vae):
        return None
    x, *given = (first_rows(tensor, num).to(device_of(vae)) for tensor in (x, *covariates))
    with module_mode([vae], training=False):
        p_x = vae.decode(vae.encode(x, *given).mean, *given)
    mean, scale = p_x.mean.cpu(), p_x.stddev.cpu()
    low, high = limits = image_limits(vae, x.cpu())
    black = scale.quantile(1 - SHARE).item() if limit is None else limit
    shades = low + (high - low) * (scale / black).clamp(max=1)
    symbol = _mean_symbol(given)
    return draw_tiles(
        torch.stack([x.cpu(), mean, shades]),
        limits=limits,
        title="Data, their reconstructions, and the standard deviation of each pixel given z",
        row_labels=["Data $x$", symbol, symbol.replace("E", "sd")],
        note=f"$sd$ from {scale.min():.3f} to {scale.max():.3f}; black is {black:.3f} or more",
        ax=ax,
    )


def spread(values: Tensor, num: int) -> Tensor:
    """Return rows evenly spread over the order of finite values ``(N,)``, from the smallest to the largest."""
    values = values.cpu()
    rows = values.isfinite().nonzero().squeeze(-1)
    ranked = rows[values[rows].argsort(stable=True)]
    if len(ranked) <= num:
        return ranked
    return ranked[torch.linspace(0, len(ranked) - 1, num, dtype=torch.float64).round().long()]


def _numbers(values: Tensor) -> list[str]:
    return [minus_signs(f"{value:z.2f}") for value in values.tolist()]


def _mean_symbol(covariates: Sequence[Tensor]) -> str:
    return f"$E[x \\mid {'z, c' if covariates else 'z'}]$"


def _matching_rows(num: int, covariates: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return disjoint pairs of rows with the same covariates."""
    alike: dict[bytes, list[int]] = {}
    flat = [covariate.cpu().flatten(1) for covariate in covariates]
    for row in range(min(num, POINTS)):
        alike.setdefault(b"".join(covariate[row].numpy().tobytes() for covariate in flat), []).append(row)
    matches = [match for rows in alike.values() for match in zip(rows[::2], rows[1::2], strict=False)]
    return sorted(matches, key=max)
