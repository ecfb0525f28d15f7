"""q(z | x): one posterior a file, each a module whose ``forward`` turns the encoder's output into a distribution."""

from pyrovae.posteriors.base import Posterior
from pyrovae.posteriors.diagonal_normal import DiagonalNormal

__all__ = ["DiagonalNormal", "Posterior"]
