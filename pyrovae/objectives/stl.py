"""The importance-weighted bound with the gradient that sticks the landing."""

from __future__ import annotations

from pyrovae.objectives.importance import ImportanceObjective


class STL(ImportanceObjective):
    """Minus the IWAE bound L_K, without the score of the guide in its gradient.

    ``d log w / d phi = (d log w / d z) (d z / d phi)``, ``log w = log p(x, z) - log q(z | x)``

    The part that is left out, d log q(z | x) / d phi at fixed z, has mean zero at K = 1: the gradient of the ELBO is
    unbiased, and its variance vanishes where the guide is the exact posterior. For K > 1 the weights depend on z too,
    and that mean is not zero: the gradient of the encoder is then *biased*, more so the larger K; use `DReG`. The
    gradient of the decoder is that of `IWAE` for every K. A guide that cannot state its density at given z cheaply,
    such as ``posteriors.IAF``, is slow here: its draws are inverted.

    *Sticking the landing: Simple, lower-variance gradient estimators for variational inference (Roeder, Wu, Duvenaud
    2017)*, https://arxiv.org/abs/1703.09194

    Args:
        num_particles: K, draws of the guide per datum.

    Example:
        >>> pyrovae.fit(vae.model, vae.guide, data, objective=objectives.STL())

    """

    stops_score = True
    reweights_path = False

    def __init__(self, *, num_particles: int = 1) -> None:
        super().__init__(num_particles=num_particles)
