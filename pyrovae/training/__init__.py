"""Training of a model and guide, a step for custom loops, and run folders."""

from pyrovae.training.captured_step import CapturedStep, StepTerms, capture
from pyrovae.training.checkpoint import Run, load, load_weights
from pyrovae.training.config import Training
from pyrovae.training.fitting import fit
from pyrovae.training.loop import DivergenceError

__all__ = [
    "CapturedStep",
    "DivergenceError",
    "Run",
    "StepTerms",
    "Training",
    "capture",
    "fit",
    "load",
    "load_weights",
]
