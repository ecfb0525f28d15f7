"""Evaluation of any Pyro model/guide pair: its ELBO beside its IWAE bounds, with standard errors."""

from pyrovae.evaluate.evaluation import evaluate

__all__ = ["evaluate"]
