"""What `pyro.distributions` lacks, or is slow at."""

from pyrovae.distributions.bernoulli import BinaryBernoulli

__all__ = ["BinaryBernoulli"]
