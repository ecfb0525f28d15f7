"""Where the gap between the ELBO and log p(x) comes from, step by step."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.report.style import FAINT, FIRST, INK, PALETTE, PAPER, blank, dress, legend_below, styled
from pyrovae.results import Estimate, Gaps
from pyrovae.results.tables import printable

BAR, LINE = 0.62, 0.40  # width of a step's bar, half the width of a bound's line
OVERFITTING = "Over-fitting of the guide"
PAIRED, MONTE_CARLO = "Standard error of the difference, datum by datum", "Monte Carlo standard error"
LETTERS = 15  # in a line below the axis


@styled
def waterfall(gaps: Gaps) -> Figure:
    """Draw the steps from the ELBO of the guide up to the tightest bound, and their total.

    The bounds are short lines, each step a bar from one to the next, which hangs where it is negative. Its thin bar is
    the standard error of the difference datum by datum; for a single datum, that over Monte Carlo draws. The hatched
    part of the amortization gap goes away where the guide is fitted to these data.

    Args:
        gaps: bounds and steps in nats per datum.

    Raises:
        ValueError: if a bound has no value.

    """
    elbo, refined, bound = (_level(estimate) for estimate in (gaps.elbo, gaps.refined, gaps.bound))
    total, error = gaps.total.value or 0.0, _error(gaps.total)[0] or 0.0
    digits = _digits(max(abs(total), error))
    figure = blank(7.2, 4.2)
    figure.suptitle(f"{printable(gaps.data)}, {gaps.num_data:,} data", x=0.012, ha="left", parse_math=False)
    axes = dress(figure.add_subplot(), title="Where the gap comes from (nats per datum)", grid=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    for place, level, until in ((0, elbo, 5), (2, refined, 3), (4, bound, 5)):
        axes.hlines(level, place - LINE, until + BAR / 2, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axes.hlines(level, place - LINE, place + LINE, color=INK, linewidth=2.2, zorder=3)
    for place, step, low, high, color in (
        (1, gaps.amortization, elbo, refined, FIRST),
        (3, gaps.approximation, refined, bound, PALETTE[1]),
        (5, gaps.total, elbo, bound, FAINT),
    ):
        axes.bar(place, high - low, BAR, bottom=low, color=color, zorder=2)
        _label(axes, place, step, top=max(low, high), end=high, digits=digits)
    shown = [PAIRED, MONTE_CARLO]
    if (part := gaps.overfitting.value) is not None:
        shown = [f"{OVERFITTING}: {_signed(gaps.overfitting, digits)}", *shown]
        inside = min(max(part, 0.0), max(refined - elbo, 0.0))
        style: dict[str, Any] = {
            "facecolor": FIRST,
            "edgecolor": PAPER,
            "hatch": "////",
            "linewidth": 0.0,
            "zorder": 2.5,
        }
        axes.bar(1, inside, BAR, bottom=elbo, label=shown[0], **style)
    legend_below(figure, shown, columns=2)
    names = (("ELBO", elbo), "Amortization gap", ("Refined Gaussian", refined), "Approximation gap")
    last = (gaps.bound.label, bound), "Total gap"
    axes.set_xticks(range(6), [_name(name, digits) for name in (*names, *last)], parse_math=False)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, 5.6)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.02 * (high - low), high + 0.09 * (high - low))
    return figure


def _level(estimate: Estimate) -> float:
    if estimate.value is None:
        raise ValueError(
            f"a waterfall goes from bound to bound, but {estimate.label} has no value ({estimate.why}); leave out the "
            "data that have none"
        )
    return estimate.value


def _label(axes: Axes, place: int, step: Estimate, *, top: float, end: float, digits: int) -> None:
    """Draw the error of a step at its end, and its value above."""
    error, kind = _error(step)
    if error is not None:
        axes.errorbar(place, end, error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3, zorder=4, label=kind)
        top = max(top, end + error)
    text = _signed(step, digits)
    axes.annotate(
        text, (place, top), xytext=(0, 5), textcoords="offset points", ha="center", va="bottom", fontsize=9, zorder=5
    )


def _error(step: Estimate) -> tuple[float | None, str]:
    return (step.se_data, PAIRED) if step.se_data is not None else (step.se_monte_carlo, MONTE_CARLO)


def _signed(step: Estimate, digits: int) -> str:
    error, _ = _error(step)
    text = f"{step.value:+.{digits}f}" + ("" if error is None else f" \N{PLUS-MINUS SIGN} {error:.{digits}f}")
    return text.replace("-", "\N{MINUS SIGN}")


def _name(name: str | tuple[str, float], digits: int) -> str:
    """Return the lines below a place: what it is, and the value of a bound."""
    if isinstance(name, str):
        return "\n".join(textwrap.wrap(name, LETTERS))
    value = f"{name[1]:.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return "\n".join([*textwrap.wrap(name[0], LETTERS), value])


def _digits(gap: float) -> int:
    """Return the digits behind the point that show a gap to two places."""
    return min(5, max(2, 1 - math.floor(math.log10(gap)))) if gap > 0 else 2
