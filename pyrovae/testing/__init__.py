"""Laws that a part of your own should obey, checked against exact truth.

>>> from pyrovae import testing
>>> print(testing.check(likelihoods.Laplace((2,))))
"""

from pyrovae.testing.check import check
from pyrovae.testing.laws import Check, Laws
from pyrovae.testing.truth import fit_guide, log_evidence, small_vae

__all__ = ["Check", "Laws", "check", "fit_guide", "log_evidence", "small_vae"]
