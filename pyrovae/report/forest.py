"""Paired differences of several models, with their intervals."""

from __future__ import annotations

from matplotlib.figure import Figure

from pyrovae.report.style import FAINT, FIRST, INK, PAPER, blank, dress, styled
from pyrovae.results import ComparisonTable
from pyrovae.results.tables import printable


@styled
def forest(block: ComparisonTable) -> Figure | None:
    """Draw how far the bound of each model lies from that of the reference, paired datum by datum.

    Bars are 95 % intervals; a circle is open where it contains 0, so that the two models are not told
    apart on these data, or where a single datum has no interval.

    Args:
        block: of models that may be compared, from `pyrovae.results.compare`.

    Returns:
        The picture, None where no model has a difference.

    """
    rows = [(row.name, row.difference) for row in block.rows if row.difference and row.difference.mean is not None]
    if not rows:
        return None
    figure = blank(7.0, 1.15 + 0.34 * len(rows))
    bound = block.rows[0].bound
    label = f"$L_{{{bound.num_particles}}}$" if bound.name == "IWAE" else bound.label
    title = f"{label} minus that of the reference (nats per datum, 95 % intervals)"
    axes = dress(figure.add_subplot(), title=title)
    axes.axvline(0.0, color=FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
    beside = axes.get_yaxis_transform()
    for place, (_, change) in enumerate(rows):
        text, low, high = f"{change.mean:+.3f}", change.low, change.high
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=FIRST, linewidth=2.0, solid_capstyle="butt", label="Interval")
            text += f"  [{low:+.3f}, {high:+.3f}]"
        face = FIRST if change.resolved else PAPER
        axes.plot(
            [change.mean or 0.0], [place], "o", color=FIRST, markerfacecolor=face, markersize=6, label="Difference"
        )
        text = text.replace("-", "\N{MINUS SIGN}")
        axes.text(1.02, place, text, transform=beside, color=INK, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [printable(name) for name, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"Difference to {printable(block.reference)}", parse_math=False)
    axes.margins(x=0.08)
    return figure
