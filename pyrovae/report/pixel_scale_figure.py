"""Figure of the spread of p(x | z) in each pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.latent_dimensions import device_of, first_rows
from pyrovae.report.panels import draw_tiles, image_limits, is_image
from pyrovae.report.style import styled
from pyrovae.runtime.annotations import PositiveFloat, PositiveInt
from pyrovae.runtime.context import forked_random, module_mode
from pyrovae.vae import VAE

DRAWS = 200  # of a standard deviation without a formula
SHARE = 0.02  # share of pixels whose standard deviation may exceed the limit


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
    them the same limit. Without a formula, 200 draws give the standard deviation. None for data that are not images.

    Args:
        vae: model.
        x: ``(N, *x_shape)``; images are ``(C, H, W)`` with C of 1 or 3, or ``(H, W)``.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: number of images, the first ones.
        limit: smallest standard deviation drawn black, in units of x; None for one that 2 % of the pixels exceed.
        ax: axes to draw into, without the title; None for a new figure.

    """
    if not is_image(vae):
        return None
    x, *given = (first_rows(tensor, num).to(device_of(vae)) for tensor in (x, *covariates))
    with module_mode([vae], training=False):
        p_x = vae.decode(vae.encode(x, *given).mean, *given)
    try:
        mean, scale = p_x.mean.cpu(), p_x.stddev.cpu()
    except NotImplementedError:
        with forked_random(0, device_of(vae)):
            mean, scale = p_x.mean.cpu(), p_x.sample((DRAWS,)).std(0).cpu()
    low, high = limits = image_limits(vae, x.cpu())
    black = scale.quantile(1 - SHARE).item() if limit is None else limit
    spread = low + (high - low) * (scale / black).clamp(max=1)
    symbol = f"x \\mid {'z, c' if given else 'z'}"
    return draw_tiles(
        torch.stack([x.cpu(), mean, spread]),
        limits=limits,
        title="Data, their reconstructions, and the standard deviation of each pixel given z",
        row_labels=["Data $x$", f"$E[{symbol}]$", f"$sd[{symbol}]$"],
        note=f"$sd$ from {scale.min():.3f} to {scale.max():.3f}; black is {black:.3f} or more",
        ax=ax,
    )
