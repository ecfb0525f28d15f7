"""How particles are drawn and scored: once for the guide, in chunks for the model, any layout of plates."""

from pyrovae.scoring.blocks import Block, blocks, draw, one_particle, score, score_guide
from pyrovae.scoring.flat import FlatSpace
from pyrovae.scoring.inspected import inspected, low_precision, require_tensor
from pyrovae.scoring.layout import per_datum, total_of
from pyrovae.scoring.observed import observed_values, roles
from pyrovae.scoring.pieces import on_device, walk
from pyrovae.scoring.recorded import RecordedRuns, recorded_runs
from pyrovae.scoring.simulate import simulate
from pyrovae.scoring.sizes import rows_at_once, sizes_on

__all__ = [
    "Block",
    "FlatSpace",
    "RecordedRuns",
    "blocks",
    "draw",
    "inspected",
    "low_precision",
    "observed_values",
    "on_device",
    "one_particle",
    "per_datum",
    "recorded_runs",
    "require_tensor",
    "roles",
    "rows_at_once",
    "score",
    "score_guide",
    "simulate",
    "sizes_on",
    "total_of",
    "walk",
]
