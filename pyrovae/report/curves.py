"""Pictures of numbers: how training went, and the ladder of bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyrovae.report.style import FAINT, FIRST, INK, SECOND, dress, styled
from pyrovae.results import Epoch, Estimate, Evaluation, History

TERMS = {"elbo": "ELBO", "reconstruction": "Reconstruction", "kl": "KL"}
NAN = math.nan


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
    figure = Figure(figsize=(3.3 * len(shown) + 0.6, 3.4), layout="constrained")
    numbers = [epoch.epoch for epoch in history.epochs]
    marker = "o" if len(numbers) <= 12 else ""
    for index, term in enumerate(shown):
        axes = dress(figure.add_subplot(1, len(shown), index + 1), title=f"{TERMS[term]} (nats per datum)", grid=True)
        axes.set_xlabel("Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        if history.best_epoch != numbers[-1]:
            label = f"Weights kept (epoch {history.best_epoch})"
            axes.axvline(history.best_epoch, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=label)
        for values, label, color in zip(curves[term], ("Training", "Validation"), (FIRST, SECOND), strict=True):
            if _some(values):
                axes.plot(numbers, values, color=color, linewidth=1.6, marker=marker, markersize=4, label=label)
        _focus(axes, curves[term])
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    order = sorted(handles, key=lambda label: label.startswith("Weights"))
    figure.legend([handles[label] for label in order], order, loc="outside lower center", ncols=3)
    return figure


def _curve(epochs: Sequence[Epoch], term: str, *, validation: bool) -> list[float]:
    values = [(epoch.validation or {}).get(term) if validation else getattr(epoch, term) for epoch in epochs]
    return [NAN if value is None else value for value in values]


def _some(values: Sequence[float]) -> bool:
    return any(map(math.isfinite, values))


def _focus(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """Set the limits by all but the first tenth of the epochs if those would take more than 40 % of the height."""
    skipped = len(curves[0]) // 10
    finite = [[value for value in curve if math.isfinite(value)] for curve in curves]
    rest = [value for curve in curves for value in curve[skipped:] if math.isfinite(value)]
    everything = sum(finite, [])
    if not skipped or len(rest) < 2 or max(rest) - min(rest) > 0.6 * (max(everything) - min(everything)):
        return
    margin = 0.08 * (max(rest) - min(rest)) or 1.0
    low, high = min(rest) - margin, max(rest) + margin
    axes.set_ylim(low, high)
    outside = sum(any(not low <= curve[i] <= high for curve in curves if math.isfinite(curve[i])) for i in range(skipped))
    if outside:
        first = "First epoch" if outside == 1 else f"First {outside} epochs"
        axes.text(0.98, 0.03, f"{first} outside the frame", color=FAINT, fontsize=8, ha="right", transform=axes.transAxes)


@styled
def ladder(evaluation: Evaluation) -> Figure:
    """Draw the ELBO and the IWAE bounds L_K over K, and beside them what each L_K gains over the ELBO.

    Thin bars are the Monte Carlo standard error, broad light ones the standard error over the data. The latter is
    common to all bounds, so that differences are judged by the right panel, whose bars are the standard errors of paired
    differences. Numbers that are None are left out.

    Args:
        evaluation: estimates in nats per datum.

    """
    iwae = evaluation.iwae
    gaps = [evaluation.gaps.get(bound.label, (None, None)) for bound in iwae]
    paired = any(gap is not None for gap, _ in gaps)
    figure = Figure(figsize=(8.6 if paired else 4.8, 3.9), layout="constrained")
    figure.suptitle(f"{evaluation.data}, {evaluation.num_data:,} data", x=0.01, ha="left")
    columns = 2 if paired else 1
    axes = dress(figure.add_subplot(1, columns, 1), title="Lower bounds on log p(x) (nats per datum)", grid=True)
    ks = [bound.num_particles for bound in iwae]
    left = min(ks, default=1) / _step(ks)  # the ELBO stands one step to the left of the ladder
    _points(axes, ks, iwae, color=FIRST, marker="o", label="IWAE bound $L_K$")
    _points(axes, [left], [evaluation.elbo], color=SECOND, marker="s", label="ELBO")
    if evaluation.elbo.value is not None:
        axes.axhline(evaluation.elbo.value, color=SECOND, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    _particle_axis(axes, ks, first={left: "ELBO"})
    _value_legend(axes)
    if paired:
        axes = dress(figure.add_subplot(1, columns, 2), title="$L_K$ above the ELBO (nats per datum, paired)", grid=True)
        differences = [
            Estimate("IWAE", k, value, error, None) for k, (value, error) in zip(ks, gaps, strict=True)
        ]
        axes.axhline(0, color=SECOND, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        _points(axes, ks, differences, color=FIRST, marker="o", label="$L_K$ - ELBO")
        _particle_axis(axes, ks)
    return figure
