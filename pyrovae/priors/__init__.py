"""p(z): one prior a file, each a module whose ``forward`` returns a distribution."""

from pyrovae.priors.base import Prior
from pyrovae.priors.standard_normal import StandardNormal

__all__ = ["Prior", "StandardNormal"]
