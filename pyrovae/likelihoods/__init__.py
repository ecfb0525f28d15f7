"""p(x | z): one likelihood a file, each a module whose ``forward`` turns the decoder's output into a distribution."""

from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.bernoulli import Bernoulli
from pyrovae.likelihoods.gaussian import Gaussian
from pyrovae.likelihoods.levels import LevelLikelihood

__all__ = ["Bernoulli", "Gaussian", "LevelLikelihood", "Likelihood"]
