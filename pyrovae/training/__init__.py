"""Training of a model and guide, a step for custom loops, and run folders."""

from pyrovae.training.checkpoint import Run, load, load_weights
from pyrovae.training.config import Training
from pyrovae.training.custom_loop import CapturedStep, StepTerms, capture
from pyrovae.training.fitting import FitOptions, fit
from pyrovae.training.loop import DivergenceError

__all__ = [
    "CapturedStep",
    "DivergenceError",
    "FitOptions",
    "Run",
    "StepTerms",
    "Training",
    "capture",
    "fit",
    "load",
    "load_weights",
]
