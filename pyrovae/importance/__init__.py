"""Drawing and scoring of particles: one run of the guide, chunks of the model, any layout of plates."""

from pyrovae.importance.chunks import (
    chunk_sizes,
    compiled_runs,
    iter_batches,
    on_device,
    rows_per_chunk,
)
from pyrovae.importance.particle_batches import (
    ParticleBatch,
    draw_guide,
    iter_particles,
    score_guide,
    score_model,
    score_one_particle,
)
from pyrovae.importance.sampling import find_low_precision, scoring_context
from pyrovae.importance.simulation import simulate
from pyrovae.importance.unconstrained import UnconstrainedLatents
from pyrovae.programs.layout import sum_over_sites

__all__ = [
    "ParticleBatch",
    "UnconstrainedLatents",
    "iter_particles",
    "draw_guide",
    "scoring_context",
    "find_low_precision",
    "on_device",
    "score_one_particle",
    "compiled_runs",
    "rows_per_chunk",
    "score_model",
    "score_guide",
    "simulate",
    "chunk_sizes",
    "sum_over_sites",
    "iter_batches",
]
