"""What `pyro.distributions` lacks, or is slow at."""

from pyrovae.distributions.bernoulli import BinaryBernoulli
from pyrovae.distributions.elements import Elements

__all__ = ["BinaryBernoulli", "Elements"]
