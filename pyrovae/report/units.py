"""What each latent unit carries, as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyrovae.report.style import FIRST, INK, PALETTE, blank, dress, legend_below, styled
from pyrovae.results.tables import printable

NAMED = 24  # units whose names fit below their bars
LONG = 5  # letters of a name from which on names stand upright, where there are many
INACTIVE = PALETTE[3]


@styled
def kl_per_unit(
    names: Sequence[str],
    kl: Tensor | None,
    active: Tensor,
    *,
    variance: Tensor | None = None,
    threshold: float | None = None,
) -> Figure | None:
    """Draw the mean KL of each latent unit over the data, from the largest to the smallest, and which are active.

    Where the KL does not split into units, bars are the variance over the data of each unit's posterior mean, by which
    activity is judged, on a logarithmic axis. Units whose value is not finite are left out and counted.

    *Importance weighted autoencoders (Burda, Grosse, Salakhutdinov 2016)*, https://arxiv.org/abs/1509.00519

    Args:
        names: of the D units.
        kl: ``(D,)``, nats; None where there is none.
        active: ``(D,)``, whether each is active.
        variance: ``(D,)``, used where there is no KL.
        threshold: of the variance, above which a unit is active.

    Returns:
        The picture, None where no unit has a finite value.

    """
    values = kl if kl is not None else variance
    if values is None:
        return None
    values, active = values.detach().cpu().double(), active.cpu().bool()
    known = values.isfinite().nonzero().squeeze(-1)
    if not len(known):
        return None
    order = known[values[known].argsort(descending=True, stable=True)]
    of = "mean KL (nats)" if kl is not None else "variance of the posterior mean over the data"
    total = f", {values[known].sum().item():.2f} nats together" if kl is not None and len(order) > 1 else ""
    left_out = f"; {len(values) - len(order)} without a finite value left out" if len(order) < len(values) else ""
    figure = blank(min(max(0.36 * len(order) + 1.2, 5.0), 9.0), 3.5)
    title = f"{len(order)} latent unit{'s' if len(order) > 1 else ''} by {of}{total}{left_out}"
    axes = dress(figure.add_subplot(), title=title, grid=True)
    axes.set_ylabel("Mean KL (nats)" if kl is not None else "Variance")
    _bars(axes, values[order], active[order], floor=0.0 if kl is not None else _decade_below(values[order]))
    if kl is None and threshold is not None:
        axes.axhline(threshold, color=INK, linewidth=1.1, linestyle=(0, (1, 2)), label=f"Threshold {threshold:g}")
    _axis_of_units(axes, [printable(names[unit]) for unit in order.tolist()])
    legend_below(figure, axes.get_legend_handles_labels()[1])
    return figure


def _bars(axes: Axes, values: Tensor, active: Tensor, *, floor: float) -> None:
    """Draw sorted values as bars at 1, 2, ..., on a logarithmic axis above a floor that is not 0."""
    for kind, chosen, color in (("Active", active, FIRST), ("Inactive", ~active, INACTIVE)):
        places = chosen.nonzero().squeeze(-1)
        if len(places):
            heights = values[places] - floor
            heights = heights.clamp_min(0.0) if floor else heights
            axes.bar(
                (places + 1).numpy(),
                heights.numpy(),
                0.8,
                bottom=floor,
                color=color,
                label=f"{kind} ({len(places)})",
            )
    if floor:
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)


def _decade_below(values: Tensor) -> float:
    positive = values[values > 0]
    return 10.0 ** math.floor(math.log10(positive.min().item()) - 0.1) if len(positive) else 0.1


def _axis_of_units(axes: Axes, names: Sequence[str]) -> None:
    """Put a name below each bar, or ranks where there are too many."""
    margin = 1.1 if len(names) < 4 else 0.6  # no bar is as wide as the panel
    axes.set_xlim(1 - margin, len(names) + margin)
    if len(names) > NAMED:
        axes.set_xlabel("Rank of the unit")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        return
    upright = len(names) > 12 or (len(names) > 6 and max(map(len, names)) > LONG)
    axes.set_xticks(range(1, len(names) + 1), names, rotation=90 if upright else 0, parse_math=False)
