"""How the importance weights of the data behave: k-hat, effective sample size, largest weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from pyrovae.report.style import FAINT, FIRST, INK, SECOND, blank, dress, styled
from pyrovae.results.tables import percent

BINS = 40
FARTHEST = 3.0  # k-hat that is drawn where it is: one of thousands would leave no room for the others
DOTTED: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (1, 2))}


@styled
def weight_histograms(per_datum: Mapping[str, Tensor], *, threshold: float | None, num_particles: int) -> Figure | None:
    """Draw how k-hat, the effective sample size and the largest normalized weight are spread over the data.

    Data with k-hat above its threshold have another color, and their share of the data with a k-hat stands above. What
    is NaN or infinite is in no bar; a line below counts it. Dotted lines are the threshold and medians.

    Args:
        per_datum: ``(N,)`` each, of those of "khat", "ESS" (1 to K) and "largest weight" (1 / K to 1) that are known.
        threshold: of k-hat; None where K is too small for one.
        num_particles: K.

    Returns:
        The picture, None where nothing is known.

    """
    panels = {"khat": _k_hat, "ESS": _ess, "largest weight": _largest}
    shown = {name: draw for name, draw in panels.items() if name in per_datum and len(per_datum[name])}
    if not shown:
        return None
    figure = blank(3.3 * len(shown) + 0.6, 3.5)
    for index, (name, draw) in enumerate(shown.items()):
        axes = dress(figure.add_subplot(1, len(shown), index + 1), grid=True)
        axes.set_ylabel("" if index else "Number of data")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        values = per_datum[name].detach().cpu().double()
        known = values[values.isfinite()]
        draw(axes, values, known, threshold if name == "khat" else num_particles)
        if not len(known):
            axes.set_xticks([])
            axes.set_yticks([])
        _count(axes, values)
    return figure


def _k_hat(axes: Axes, values: Tensor, known: Tensor, threshold: float | None) -> None:
    available = values[~values.isnan()]
    title = "k-hat"
    if threshold is not None and len(available):
        title += f": {percent((available > threshold).double().mean().item(), 0)} above {threshold:.2f}"
    axes.set_title(title)
    if not len(known):
        return
    far = known > FARTHEST
    if far.any():
        axes.set_xlabel(f"{int(far.sum())} above {FARTHEST:g} in the last bar")
        known = known.clamp(max=FARTHEST)
    low, high = known.min().item(), known.max().item()
    if threshold is None:
        _bars(axes, known, _edges(low, high))
        return
    low, high = min(low, threshold - 0.1), max(high, threshold + 0.1)
    width = (high - low) / BINS
    below = math.ceil((threshold - low) / width)  # so that the threshold is an edge
    edges = threshold + width * (torch.arange(BINS + 2, dtype=known.dtype) - below)
    _bars(axes, known, edges, threshold=threshold)
    axes.axvline(threshold, **DOTTED)


def _ess(axes: Axes, values: Tensor, known: Tensor, num_particles: float | None) -> None:
    axes.set_title(f"Effective sample size of K = {num_particles:,}")
    if not len(known):
        return
    high = max(known.max().item(), float(num_particles or 1), 2.0)
    edges = torch.logspace(0, math.log10(high), BINS + 1, dtype=known.dtype)
    _bars(axes, known.clamp(edges[0], edges[-1]), edges)
    axes.set_xscale("log")
    ticks = [10.0**power for power in range(math.floor(math.log10(high)) + 1)]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _median(axes, known, ",.1f")


def _largest(axes: Axes, values: Tensor, known: Tensor, num_particles: float | None) -> None:
    axes.set_title("Largest normalized weight")
    if len(known):
        _bars(axes, known.clamp(0, 1), torch.linspace(0, 1, BINS + 1, dtype=known.dtype))
        _median(axes, known, ".3g")


def _edges(low: float, high: float) -> Tensor:
    margin = 0.0 if high > low else max(0.5, 0.05 * abs(low))
    return torch.linspace(low - margin, high + margin, BINS + 1, dtype=torch.float64)


def _bars(axes: Axes, known: Tensor, edges: Tensor, *, threshold: float = math.inf) -> None:
    """Draw the counts of values between edges; those above the threshold in another color."""
    for part, color in ((known[known <= threshold], FIRST), (known[known > threshold], SECOND)):
        if len(part):
            axes.hist(part.numpy(), bins=edges.tolist(), color=color)
    axes.set_xlim(edges[0].item(), edges[-1].item())


def _median(axes: Axes, known: Tensor, form: str) -> None:
    median = known.quantile(0.5).item() if len(known) < 2**24 else known.median().item()
    axes.axvline(median, **DOTTED)
    axes.set_xlabel(f"Median {median:{form}}")


def _count(axes: Axes, values: Tensor) -> None:
    """Say below the panel how many values are in no bar."""
    counts = {
        "not available": int(values.isnan().sum()),
        "\N{MINUS SIGN}\N{INFINITY}": int(values.isneginf().sum()),
        "\N{INFINITY}": int(values.isposinf().sum()),
    }
    words = [f"{what} for {count:,}" for what, count in counts.items() if count]
    if words:
        axes.set_xlabel("\n".join(line for line in (axes.get_xlabel(), f"{', '.join(words)} data") if line))
    if not values.isfinite().any():
        axes.text(0.5, 0.5, "no finite value", color=FAINT, ha="center", transform=axes.transAxes)
