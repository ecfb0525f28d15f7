"""How training went: the ELBO and its two terms, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyrovae.report.style import FAINT, FIRST, SECOND, blank, dress, legend_below, styled
from pyrovae.results import Epoch, History

TERMS = {"elbo": "ELBO", "reconstruction": "Reconstruction", "kl": "KL"}
NAN = math.nan
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}


@styled
def training_curves(history: History) -> Figure:
    """Draw the ELBO and its two terms, in nats per datum, over the epochs: one panel each, training and validation.

    Where the first epochs are far from the rest they leave the frame, and the panel says so.

    Args:
        history: what training showed; terms that the objective does not tell are left out.

    Raises:
        ValueError: if it has no epoch.

    """
    if not history.epochs:
        raise ValueError("training curves show one epoch or more, but the history has none; train first")
    curves = {term: [_curve(history.epochs, term, validation=held_out) for held_out in (False, True)] for term in TERMS}
    shown = [term for term in TERMS if any(map(_some, curves[term]))]
    figure = blank(3.3 * len(shown) + 0.6, 3.4)
    numbers = [epoch.epoch for epoch in history.epochs]
    kept = f"Weights kept (epoch {history.best_epoch})"
    marker = "o" if len(numbers) <= 12 else ""
    for index, term in enumerate(shown):
        axes = dress(figure.add_subplot(1, len(shown), index + 1), title=f"{TERMS[term]} (nats per datum)", grid=True)
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10], min_n_ticks=1))
        if history.best_epoch != numbers[-1]:
            axes.axvline(history.best_epoch, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=kept)
        for values, label, color in zip(curves[term], ("Training", "Validation"), (FIRST, SECOND), strict=True):
            if _some(values):
                axes.plot(numbers, values, color=color, linewidth=1.4, marker=marker, markersize=4, label=label)
        _focus(axes, curves[term])
    legend_below(figure, ["Training", "Validation", kept])
    return figure


def _curve(epochs: Sequence[Epoch], term: str, *, validation: bool) -> list[float]:
    values = [(epoch.validation or {}).get(term) if validation else getattr(epoch, term) for epoch in epochs]
    return [NAN if value is None else value for value in values]


def _some(values: Sequence[float]) -> bool:
    return any(map(math.isfinite, values))


def _focus(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Leave as few first epochs out of the frame, at most a tenth, as it takes for the others to fill half of it."""
    most = len(curves[0]) // 10
    rests = [[v for curve in curves for v in curve[first:] if math.isfinite(v)] or [0.0] for first in range(most + 1)]
    spreads = [max(rest) - min(rest) for rest in rests]
    skipped = next(first for first, spread in enumerate(spreads) if spread <= 2 * spreads[-1])
    if not skipped:
        return
    rest = rests[skipped]
    margin = 0.08 * (max(rest) - min(rest)) or 1.0
    low, high = min(rest) - margin, max(rest) + margin
    axes.set_ylim(low, high)
    outside = sum(
        any(not low <= curve[i] <= high for curve in curves if math.isfinite(curve[i])) for i in range(skipped)
    )
    if outside:
        note = f"First {outside} epochs outside the frame" if outside > 1 else "First epoch outside the frame"
        where: dict[str, Any] = {"x": 0.98, "y": 0.03, "ha": "right", "transform": axes.transAxes}
        axes.text(s=note, color=FAINT, fontsize=8, bbox=WHITE, **where)
