"""Conformance checks for parts and objectives of your own, against exact values.

>>> from pyrovae import likelihoods, testing
>>> testing.check(likelihoods.Laplace((2,)))
"""

from pyrovae.testing.conformance import Check, ConformanceReport, check
from pyrovae.testing.quadrature import log_evidence
from pyrovae.testing.small_models import fit_guide, small_vae

__all__ = ["Check", "ConformanceReport", "check", "fit_guide", "log_evidence", "small_vae"]
