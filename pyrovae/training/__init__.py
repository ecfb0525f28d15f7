"""Fitting a pair, and the folder in which a run is kept."""

from pyrovae.training.checkpoint import Run, load, load_weights
from pyrovae.training.fit import fit
from pyrovae.training.loop import DivergenceError
from pyrovae.training.options import Training

__all__ = ["DivergenceError", "Run", "Training", "fit", "load", "load_weights"]
