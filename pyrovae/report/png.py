"""Pictures as PNG files."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from pyrovae.report.style import styled

DOTS_PER_INCH = 150


@styled
def to_png(figure: Figure) -> bytes:
    """Return a picture as the content of a PNG file."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DOTS_PER_INCH)
    return image.getvalue()
