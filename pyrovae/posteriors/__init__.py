"""Posteriors q(z | x): one per file, each a module from the encoder's output to a distribution.

`Posterior` is the base class; ``help(Posterior)`` shows how to write your own.
"""

from pyrovae.posteriors.base import Posterior
from pyrovae.posteriors.diagonal_normal import DiagonalNormal
from pyrovae.posteriors.full_normal import FullNormal
from pyrovae.posteriors.iaf import IAF
from pyrovae.posteriors.low_rank_normal import LowRankNormal

__all__ = ["IAF", "DiagonalNormal", "FullNormal", "LowRankNormal", "Posterior"]
