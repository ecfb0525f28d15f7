"""Priors p(z): one per file, each a module whose ``forward`` returns a distribution.

`Prior` is the base class; ``help(Prior)`` shows how to write your own.
"""

from pyrovae.priors.base import Prior
from pyrovae.priors.diagonal_normal import DiagonalNormal
from pyrovae.priors.flow import Flow
from pyrovae.priors.mixture_of_gaussians import MixtureOfGaussians
from pyrovae.priors.standard_normal import StandardNormal
from pyrovae.priors.student_t import StudentT
from pyrovae.priors.vamp import Vamp

__all__ = ["DiagonalNormal", "Flow", "MixtureOfGaussians", "Prior", "StandardNormal", "StudentT", "Vamp"]
