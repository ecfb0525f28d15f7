"""Quality of a guide: tails of its weights, a verdict on K, inference gaps, use of the latent variables.

`prior_gains` answers the question about the prior: how much another one would add to the ELBO without retraining.
"""

from pyrovae.bounds.multi_sample import effective_sample_size
from pyrovae.diagnostics.inference_gaps import GapOptions, gaps
from pyrovae.diagnostics.latent_use import latents
from pyrovae.diagnostics.other_priors import PriorGains, prior_gains
from pyrovae.diagnostics.psis import khat_threshold, pareto_khat
from pyrovae.diagnostics.weight_summary import (
    assess_with_checks,
    bias_estimate,
    largest_weight,
    relative_variance,
    summarize_weights,
    weight_diagnostics,
)

__all__ = [
    "GapOptions",
    "PriorGains",
    "bias_estimate",
    "effective_sample_size",
    "gaps",
    "assess_with_checks",
    "khat_threshold",
    "largest_weight",
    "latents",
    "pareto_khat",
    "prior_gains",
    "relative_variance",
    "summarize_weights",
    "weight_diagnostics",
]
