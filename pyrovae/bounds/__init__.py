"""Estimates of log p(x): the ELBO and its terms, the ladder of IWAE bounds, AIS and BDMC."""

from pyrovae.bounds.annealed_importance import AnnealingOptions, ais, bdmc
from pyrovae.bounds.evidence import ElboTerms, elbo
from pyrovae.bounds.multi_sample import effective_sample_size, iwae, log_mean_exp, monte_carlo_variances

__all__ = [
    "AnnealingOptions",
    "ElboTerms",
    "ais",
    "bdmc",
    "effective_sample_size",
    "elbo",
    "iwae",
    "log_mean_exp",
    "monte_carlo_variances",
]
