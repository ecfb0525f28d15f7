"""q(z | x): one posterior a file, each a module whose ``forward`` turns the encoder's output into a distribution."""

from pyrovae.posteriors.base import Posterior
from pyrovae.posteriors.diagonal_normal import DiagonalNormal
from pyrovae.posteriors.full_normal import FullNormal
from pyrovae.posteriors.iaf import IAF
from pyrovae.posteriors.low_rank_normal import LowRankNormal

__all__ = ["IAF", "DiagonalNormal", "FullNormal", "LowRankNormal", "Posterior"]
