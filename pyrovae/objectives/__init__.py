"""What is minimized: each objective is a `pyro.infer.ELBO` that also works in a bare `pyro.infer.SVI`."""

from pyrovae.objectives import schedules
from pyrovae.objectives.base import Objective, Terms
from pyrovae.objectives.dreg import DReG
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.iwae import IWAE
from pyrovae.objectives.stl import STL

__all__ = ["ELBO", "IWAE", "STL", "DReG", "Objective", "Terms", "schedules"]
