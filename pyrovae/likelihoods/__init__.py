"""p(x | z): one likelihood a file, each a module whose ``forward`` turns the decoder's output into a distribution."""

from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.bernoulli import Bernoulli
from pyrovae.likelihoods.categorical import Categorical
from pyrovae.likelihoods.continuous_bernoulli import ContinuousBernoulli
from pyrovae.likelihoods.discretized_logistic import DiscretizedLogistic
from pyrovae.likelihoods.discretized_logistic_mixture import DiscretizedLogisticMixture
from pyrovae.likelihoods.gaussian import Gaussian
from pyrovae.likelihoods.heteroscedastic_gaussian import HeteroscedasticGaussian
from pyrovae.likelihoods.laplace import Laplace
from pyrovae.likelihoods.levels import LevelLikelihood
from pyrovae.likelihoods.location import LocationLikelihood
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
