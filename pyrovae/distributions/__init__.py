"""What `pyro.distributions` lacks, is wrong at, or is slow at."""

from pyrovae.distributions import kl as kl
from pyrovae.distributions.bernoulli import BinaryBernoulli
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.discretized_logistic import DiscretizedLogistic
from pyrovae.distributions.elements import Elements, Event
from pyrovae.distributions.level_categorical import LevelCategorical
from pyrovae.distributions.log_scale_normal import LogScaleNormal
from pyrovae.distributions.low_rank_normal import LowRankNormal
from pyrovae.distributions.negative_binomial import NegativeBinomial
from pyrovae.distributions.normal_flow import FlowLayer, NormalFlow
from pyrovae.distributions.normal_mixture import NormalMixture
from pyrovae.distributions.poisson import Poisson
from pyrovae.distributions.student_t import StudentT
from pyrovae.distributions.triangular_normal import TriangularNormal

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
