"""Is the guide any good: tails of its weights, the ladder's verdict on K, and what its latent variables carry."""

from pyrovae.bounds.multi_sample import effective_sample_size
from pyrovae.diagnostics.gaps import gaps
from pyrovae.diagnostics.ladder import assess, read_ladder
from pyrovae.diagnostics.latents import latents
from pyrovae.diagnostics.psis import khat_threshold, pareto_khat
from pyrovae.diagnostics.weights import (
    assess_with_checks,
    bias_estimate,
    jackknife,
    largest_weight,
    relative_variance,
    summarize_weights,
    weight_diagnostics,
)

__all__ = [
    "bias_estimate",
    "effective_sample_size",
    "gaps",
    "jackknife",
    "assess",
    "assess_with_checks",
    "khat_threshold",
    "largest_weight",
    "latents",
    "pareto_khat",
    "read_ladder",
    "relative_variance",
    "summarize_weights",
    "weight_diagnostics",
]
