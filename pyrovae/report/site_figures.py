"""Figure of the KL of each latent site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.report.style import PALETTE, dress, panel, styled
from pyrovae.results import Evaluation
from pyrovae.results.tables import printable

NAMED, TICKS = 12, 8  # sites with a bar and a name each; names below the axis of more sites
LOGARITHMIC = 100  # ratio of the KL of many sites from which the axis is logarithmic
COLORS = (PALETTE[0], PALETTE[6], PALETTE[4], PALETTE[3])


@styled
def kl_by_site(evaluations: Evaluation | Mapping[str, Evaluation], *, ax: Axes | None = None) -> Figure | None:
    """Draw the KL of each latent site in the order of the guide, nats per datum, with its standard error over the data.

    Args:
        evaluations: estimates of a model with several latent sites, or of several such models by name. Models are drawn
            side by side, and have the same sites.
        ax: panel to draw into; None for a new figure.

    Returns:
        The figure, or None if no model has several latent sites.

    Raises:
        ValueError: if the sites differ.

    """
    given = {"": evaluations} if isinstance(evaluations, Evaluation) else evaluations
    models = {name: evaluation.kl_by_site for name, evaluation in given.items() if evaluation.kl_by_site}
    if not models:
        return None
    names = list(next(iter(models.values())))
    for label, sites in models.items():
        if list(sites) != names:
            raise ValueError(
                f"the models must have the same latent sites, got {len(names)} ({', '.join(names[:3])}, ...) and "
                f"{len(sites)} ({', '.join(list(sites)[:3])}, ...) of {label}; draw each into a panel of its own"
            )
    figure, axes = panel(ax, 7.0, 3.4)
    dress(axes, title="KL of each latent site (nats per datum)", grid=True)
    places = range(1, len(names) + 1)
    many = len(names) > NAMED
    for number, (label, sites) in enumerate(models.items()):
        color = COLORS[number % len(COLORS)]
        values = [math.nan if estimate.value is None else estimate.value for estimate in sites.values()]
        errors = [estimate.se_data or 0.0 for estimate in sites.values()]
        style: dict[str, Any] = {"color": color, "label": label or None}
        if many:
            axes.plot(places, values, linewidth=1.4, linestyle="--" if number % 2 else "-", **style)
            low, high = ([v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1))
            axes.fill_between(places, low, high, color=color, alpha=0.25, linewidth=0)
        else:
            width = 0.8 / len(models)
            shifted = [place + width * (number - (len(models) - 1) / 2) for place in places]
            axes.bar(shifted, values, width, yerr=errors, error_kw={"elinewidth": 1.2, "capsize": 3}, **style)
    drawn = [estimate.value for sites in models.values() for estimate in sites.values() if estimate.value is not None]
    if many and min(drawn, default=0.0) > 0 and max(drawn) > LOGARITHMIC * min(drawn):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    shown = list(range(len(names)))
    if many:
        axes.set_xlim(1, len(names))
        shown = sorted({round(i * (len(names) - 1) / (TICKS - 1)) for i in range(TICKS)})
    axes.set_xticks([i + 1 for i in shown], [printable(names[i]) for i in shown], parse_math=False)
    if len(models) > 1:
        axes.legend()
    return figure
