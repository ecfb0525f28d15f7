"""Pictures of data as the model sees them: reconstructions, samples, traversals and interpolations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.codes import codes, condition, device_of, first_rows
from pyrovae.report.columns import scatter
from pyrovae.report.dimensions import carried, prior_spread
from pyrovae.report.style import styled
from pyrovae.report.tiles import draw_tiles, is_image, limits_of, require_positive
from pyrovae.vae import VAE

POINTS = 2000  # tabular data in a scatter
REACH = 2.5  # standard deviations of the prior that a traversal goes to either side
SHORT = 10  # letters of a condition that fit below a tile


@styled
def reconstructions(
    vae: VAE,
    x: Tensor,
    *,
    covariates: Sequence[Tensor] = (),
    num: int = 10,
    order: Tensor | None = None,
    what: str = "gap (nats)",
) -> Figure | None:
    """Draw data above E[x | z] at the mean z of their posterior.

    Given one value per datum, images are chosen evenly over the order of these values, the smallest and the largest
    among them, with the value below each. Data that are not images are drawn as a scatter of E[x | z] over x, for the
    first 9 columns and 2000 data; given values, the tenth of them with the largest is told from the others.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``; images are ``(C, H, W)`` with C of 1 or 3, or ``(H, W)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: how many images are shown.
        order: ``(N,)``; data whose value is not finite are left out and counted. The first data are shown if None.
        what: the values are, with their unit.

    Returns:
        The picture, None where no value is finite.

    """
    require_positive(num=num)
    most = num if is_image(vae) else POINTS
    rows = torch.arange(len(x))[:most] if order is None else spread(order, most)
    if not len(rows):
        return None
    shown, *given = (tensor[rows.to(tensor.device)].to(device_of(vae)) for tensor in (x, *covariates))
    means, shown = vae.reconstruct(shown, *given).cpu(), shown.cpu()
    bar = "z, c" if covariates else "z"
    title = f"Data and their reconstructions $E[x \\mid {bar}]$ from the posterior mean of z"
    if not is_image(vae):
        return scatter(shown, means, title=title, values=None if order is None else order.cpu()[rows], what=what)
    labels = [] if order is None else [number(value) for value in order.cpu()[rows].tolist()]
    return draw_tiles(
        torch.stack([shown, means]),
        limits=limits_of(vae, shown),
        title=title,
        row_labels=["Data $x$", f"$E[x \\mid {bar}]$"],
        column_labels=with_conditions(labels, covariates, rows.tolist()),
        note="" if order is None else _order_in_words(order, what, len(rows)),
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
    bar, prior = ("z, c", "p(z | c)" if vae.prior.conditional else "the prior") if given else ("z", "the prior")
    title = f"Means $E[x \\mid {bar}]$ (not draws of x) for z from {prior}" if mean else "Draws of x from the model"
    title += "\ngiven the covariates c of the first data" if given else ""
    return draw_tiles(grid, limits=limits_of(vae, images), title=title)


@styled
def traversals(
    vae: VAE, x: Tensor, *, covariates: Sequence[Tensor] = (), num_dims: int = 8, num_values: int = 9
) -> Figure | None:
    """Draw E[x | z] with one dimension of z moved at a time; None for data that are not images.

    Rows are the latent dimensions that carry most, by `pyrovae.report.dimensions.carried`. Each takes values from 2.5
    standard deviations of the prior below its mean to 2.5 above; the others stay at the posterior mean of the first
    datum. A conditional model is given the covariates of that datum throughout.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num_dims: how many latent dimensions are shown at most.
        num_values: how many values each takes.

    """
    if not is_image(vae):
        return None
    require_positive(num_dims=num_dims, num_values=num_values)
    carry = carried(vae, *codes(vae, x, covariates), covariates)
    dims = carry.ranked[:num_dims]
    loc, scale = prior_spread(vae, [covariate[:1] for covariate in covariates])
    steps = torch.linspace(-REACH, REACH, num_values, dtype=loc.dtype)
    datum = [tensor[0].to(device_of(vae)) for tensor in (x, *covariates)]
    rows = [vae.traverse(*datum, dims=[dim], values=loc[dim] + steps * scale[dim]) for dim in dims]
    moved = torch.cat(rows).cpu()
    bar = "z, c" if covariates else "z"
    title = f"$E[x \\mid {bar}]$ with one dimension of z moved at a time,\n"
    title += f"given c of the first datum, {condition(covariates, 0)};\n" if covariates else ""
    standard = bool((loc == 0).all() and (scale == 1).all())
    places = "" if standard else "  {} \N{PLUS-MINUS SIGN} {:.2f}"
    return draw_tiles(
        moved,
        limits=limits_of(vae, moved),
        title=f"{title}those that carry most first, by {carry.name}",
        row_labels=[
            f"z[{dim}]{places.format(number(loc[dim].item()), scale[dim].item())}  ({carry.text(dim)})" for dim in dims
        ],
        column_labels=[number(step) for step in steps.tolist()],
        note="Value of the moved dimension"
        if standard
        else "Standard deviations of the prior from its mean\n(mean $\\pm$ standard deviation beside each row)",
    )


@styled
def interpolations(
    vae: VAE, x: Tensor, *, covariates: Sequence[Tensor] = (), num: int = 6, num_steps: int = 8
) -> Figure | None:
    """Draw E[x | z] along the straight line between the codes of two data, the data themselves at its ends.

    Pairs are neighbors in the data; of a conditional model, data that have the same covariates.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: how many pairs are shown at most.
        num_steps: points on each line, both codes included.

    Returns:
        The picture, None for data that are not images or where there is no pair.

    """
    require_positive(num=num, num_steps=num_steps)
    pairs = _pairs(len(x), covariates)[:num]
    if not is_image(vae) or not pairs:
        return None
    first, second = torch.tensor(pairs).T
    start, end = (x[rows.to(x.device)].to(device_of(vae)) for rows in (first, second))
    given = [covariate[first.to(covariate.device)].to(device_of(vae)) for covariate in covariates]
    along = vae.interpolate(start, end, *given, num_steps=num_steps).cpu()  # (num, num_steps, *x_shape)
    tiles = torch.cat([start.cpu().unsqueeze(1), along, end.cpu().unsqueeze(1)], 1)
    bar = "z, c" if covariates else "z"
    title = f"$E[x \\mid {bar}]$ on the straight line between the posterior means of two data"
    return draw_tiles(
        tiles,
        limits=limits_of(vae, tiles),
        title=title + (" of the same c" if covariates else ""),
        row_labels=with_conditions([], covariates, first.tolist()),
        column_labels=["Data", *(f"{t:.2f}" for t in torch.linspace(0, 1, num_steps).tolist()), "Data"],
        note="Part of the way",
    )


def spread(values: Tensor, num: int) -> Tensor:
    """Return rows evenly spread over the order of finite values ``(N,)``, from the smallest to the largest."""
    values = values.cpu()
    rows = values.isfinite().nonzero().squeeze(-1)
    ranked = rows[values[rows].argsort(stable=True)]
    if len(ranked) <= num:
        return ranked
    return ranked[torch.linspace(0, len(ranked) - 1, num, dtype=torch.float64).round().long()]


def number(value: float, digits: int = 2) -> str:
    """Return a number as it stands in a picture."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}").replace("inf", "\N{INFINITY}")


def with_conditions(labels: Sequence[str], covariates: Sequence[Tensor], rows: Sequence[int]) -> list[str]:
    """Return the labels of data with what each is given below, where that is short."""
    given = [condition(covariates, row) for row in rows] if covariates else []
    if any(len(text) > SHORT for text in given):
        given = []
    return ["\n".join(lines) for lines in zip(*(part for part in (labels, given) if part), strict=True)]


def _order_in_words(order: Tensor, what: str, num: int) -> str:
    known = int(order.isfinite().sum())
    left_out = f"; {len(order) - known} without a finite one left out" if known < len(order) else ""
    return f"{what}: {num} data from the smallest to the largest of {known:,}{left_out}"


def _pairs(num: int, covariates: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return pairs of rows, each row in one at most, with the same covariates."""
    waiting: dict[bytes, int] = {}
    pairs = []
    flat = [covariate.cpu().flatten(1) for covariate in covariates]
    for row in range(min(num, POINTS)):
        key = b"".join(covariate[row].numpy().tobytes() for covariate in flat)
        if key in waiting:
            pairs.append((waiting.pop(key), row))
        else:
            waiting[key] = row
    return pairs
