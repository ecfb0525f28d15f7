"""Figures of bounds on log p(x): the ladder over K, the steps of the gap, the terms of the ELBO, and differences."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pyrovae.report.style import (
    DASHES,
    DOTTED,
    FAINT,
    FIRST,
    INK,
    PALETTE,
    SECOND,
    blank,
    dress,
    legend_below,
    minus_signs,
    panel,
    styled,
)
from pyrovae.results import ComparisonTable, Estimate, Evaluation, Gaps
from pyrovae.results.comparison import require_comparable
from pyrovae.results.tables import printable
from pyrovae.results.training_seeds import LEVEL

TICKS = 9  # labels that fit on the axis of K
LADDER = "IWAE bound $L_K$"
ANNEALED = "AIS"
OVER_DATA, MONTE_CARLO = "Standard error over the data", "Monte Carlo standard error"
PAIRED, REFIT_PART = "Standard error of the difference, datum by datum", "Refit of the guide to these data"
Point = Evaluation | tuple[float, float]  # or its rate and distortion
BROAD: dict[str, Any] = {"linewidth": 7, "alpha": 0.25}
THIN: dict[str, Any] = {"fmt": "none", "ecolor": INK, "elinewidth": 1.2, "capsize": 3, "zorder": 4}
BAR, LINE = 0.62, 0.40  # width of a step's bar, half the width of a bound's line
LETTERS = 15  # letters of a line below the axis of steps
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LEGEND = 75  # letters on a line of the legend
NAMED_SITES, SITE_NAMES = 12, 8  # sites with a bar and a name each; names below the axis of more sites
LOGARITHMIC = 100  # ratio of the KL of many sites from which the axis is logarithmic
SITE_COLORS = (PALETTE[0], PALETTE[6], PALETTE[4], PALETTE[3])


@styled
def ladder(evaluation: Evaluation, *, ax: Axes | None = None) -> Figure:
    """Draw the ELBO and the IWAE bounds L_K over K, and beside them the paired gain of each L_K over the ELBO.

    AIS of all data stands to the right of the ladder. Thin bars are Monte Carlo standard errors, broad light ones
    standard errors over the data. Most of the latter is common to all bounds; the second panel has the standard errors
    of paired differences. Missing numbers are left out.

    Args:
        evaluation: estimates in nats per datum.
        ax: axes to draw the bounds into, without the gains, title and legend; None for a new figure.

    """
    iwae, elbo = evaluation.iwae, evaluation.elbo
    annealing = evaluation.checked.annealing if evaluation.checked else None
    is_of_all = annealing is not None and annealing.num_data == evaluation.num_data
    annealed = [annealing.bound] if annealing and is_of_all and annealing.bound.value is not None else []
    gains = [Estimate("IWAE", b.num_particles, *evaluation.gains.get(b.label, (None, None)), None) for b in iwae]
    paired = ax is None and any(gain.value is not None for gain in gains)
    ks = [bound.num_particles for bound in iwae] or [elbo.num_particles]
    step = (max(ks) / min(ks)) ** 0.3 if len(set(ks)) > 1 else 4.0  # factor from the ladder to a place beside it
    if ax is None:
        figure = blank(9.0 if paired else 4.9, 3.8)
        data = f"{printable(evaluation.data)}, {evaluation.num_data:,} data"
        figure.suptitle(data, x=0.012, ha="left", parse_math=False)
    axes = figure.add_subplot(1, 1 + paired, 1) if ax is None else ax
    dress(axes, title="" if ax else f"Lower bounds on log {evaluation.density} (nats per datum)", grid=True)
    _draw_points(axes, [min(ks) / step], [elbo], color=SECOND, label="ELBO")
    if annealed:
        _draw_points(axes, [max(ks) * step], annealed, color=PALETTE[4], label=ANNEALED)
    _draw_points(axes, ks, iwae, color=FIRST, label=LADDER)
    if elbo.value is not None:
        axes.axhline(elbo.value, **DOTTED | {"color": SECOND, "zorder": 1})
    _set_particle_axis(axes, ks, step=step, first="ELBO", last=ANNEALED if annealed else "")
    if ax is not None:
        return ax.figure.figure
    legend_below(figure, ["ELBO", LADDER, ANNEALED, MONTE_CARLO, OVER_DATA], columns=5 if paired else 2)
    if paired:
        title = "Paired gain of $L_K$ over the ELBO (nats per datum)"
        axes = dress(figure.add_subplot(1, 2, 2), title=title, grid=True)
        _draw_points(axes, ks, gains, color=FIRST, label="Gain", form="+.3f")
        axes.axhline(0.0, **DOTTED | {"color": SECOND, "zorder": 1})
        _set_particle_axis(axes, ks, step=step)
    return figure


def _draw_points(
    axes: Axes, ks: Sequence[float], estimates: Sequence[Estimate], *, color: str, label: str, form: str = ".2f"
) -> None:
    """Draw estimates over K with their values and standard errors, as far as they are known."""
    known = [(k, e, e.value) for k, e in zip(ks, estimates, strict=False) if e.value is not None]
    line: dict[str, Any] = {"color": color, "linewidth": 1.4, "markersize": 5, "label": label}
    axes.plot([k for k, *_ in known], [value for *_, value in known], "-o", **line)
    for k, estimate, value in known:
        if (error := estimate.se_data) is not None:
            axes.vlines(k, value - error, value + error, color=color, label=OVER_DATA, **BROAD)
        if (error := estimate.se_monte_carlo) is not None:
            axes.errorbar(k, value, error, label=MONTE_CARLO, **THIN)
    below: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, -12), "fontsize": 8}  # right of the broad bar
    for k, _, value in known if len(known) <= 6 else (known[0], known[-1]):
        axes.annotate(minus_signs(f"{value:{form}}"), (k, value), **below)


def _set_particle_axis(axes: Axes, ks: Sequence[int], *, step: float, first: str = "", last: str = "") -> None:
    """Set ticks at each K, with labels where they fit, and at `first` and `last` one step outside."""
    axes.set_xscale("log")
    axes.set_xlabel("Number of particles K")
    low, high = min(ks) / step if first else min(ks), max(ks) * step if last else max(ks)
    labeled: list[int] = []
    for k in sorted(set(ks), reverse=True):
        if not labeled or math.log(labeled[-1] / k) >= math.log(high / low) / TICKS:
            labeled.append(k)
    labels: dict[float, str] = {k: f"{k:,}" if k in labeled else "" for k in sorted(set(ks))}
    labels |= ({low: first} if first else {}) | ({high: last} if last else {})
    axes.set_xticks(list(labels), list(labels.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(low / step**0.4, high * step**0.9)
    axes.margins(y=0.15)


@styled
def waterfall(gaps: Gaps, *, ax: Axes | None = None) -> Figure | None:
    """Draw the steps from the ELBO of the guide up to the tightest bound, and their total.

    Bounds are short lines, steps are bars between them; the bar of a negative step hangs down. Thin bars are standard
    errors of the differences datum by datum; for a single datum, over Monte Carlo draws. A refit of the guide to these
    data removes the hatched part of the amortization gap.

    Args:
        gaps: bounds and steps in nats per datum.
        ax: axes to draw into, 6 inches wide or more, without title and legend; None for a new figure.

    Returns:
        The figure, or None if a bound has no value.

    """
    elbo, refined, bound = gaps.elbo.value, gaps.refined.value, gaps.bound.value
    if elbo is None or refined is None or bound is None:
        return None
    size = max(abs(gaps.total.value or 0.0), _error(gaps.total)[0] or 0.0)
    digits = min(5, max(2, 1 - math.floor(math.log10(size)))) if size > 0 else 2  # for two significant digits
    figure, axes = panel(ax, 7.2, 4.2, title="Where the gap comes from (nats per datum)", grid=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    for place, level, end in ((0, elbo, 5), (2, refined, 3), (4, bound, 5)):
        axes.hlines(level, place - LINE, end + BAR / 2, zorder=1, **DOTTED)
        axes.hlines(level, place - LINE, place + LINE, color=INK, linewidth=2.2, zorder=3)
    for place, step, low, high, color in (
        (1, gaps.amortization, elbo, refined, FIRST),
        (3, gaps.approximation, refined, bound, PALETTE[1]),
        (5, gaps.total, elbo, bound, FAINT),
    ):
        axes.bar(place, high - low, BAR, bottom=low, color=color, zorder=2)
        error, label = _error(step)
        if error is not None:
            axes.errorbar(place, high, error, label=label, **THIN)
        top = max(low, high, high + (error or 0.0))
        text: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 9}
        axes.annotate(_signed(step, digits), (place, top), va="bottom", zorder=5, **text)
    labels = [PAIRED, MONTE_CARLO]
    if (part := gaps.overfitting.value) is not None:
        labels = [f"{REFIT_PART}: {_signed(gaps.overfitting, digits)}", *labels]
        hatched: dict[str, Any] = {"facecolor": FIRST, "edgecolor": "white", "hatch": "////", "linewidth": 0.0}
        inside = min(max(part, 0.0), max(refined - elbo, 0.0))
        axes.bar(1, inside, BAR, bottom=elbo, label=labels[0], zorder=2.5, **hatched)
    names = ["ELBO", "Amortization gap", "Refined Gaussian", "Approximation gap", gaps.bound.label, "Total gap"]
    names = ["\n".join(textwrap.wrap(name, LETTERS)) for name in names]
    for place, level in ((0, elbo), (2, refined), (4, bound)):
        names[place] += "\n" + minus_signs(f"{level:.{digits}f}")
    axes.set_xticks(range(6), names, parse_math=False)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, 5.6)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.02 * (high - low), high + 0.09 * (high - low))
    if ax is None:
        figure.suptitle(f"{printable(gaps.data)}, {gaps.num_data:,} data", x=0.012, ha="left", parse_math=False)
        legend_below(figure, labels, columns=2)
    return figure


def _error(step: Estimate) -> tuple[float | None, str]:
    return (step.se_data, PAIRED) if step.se_data is not None else (step.se_monte_carlo, MONTE_CARLO)


def _signed(step: Estimate, digits: int) -> str:
    error, _ = _error(step)
    return minus_signs(f"{step.value:+.{digits}f}") + ("" if error is None else f" ± {error:.{digits}f}")


@styled
def forest(block: ComparisonTable, *, ax: Axes | None = None) -> Figure | None:
    """Draw the difference of the bound of each model to the reference, paired datum by datum.

    Bars are 95 % intervals. A circle is filled where the table calls the difference resolved: its p-value is below 5 %
    after adjustment for the number of differences.

    Args:
        block: models that may be compared, from `pyrovae.results.compare`.
        ax: axes to draw into, without the title; None for a new figure.

    Returns:
        The figure, or None if no model has a difference.

    """
    rows = [(row, row.difference) for row in block.rows if row.difference and row.difference.mean is not None]
    if not rows:
        return None
    bound = block.rows[0].bound
    label = f"$L_{{{bound.num_particles}}}$" if bound.name == "IWAE" else bound.label
    title = f"{label} minus that of the reference (nats per datum, 95 % intervals)"
    figure, axes = panel(ax, 7.0, 1.15 + 0.34 * len(rows), title=title)
    axes.axvline(0.0, color=FAINT, linewidth=1.0, linestyle=DASHES)
    for place, (row, change) in enumerate(rows):
        text, low, high = f"{change.mean:+.3f}", change.low, change.high
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=FIRST, linewidth=2.0, solid_capstyle="butt", label="Interval")
            text += f"  [{low:+.3f}, {high:+.3f}]"
        resolved = row.p_value is not None and row.p_value < LEVEL
        dot: dict[str, Any] = {"color": FIRST, "markerfacecolor": FIRST if resolved else "white"}
        axes.plot([change.mean or 0.0], [place], "o", markersize=6, label="Difference", **dot)
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 9}
        axes.text(1.02, place, minus_signs(text), color=INK, **beside)
    axes.set_yticks(range(len(rows)), [printable(row.name) for row, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"Difference to {printable(block.reference)}", parse_math=False)
    axes.margins(x=0.08)
    return figure


@styled
def rate_distortion(points: Mapping[str, Point | Mapping[str, Point]], *, ax: Axes | None = None) -> Figure:
    """Draw models by their rate, the KL, and their distortion, minus the reconstruction, with lines of equal ELBO.

    The ELBO is minus the sum of both. ``objectives.ELBO(beta=beta)`` minimizes ``distortion + beta * rate``: the best
    models lie on a curve with slope -beta, which touches the line of the highest ELBO at beta = 1.

    *Fixing a broken ELBO (Alemi et al. 2018)*, https://arxiv.org/abs/1711.00464

    Args:
        points: evaluations of the same data, or pairs (rate, distortion) in nats per datum, by the name of the model.
            A mapping of points is a curve: a line joins them in this order, and their names stand beside them. Other
            points have an entry in the legend each, and so have curves if there are several.
        ax: axes to draw into, without title and legend; None for a new figure.

    Raises:
        ValueError: if evaluations may not be compared, one has no KL or reconstruction, or a pair is not two finite
            numbers with a rate >= 0.

    Example:
        >>> rate_distortion({"ELBO": {"beta = 0.5": first, "beta = 1": second}, "DReG": third})

    """
    curves: dict[str, Mapping[str, Point]] = {
        name: point if isinstance(point, Mapping) else {"": point} for name, point in points.items()
    }
    joined = [name for name, point in points.items() if isinstance(point, Mapping)]
    named = {f"{name} {key}".strip(): point for name, curve in curves.items() for key, point in curve.items()}
    require_comparable({name: point for name, point in named.items() if isinstance(point, Evaluation)})
    figure, axes = panel(ax, 6.4, 5.0, title="Rate and distortion, with lines of equal ELBO")
    axes.set_xlabel("Rate: KL (nats per datum)")
    axes.set_ylabel("Distortion: \N{MINUS SIGN}reconstruction (nats per datum)")
    for i, (name, curve) in enumerate(curves.items()):
        pairs = {key: _rate_and_distortion(key or name, point) for key, point in curve.items()}
        look: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "label": name}
        if name in joined:
            axes.plot(*zip(*pairs.values(), strict=True), markersize=5, linewidth=1.4, **look)
            for key, pair in pairs.items():
                axes.annotate(key, pair, xytext=(6, 4), textcoords="offset points", fontsize=9)
        else:
            axes.plot(*pairs[""], markersize=7, fillstyle="none", markeredgewidth=1.6, linestyle="", **look)
    axes.margins(0.12)
    axes.set_xlim(left=max(axes.get_xlim()[0], -0.02 * axes.get_xlim()[1]))  # a KL is not negative
    _draw_elbo_lines(axes)
    labels = [name for name in points if name not in joined or len(joined) > 1]
    if ax is None and labels:
        legend_below(figure, labels, columns=max(1, min(3, LEGEND // max(map(len, labels)))))
    return figure


def _rate_and_distortion(name: str, point: Evaluation | tuple[float, float]) -> tuple[float, float]:
    if isinstance(point, Evaluation):
        if point.kl.value is None or point.reconstruction.value is None:
            raise ValueError(f"{name!r} has no KL or no reconstruction: {point.kl.why or point.reconstruction.why}")
        return point.kl.value, -point.reconstruction.value
    rate, distortion = map(float, point)
    if not 0 <= rate < math.inf or not math.isfinite(distortion):
        raise ValueError(f"{name!r} is not an evaluation or two finite numbers, rate >= 0 and distortion, got {point}")
    return rate, distortion


def _draw_elbo_lines(axes: Axes) -> None:
    """Draw lines of equal ELBO with their values within the limits of the axes."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = np.linspace(left, right, 99), np.linspace(bottom, top, 99)
    lines = axes.contour(x, y, -(x + y[:, None]), levels=10, colors=FAINT, linewidths=0.7, linestyles="dashed")
    axes.clabel(lines, fmt=lambda elbo: minus_signs(f"{elbo:g}"), fontsize=8)


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
    figure, axes = panel(ax, 7.0, 3.4, grid=True)
    axes.set_title("KL of each latent site (nats per datum)")
    places = range(1, len(names) + 1)
    many = len(names) > NAMED_SITES
    for number, (label, sites) in enumerate(models.items()):
        color = SITE_COLORS[number % len(SITE_COLORS)]
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
        shown = sorted({round(i * (len(names) - 1) / (SITE_NAMES - 1)) for i in range(SITE_NAMES)})
    axes.set_xticks([i + 1 for i in shown], [printable(names[i]) for i in shown], parse_math=False)
    if len(models) > 1:
        axes.legend()
    return figure
