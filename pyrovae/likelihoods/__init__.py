"""Likelihoods p(x | z): one per file, each a module from the decoder's output to a distribution.

`Likelihood` is the base class; ``help(Likelihood)`` shows how to write your own.
"""

from pyrovae.likelihoods.base import LevelLikelihood, Likelihood, LocationLikelihood
from pyrovae.likelihoods.bernoulli import Bernoulli
from pyrovae.likelihoods.categorical import Categorical
from pyrovae.likelihoods.continuous_bernoulli import ContinuousBernoulli
from pyrovae.likelihoods.discretized_logistic import DiscretizedLogistic
from pyrovae.likelihoods.discretized_logistic_mixture import DiscretizedLogisticMixture
from pyrovae.likelihoods.gaussian import Gaussian
from pyrovae.likelihoods.heteroscedastic_gaussian import HeteroscedasticGaussian
from pyrovae.likelihoods.laplace import Laplace
from pyrovae.likelihoods.negative_binomial import NegativeBinomial
from pyrovae.likelihoods.poisson import Poisson
from pyrovae.likelihoods.student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Gaussian",
    "HeteroscedasticGaussian",
    "Laplace",
    "LevelLikelihood",
    "Likelihood",
    "LocationLikelihood",
    "NegativeBinomial",
    "Poisson",
    "StudentT",
]
