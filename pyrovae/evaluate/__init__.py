"""Evaluation of any Pyro model/guide pair: its ELBO beside its IWAE bounds, and how far these can be trusted."""

from pyrovae.evaluate.checks import Checks
from pyrovae.evaluate.evaluation import evaluate

__all__ = ["Checks", "evaluate"]
