"""Training losses: each is a `pyro.infer.ELBO`, for `pyrovae.fit` and for a bare `pyro.infer.SVI`.

ELBO                 minus the ELBO, with analytic KL terms, beta, free bits and annealing
IWAE, STL, DReG      minus the importance-weighted bound, with three estimators of its gradient
schedules            annealing: the weight of the KL by gradient step
Objective            base class; ``help(Objective)`` shows how to write your own
ImportanceWeighted   base class of losses that are functions of importance weights

To add an objective to the package, write one file and add one line below.
"""

from pyrovae.objectives import schedules
from pyrovae.objectives.base import Objective, Terms, scaled_sum, site_log_prob
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.importance_weighted import IWAE, STL, DReG, ImportanceWeighted
from pyrovae.programs.analytic_kl import closed_form_kl, latent_sites, observed_sites

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "DReG",
    "ImportanceWeighted",
    "Objective",
    "Terms",
    "closed_form_kl",
    "latent_sites",
    "observed_sites",
    "scaled_sum",
    "schedules",
    "site_log_prob",
]
