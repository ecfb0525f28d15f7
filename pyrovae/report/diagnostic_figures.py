"""Figures of training, of k-hat and of latent units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyrovae.report.style import (
    DASHES,
    DOTTED,
    FAINT,
    FIRST,
    PALETTE,
    SECOND,
    blank,
    dress,
    legend_below,
    minus_signs,
    panel,
    styled,
)
from pyrovae.results import Epoch, History, Latents
from pyrovae.results.tables import percent, printable

TERMS = {"elbo": "ELBO", "reconstruction": "Reconstruction", "kl": "KL"}
BINS = 40
FARTHEST = 3.0  # largest k-hat on the axis; larger ones are counted in the last bar
NAMED = 24  # units whose names fit below their bars
LONG = 5  # letters from which the names of many units stand upright
INACTIVE = PALETTE[3]


@styled
def training_curves(history: History) -> Figure:
    """Draw the ELBO and its two terms, in nats per datum, over the epochs, for training and validation data.

    Where the first epochs are far from the others they are outside the frame, with a note in the panel.

    Args:
        history: metrics of one epoch or more; terms that the objective does not report are left out.

    """
    epochs = history.epochs
    curves = {term: (_curve(epochs, term), _curve(epochs, term, validation=True)) for term in TERMS}
    curves = {term: both for term, both in curves.items() if any(map(_any_finite, both))}
    figure = blank(3.3 * len(curves) + 0.6, 3.4)
    numbers = [epoch.epoch for epoch in epochs]
    best = f"Weights kept (epoch {history.best_epoch})"
    for index, (term, both) in enumerate(curves.items(), 1):
        axes = dress(figure.add_subplot(1, len(curves), index), title=f"{TERMS[term]} (nats per datum)", grid=True)
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10], min_n_ticks=1))
        if history.best_epoch != numbers[-1]:
            axes.axvline(history.best_epoch, color=FAINT, linewidth=1, linestyle=DASHES, label=best)
        line: dict[str, Any] = {"linewidth": 1.4, "marker": "o" if len(numbers) <= 12 else "", "markersize": 4}
        for values, label, color in zip(both, ("Training", "Validation"), (FIRST, SECOND), strict=True):
            if _any_finite(values):
                axes.plot(numbers, values, color=color, label=label, **line)
        _focus(axes, both)
    legend_below(figure, ["Training", "Validation", best])
    return figure


def _curve(epochs: Sequence[Epoch], term: str, *, validation: bool = False) -> list[float]:
    values = [(epoch.validation or {}).get(term) if validation else getattr(epoch, term) for epoch in epochs]
    return [math.nan if value is None else value for value in values]


def _any_finite(values: Sequence[float]) -> bool:
    return any(map(math.isfinite, values))


def _focus(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Leave the first tenth of the epochs outside the frame, with a note, if they would fill more than half of it."""
    first = len(curves[0]) // 10
    values = [value for curve in curves for value in curve[first:] if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    early = [value for curve in curves for value in curve[:first] if math.isfinite(value)]
    if not early or max(high, *early) - min(low, *early) <= 2 * (high - low):
        return
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    axes.set_ylim(low, high)
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    num_outside = sum(any(not low <= curve[epoch] <= high for curve in curves) for epoch in range(first))
    note = f"{num_outside} of the first {first} epochs outside the frame"
    axes.text(0.98, 0.03, note, ha="right", transform=axes.transAxes, color=FAINT, fontsize=8, bbox=box)


@styled
def khat_histogram(khat: Tensor, *, threshold: float | None, ax: Axes | None = None) -> Figure | None:
    """Draw the histogram of k-hat over the data, in another color above the threshold, which is a dotted line.

    The title gives the share above the threshold of the data with a k-hat. Infinite values are counted below the panel,
    and so are those above 3, which are in the last bar.

    Args:
        khat: ``(N,)``; NaN where k-hat is not available.
        threshold: threshold of k-hat; None where K is too small for one.
        ax: axes to draw into, without title; None for a new figure.

    Returns:
        The figure, or None without a threshold or a finite value.

    """
    values = khat.detach().cpu().double()
    finite = values[values.isfinite()].clamp(max=FARTHEST)
    if threshold is None or not len(finite):
        return None
    share = (values[~values.isnan()] > threshold).double().mean().item()
    figure, axes = panel(ax, 5.0, 3.4, title=f"k-hat: {percent(share, 0)} of the data above {threshold:.2f}", grid=True)
    low, high = min(finite.min().item(), threshold - 0.1), max(finite.max().item(), threshold + 0.1)
    edges = torch.linspace(low, high, BINS + 1, dtype=finite.dtype).tolist()
    parts = [finite[finite <= threshold].numpy(), finite[finite > threshold].numpy()]
    axes.hist(parts, bins=edges, color=[FIRST, SECOND], stacked=True)
    axes.axvline(threshold, **DOTTED)
    axes.set_xlim(low, high)
    axes.set_ylabel("Number of data")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    counts = {
        "not available": values.isnan(),
        minus_signs("of -inf"): values.isneginf(),
        minus_signs("of inf"): values.isposinf(),
        f"above {FARTHEST:g} in the last bar": (values > FARTHEST) & values.isfinite(),
    }
    words = [f"{int(rows.sum()):,} {name}" for name, rows in counts.items() if rows.any()]
    axes.set_xlabel(f"k-hat ({', '.join(words)})" if words else "k-hat")
    return figure


@styled
def kl_per_unit(latents: Latents, *, ax: Axes | None = None) -> Figure | None:
    """Draw the mean KL of each latent unit, from the largest to the smallest, in another color if it is inactive.

    Args:
        latents: units, from `pyrovae.diagnostics.latents`; those without a KL are left out and counted.
        ax: axes to draw into, without title and legend; None for a new figure.

    Returns:
        The figure, or None if no unit has a KL.

    """
    known = [(unit.kl, unit) for unit in latents.units if unit.kl is not None]
    if not known:
        return None
    kls, units = zip(*sorted(known, key=lambda pair: -pair[0]), strict=True)
    missing = len(latents.units) - len(units)
    title = f"{len(units)} latent unit{'s' if len(units) > 1 else ''} by mean KL (nats)"
    title += f", {sum(kls):.2f} nats together" if len(units) > 1 else ""
    title += f"\n{missing} without a KL left out" if missing else ""
    figure, axes = panel(ax, min(max(0.36 * len(units) + 1.2, 5.6), 9.0), 3.5, title=title, grid=True)
    axes.set_ylabel("Mean KL (nats)")
    for label, is_active, color in (("Active", True, FIRST), ("Inactive", False, INACTIVE)):
        heights = {
            i: kl for i, (kl, unit) in enumerate(zip(kls, units, strict=True), 1) if bool(unit.active) == is_active
        }
        if heights:
            axes.bar([*heights], [*heights.values()], 0.8, color=color, label=f"{label} ({len(heights)})")
    _set_unit_axis(axes, [printable(unit.name) for unit in units])
    if ax is None:
        legend_below(figure, axes.get_legend_handles_labels()[1])
    return figure


def _set_unit_axis(axes: Axes, names: Sequence[str]) -> None:
    """Set a name below each bar, or ranks if there are too many."""
    margin = 1.1 if len(names) < 4 else 0.6  # a single bar does not fill the panel
    axes.set_xlim(1 - margin, len(names) + margin)
    if len(names) > NAMED:
        axes.set_xlabel("Rank of the unit")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        return
    upright = len(names) > 12 or (len(names) > 6 and max(map(len, names)) > LONG)
    axes.set_xticks(range(1, len(names) + 1), names, rotation=90 if upright else 0, parse_math=False)
