"""The importance-weighted bound with the gradient that automatic differentiation gives."""

from __future__ import annotations

from pyrovae.objectives.importance import ImportanceObjective


class IWAE(ImportanceObjective):
    """Minus the IWAE bound L_K, with its reparametrized gradient.

    ``loss = -sum_b log (1/K) sum_k p(x_b, z_bk) / q(z_bk | x_b)``

    The gradient is unbiased. Its signal-to-noise ratio grows with K for the decoder but falls like 1 / sqrt(K) for the
    encoder: see `DReG`. At K = 1 it is the ELBO with a sampled KL.

    *Importance weighted autoencoders (Burda, Grosse, Salakhutdinov 2016)*, https://arxiv.org/abs/1509.00519;
    *Tighter variational bounds are not necessarily better (Rainforth et al. 2018)*, https://arxiv.org/abs/1802.04537

    Args:
        num_particles: K, draws of the guide per datum.

    Example:
        >>> pyrovae.fit(vae.model, vae.guide, data, objective=objectives.IWAE(num_particles=50))

    """

    stops_score = False
    reweights_path = False
