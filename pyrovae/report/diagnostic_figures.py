"""Figures of training, of importance weights and of latent units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
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
    axes.set_ylim(low - margin, high + margin)
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    note = "First epochs outside the frame" if first > 1 else "First epoch outside the frame"
    axes.text(0.98, 0.03, note, ha="right", transform=axes.transAxes, color=FAINT, fontsize=8, bbox=box)


@styled
def weight_histograms(per_datum: Mapping[str, Tensor], *, threshold: float | None, num_particles: int) -> Figure | None:
    """Draw histograms over the data of k-hat, of the effective sample size and of the largest normalized weight.

    Data with a k-hat above the threshold have another color, and the title gives their share of the data with a k-hat.
    NaN and infinite values are counted below the panel. Dotted lines are the threshold and medians.

    Args:
        per_datum: ``(N,)`` each, any of "khat", "ESS" (1 to K) and "largest weight" (1 / K to 1).
        threshold: threshold of k-hat; None where K is too small for one.
        num_particles: K.

    Returns:
        The figure, or None without values.

    """
    panels = [name for name in ("khat", "ESS", "largest weight") if name in per_datum and len(per_datum[name])]
    if not panels:
        return None
    figure = blank(3.3 * len(panels) + 0.6, 3.5)
    for index, name in enumerate(panels):
        axes = dress(figure.add_subplot(1, len(panels), index + 1), grid=True)
        axes.set_ylabel("" if index else "Number of data")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        values = per_datum[name].detach().cpu().double()
        finite = values[values.isfinite()]
        if name == "khat":
            notes = _draw_khat(axes, values, finite, threshold)
        elif name == "ESS":
            notes = _draw_ess(axes, finite, num_particles)
        else:
            axes.set_title("Largest normalized weight")
            notes = _draw_bars(axes, finite.clamp(0, 1), torch.linspace(0, 1, BINS + 1, dtype=finite.dtype), ".3g")
        if not len(finite):
            axes.set(xticks=[], yticks=[])
            axes.text(0.5, 0.5, "no finite value", color=FAINT, ha="center", transform=axes.transAxes)
        axes.set_xlabel("\n".join([*notes, *_count_missing(values)]))
    return figure


def _draw_khat(axes: Axes, values: Tensor, finite: Tensor, threshold: float | None) -> list[str]:
    available = values[~values.isnan()]
    title = "k-hat"
    if threshold is not None and len(available):
        title += f": {percent((available > threshold).double().mean().item(), 0)} above {threshold:.2f}"
    axes.set_title(title)
    if not len(finite):
        return []
    num_far = int((finite > FARTHEST).sum())
    finite = finite.clamp(max=FARTHEST)
    low, high = finite.min().item(), finite.max().item()
    if threshold is not None:
        low, high = min(low, threshold - 0.1), max(high, threshold + 0.1)
        axes.axvline(threshold, **DOTTED)
    margin = 0.0 if high > low else max(0.5, 0.05 * abs(low))
    edges = torch.linspace(low - margin, high + margin, BINS + 1, dtype=finite.dtype)
    _draw_bars(axes, finite, edges, threshold=threshold or math.inf)
    return [f"{num_far} above {FARTHEST:g} in the last bar"] if num_far else []


def _draw_ess(axes: Axes, finite: Tensor, num_particles: int) -> list[str]:
    axes.set_title(f"Effective sample size of K = {num_particles:,}")
    if not len(finite):
        return []
    high = max(finite.max().item(), float(num_particles), 2.0)
    edges = torch.logspace(0, math.log10(high), BINS + 1, dtype=finite.dtype)
    notes = _draw_bars(axes, finite.clamp(edges[0], edges[-1]), edges, ",.1f")
    axes.set_xscale("log")
    ticks = [10.0**power for power in range(math.floor(math.log10(high)) + 1)]
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    return notes


def _draw_bars(
    axes: Axes, finite: Tensor, edges: Tensor, median: str = "", *, threshold: float = math.inf
) -> list[str]:
    """Draw the counts of values between edges, in another color above the threshold, and optionally the median."""
    parts = [finite[finite <= threshold].numpy(), finite[finite > threshold].numpy()]
    if len(finite):
        axes.hist(parts, bins=edges.tolist(), color=[FIRST, SECOND], stacked=True)
    axes.set_xlim(edges[0].item(), edges[-1].item())
    if not median or not len(finite):
        return []
    middle = finite.quantile(0.5).item() if len(finite) < 2**24 else finite.median().item()  # limit of quantile
    axes.axvline(middle, **DOTTED)
    return [f"Median {middle:{median}}"]


def _count_missing(values: Tensor) -> list[str]:
    counts = {
        "not available": int(values.isnan().sum()),
        minus_signs("-inf"): int(values.isneginf().sum()),
        minus_signs("inf"): int(values.isposinf().sum()),
    }
    words = [f"{value} for {count:,}" for value, count in counts.items() if count]
    return [f"{', '.join(words)} data"] if words else []


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
