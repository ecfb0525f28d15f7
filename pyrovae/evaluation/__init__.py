"""Evaluation of any Pyro model/guide pair: its ELBO beside its IWAE bounds, and how far these can be trusted."""

from pyrovae.evaluation.checks import Checks
from pyrovae.evaluation.evaluator import evaluate

__all__ = ["Checks", "evaluate"]
