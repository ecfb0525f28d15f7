"""The data that a diagnostic finds hardest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyrovae.report.columns import table
from pyrovae.report.images import number, with_conditions
from pyrovae.report.style import styled
from pyrovae.report.tiles import draw_tiles, is_image, limits_of, require_positive
from pyrovae.vae import VAE


@styled
def thumbnails(
    vae: VAE, x: Tensor, values: Tensor, *, covariates: Sequence[Tensor] = (), num: int = 10, what: str = "k-hat"
) -> Figure | None:
    """Draw the data with the largest values of a diagnostic, value and row below each; what are no images as a table.

    Args:
        vae: the model, whose likelihood tells how data are drawn.
        x: ``(N, *x_shape)``.
        values: ``(N,)``; data whose value is NaN are left out and counted.
        covariates: ``(N, ...)`` each, of a conditional model.
        num: how many are shown at most.
        what: the values are.

    Returns:
        The picture, None where every value is NaN.

    """
    require_positive(num=num)
    values = values.cpu()
    known = (~values.isnan()).nonzero().squeeze(-1)
    if not len(known):
        return None
    rows = known[values[known].argsort(descending=True, stable=True)][:num]
    missing = len(values) - len(known)
    title = (
        f"The {len(rows)} of {len(values):,} data with the largest {what}" if len(rows) > 1 else f"{what} of a datum"
    )
    note = f"{missing:,} {'data' if missing > 1 else 'datum'} without {what} left out" if missing else ""
    if not is_image(vae):
        names = [f"#{row}  {number(values[row].item())}" for row in rows.tolist()]
        return table(x, rows=rows, names=names, title=title, note=note)
    shown = x[rows.to(x.device)].cpu()
    labels = [f"{number(values[row].item())}\n#{row}" for row in rows.tolist()]
    below = with_conditions(labels, covariates, rows.tolist())
    return draw_tiles(
        shown.unsqueeze(0),
        limits=limits_of(vae, torch.as_tensor(shown)),
        title=title,
        row_labels=[f"{what}, row\nand c below" if below != labels else f"{what} and\nrow below"],
        column_labels=below,
        note=note,
    )
