"""The ELBO beside the ladder of IWAE bounds, with both standard errors and the paired gain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pyrovae.report.style import FIRST, INK, PALETTE, SECOND, blank, dress, legend_below, styled
from pyrovae.results import Estimate, Evaluation
from pyrovae.results.tables import printable

TICKS = 9  # labels that fit on the axis of K
BROAD: dict[str, Any] = {"linewidth": 7, "alpha": 0.25}
LADDER = "IWAE bound $L_K$"
ANNEALED = "AIS"  # the one estimate beside the ladder that is a lower bound on data that were not simulated
OVER_DATA, MONTE_CARLO = "Standard error over the data", "Monte Carlo standard error"
DOTTED: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (1, 2)), "color": SECOND, "zorder": 1}


@styled
def ladder(evaluation: Evaluation, extra: Sequence[Estimate] = ()) -> Figure:
    """Draw the ELBO and the IWAE bounds L_K over K, and beside them what each L_K gains over the ELBO.

    Thin bars are the Monte Carlo standard error, broad light ones the standard error over the data. Most of the latter
    is common to all bounds, so that differences are read off the second panel, whose bars are the standard errors of
    paired differences. Numbers that are None are left out, and so is a second panel without numbers.

    Args:
        evaluation: estimates in nats per datum.
        extra: AIS on the same data, drawn to the right of the ladder.

    Raises:
        ValueError: if another estimate is given, such as the jackknife, which is no bound.

    """
    if strange := [estimate.name for estimate in extra if estimate.name != ANNEALED]:
        raise ValueError(
            f"beside the ladder only other lower bounds on the same data are drawn, which are named {ANNEALED!r}, but "
            f"received {strange[0]!r}; report it in a table"
        )
    iwae, elbo = evaluation.iwae, evaluation.elbo
    annealed = [estimate for estimate in extra if estimate.value is not None]
    gains = [Estimate("IWAE", b.num_particles, *evaluation.gains.get(b.label, (None, None)), None) for b in iwae]
    paired = any(gain.value is not None for gain in gains)
    ks = [bound.num_particles for bound in iwae] or [elbo.num_particles]
    step = (max(ks) / min(ks)) ** (1 / 4) if len(set(ks)) > 1 else 4.0
    figure = blank(9.0 if paired else 4.9, 3.8)
    data = f"{printable(evaluation.data)}, {evaluation.num_data:,} data"
    figure.suptitle(data, x=0.012, ha="left", parse_math=False)

    title = f"Lower bounds on log {evaluation.density} (nats per datum)"
    axes = dress(figure.add_subplot(1, 1 + paired, 1), title=title, grid=True)
    _points(axes, [min(ks) / step], [elbo], color=SECOND, label="ELBO")  # one step to the left of the ladder
    if annealed:
        _points(axes, [max(ks) * step] * len(annealed), annealed, color=PALETTE[4], label=ANNEALED)
    _points(axes, ks, iwae, color=FIRST, label=LADDER)
    if elbo.value is not None:
        axes.axhline(elbo.value, **DOTTED)
    _axis_of_particles(axes, ks, step=step, first="ELBO", last=ANNEALED if annealed else "")
    shown = ["ELBO", LADDER, ANNEALED, MONTE_CARLO, OVER_DATA]
    legend_below(figure, shown, columns=5 if paired else 2)

    if paired:
        title = "Paired gain of $L_K$ over the ELBO (nats per datum)"
        axes = dress(figure.add_subplot(1, 2, 2), title=title, grid=True)
        _points(axes, ks, gains, color=FIRST, label="Gain", form="+.3f")
        axes.axhline(0.0, **DOTTED)
        _axis_of_particles(axes, ks, step=step)
    return figure


def _points(
    axes: Axes, ks: Sequence[float], estimates: Sequence[Estimate], *, color: str, label: str, form: str = ".2f"
) -> None:
    """Draw estimates over K with their values and both standard errors, where there are such."""
    known = [(k, e, e.value) for k, e in zip(ks, estimates, strict=False) if e.value is not None]
    axes.plot(
        [k for k, *_ in known], [v for *_, v in known], "-o", color=color, linewidth=1.4, markersize=5, label=label
    )
    for k, estimate, value in known:
        if (error := estimate.se_data) is not None:
            axes.vlines(k, value - error, value + error, color=color, label=OVER_DATA, **BROAD)
        if (error := estimate.se_monte_carlo) is not None:
            axes.errorbar(
                k, value, error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3, zorder=4, label=MONTE_CARLO
            )
    alone = len(known) == 1  # below its point, where no line passes and no neighbor's number stands
    for k, _, value in known if len(known) <= 6 else (known[0], known[-1]):
        text = f"{value:{form}}".replace("-", "\N{MINUS SIGN}")
        where: dict[str, Any] = {"xytext": (0, -14), "ha": "center"} if alone else {"xytext": (-7, 5), "ha": "right"}
        axes.annotate(text, (k, value), textcoords="offset points", fontsize=8, **where)


def _axis_of_particles(axes: Axes, ks: Sequence[int], *, step: float, first: str = "", last: str = "") -> None:
    """Put ticks at the Ks, labeled as far as the labels fit, and for `first` and `last` one step outside them."""
    axes.set_xscale("log")
    axes.set_xlabel("Number of particles K")
    low, high = min(ks) / step if first else min(ks), max(ks) * step if last else max(ks)
    kept: list[int] = []
    for k in sorted(set(ks), reverse=True):
        if not kept or math.log(kept[-1] / k) >= math.log(high / low) / TICKS:
            kept.append(k)
    labels: dict[float, str] = {k: f"{k:,}" if k in kept else "" for k in sorted(set(ks))}
    labels |= ({low: first} if first else {}) | ({high: last} if last else {})
    axes.set_xticks(list(labels), list(labels.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low / step**0.8, high * step**0.4)
    axes.margins(y=0.12)
