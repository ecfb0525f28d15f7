"""Distributions that `pyro.distributions` lacks, computes inaccurately or computes slowly.

BinaryBernoulli      Bernoulli with a faster sum over the elements of a datum
ContinuousBernoulli  accurate at every logit; torch's is off by 0.9 nats at a logit of 40
DiscretizedLogistic  not in Pyro
LevelCategorical     Categorical with a mean, and half the memory in training
LogScaleNormal       Normal by its log-scale, without the logarithm of an exponential
LowRankNormal        LowRankMultivariateNormal, accurate in float32
NegativeBinomial     by mean and total count, accurate for large counts in float32
NormalFlow           TransformedDistribution of a Normal whose cache does not go stale
NormalMixture        MixtureSameFamily of Normals without a tensor of all values, components and dimensions
Poisson              by its log-rate, accurate for large counts in float32
StudentT             with gamma functions of the degrees of freedom computed once
TriangularNormal     MultivariateNormal whose draws share one Cholesky factor
Event, Elements      Independent without copies under plates, and with an error that names the remedy
"""

from pyrovae.distributions.bernoulli import BinaryBernoulli
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.counts import NegativeBinomial, Poisson
from pyrovae.distributions.discretized_logistic import DiscretizedLogistic
from pyrovae.distributions.elements import Elements, Event
from pyrovae.distributions.level_categorical import LevelCategorical
from pyrovae.distributions.multivariate_normal import LowRankNormal, TriangularNormal
from pyrovae.distributions.normal import LogScaleNormal
from pyrovae.distributions.normal_flow import FlowLayer, NormalFlow
from pyrovae.distributions.normal_mixture import NormalMixture
from pyrovae.distributions.student_t import StudentT

__all__ = [
    "BinaryBernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Elements",
    "Event",
    "FlowLayer",
    "LevelCategorical",
    "LogScaleNormal",
    "LowRankNormal",
    "NegativeBinomial",
    "NormalFlow",
    "NormalMixture",
    "Poisson",
    "StudentT",
    "TriangularNormal",
]
