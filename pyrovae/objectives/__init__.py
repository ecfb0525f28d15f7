"""What is minimized: each objective is a `pyro.infer.ELBO` that also works in a bare `pyro.infer.SVI`."""

from pyrovae.objectives.elbo import ELBO

__all__ = ["ELBO"]
