"""Evaluation of any Pyro model and guide: the ELBO, the IWAE bounds, and how reliable they are."""

from pyrovae.evaluation.checks import Checks
from pyrovae.evaluation.evaluator import EvaluationOptions, evaluate

__all__ = ["Checks", "EvaluationOptions", "evaluate"]
