"""Estimates of log p(x): the ELBO with its terms apart, the ladder of IWAE bounds, and annealing from both sides."""

from pyrovae.bounds.annealed_importance import ais
from pyrovae.bounds.bidirectional import bdmc
from pyrovae.bounds.evidence import ElboTerms, elbo
from pyrovae.bounds.multi_sample import effective_sample_size, iwae, log_mean_exp, monte_carlo_variances

__all__ = ["ElboTerms", "ais", "bdmc", "effective_sample_size", "elbo", "iwae", "log_mean_exp", "monte_carlo_variances"]
