"""How particles are drawn and scored: once for the guide, in chunks for the model, any layout of plates."""

from pyrovae.importance.batches import Block, blocks, draw, one_particle, score, score_guide
from pyrovae.importance.chunk_sizes import rows_at_once, sizes_on
from pyrovae.importance.chunks import iter_batches, on_device
from pyrovae.importance.context_of_scoring import low_precision, require_tensor, scoring_context
from pyrovae.importance.layout import per_datum, sum_over_sites
from pyrovae.importance.simulation import simulate
from pyrovae.importance.traced_scoring import RecordedRuns, recorded_runs
from pyrovae.importance.unconstrained import UnconstrainedLatents

__all__ = [
    "Block",
    "UnconstrainedLatents",
    "RecordedRuns",
    "blocks",
    "draw",
    "scoring_context",
    "low_precision",
    "on_device",
    "one_particle",
    "per_datum",
    "recorded_runs",
    "require_tensor",
    "rows_at_once",
    "score",
    "score_guide",
    "simulate",
    "sizes_on",
    "sum_over_sites",
    "iter_batches",
]
