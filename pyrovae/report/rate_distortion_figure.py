"""Figure of the trade-off between KL and reconstruction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.report.style import FAINT, FIRST, PALETTE, dress, legend_below, minus_signs, panel, styled
from pyrovae.results import Evaluation
from pyrovae.results.comparability import require_comparable
from pyrovae.runtime.annotations import convert

MARKERS = ("s", "^", "D", "v", "P", "X", "*", "<", ">")
PLACE = 0.8  # of the value on a line of equal ELBO, from its upper end
SHORTEST = 0.15  # width of a line with a value, as a share of the axis


@styled
def rate_distortion(
    points: Mapping[str, Evaluation | tuple[float, float]], *, curve: Sequence[str] = (), ax: Axes | None = None
) -> Figure:
    """Draw models by their rate, the KL, and their distortion, minus the reconstruction, with lines of equal ELBO.

    The ELBO is minus the sum of both. ``objectives.ELBO(beta=beta)`` minimizes ``distortion + beta * rate``: the best
    models lie on a curve with slope -beta, which touches the line of the highest ELBO at beta = 1.

    *Fixing a broken ELBO (Alemi et al. 2018)*, https://arxiv.org/abs/1711.00464

    Args:
        points: evaluations of the same data, or pairs (rate, distortion) in nats per datum, by the name of the model.
        curve: names of models to join by a line, in this order; the others have an entry in the legend each.
        ax: axes to draw into, without title and legend; None for a new figure.

    Raises:
        ValueError: if evaluations may not be compared, one has no KL or reconstruction, a pair is not two finite
            numbers with a rate >= 0, or a name of the curve is not among the points.

    """
    if unknown := [name for name in curve if name not in points]:
        raise ValueError(f"`curve` names points, {', '.join(points)}, but received {', '.join(unknown)}")
    require_comparable({name: point for name, point in points.items() if isinstance(point, Evaluation)})
    pairs = {name: _pair(name, point) for name, point in points.items()}
    figure, axes = panel(ax, 6.4, 5.0)
    dress(axes, title="Rate and distortion, with lines of equal ELBO" if ax is None else "")
    axes.set_xlabel("Rate: KL (nats per datum)")
    axes.set_ylabel("Distortion: \N{MINUS SIGN}reconstruction (nats per datum)")
    if curve:
        axes.plot(*zip(*(pairs[name] for name in curve), strict=True), "-o", color=FIRST, markersize=5, linewidth=1.4)
    for name in curve:
        axes.annotate(name, pairs[name], xytext=(6, 4), textcoords="offset points", fontsize=9)
    others = [name for name in points if name not in curve]
    for i, name in enumerate(others):
        color, marker = PALETTE[1 + i % (len(PALETTE) - 1)], MARKERS[i % len(MARKERS)]
        axes.plot(*pairs[name], marker, color=color, markersize=7, fillstyle="none", markeredgewidth=1.6, label=name)
    axes.margins(0.12)
    axes.set_xlim(left=max(axes.get_xlim()[0], -0.02 * axes.get_xlim()[1]))  # a KL is not negative
    _draw_elbo_lines(axes)
    if ax is None and others:
        legend_below(figure, others, columns=3)
    return figure


def _pair(name: str, point: Evaluation | tuple[float, float]) -> tuple[float, float]:
    if not isinstance(point, Evaluation):
        pair = convert(point, Sequence[float], name=f"points[{name!r}]", owner="rate_distortion")
        if len(pair) != 2 or not all(map(math.isfinite, pair)) or pair[0] < 0:
            raise ValueError(
                f"{name!r} is not an evaluation or two finite numbers, rate >= 0 and distortion, got {point}"
            )
        return pair[0], pair[1]
    rate, reconstruction = point.kl.value, point.reconstruction.value
    if rate is None or reconstruction is None:
        raise ValueError(f"{name!r} has no KL or no reconstruction: {point.kl.why or point.reconstruction.why}")
    return rate, -reconstruction


def _draw_elbo_lines(axes: Axes) -> None:
    """Draw lines of equal ELBO within the limits of the axes, each with its value near its lower end."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = np.linspace(left, right, 99), np.linspace(bottom, top, 99)
    lines = axes.contour(x, y, -(x + y[:, None]), levels=10, colors=FAINT, linewidths=0.7, linestyles="dashed")
    ends = [(max(left, -elbo - top), min(right, -elbo - bottom)) for elbo in lines.levels]  # in x
    at = [low + PLACE * (high - low) for low, high in ends]
    long = [high - low > SHORTEST * (right - left) for low, high in ends]
    places = [(x, -elbo - x) for x, elbo, fits in zip(at, lines.levels, long, strict=True) if fits]
    axes.clabel(lines, fmt=lambda elbo: minus_signs(f"{elbo:g}"), fontsize=8, manual=places)
