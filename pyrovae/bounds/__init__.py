"""Estimates of log p(x) from particles: the ELBO with its terms apart, and the ladder of IWAE bounds."""

from pyrovae.bounds.elbo import ElboTerms, elbo
from pyrovae.bounds.iwae import iwae, log_mean_exp, monte_carlo_variances

__all__ = ["ElboTerms", "elbo", "iwae", "log_mean_exp", "monte_carlo_variances"]
