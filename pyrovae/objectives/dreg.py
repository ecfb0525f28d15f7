"""The importance-weighted bound with the doubly reparametrized gradient."""

from __future__ import annotations

from pyrovae.objectives.importance import ImportanceObjective


class DReG(ImportanceObjective):
    """Minus the IWAE bound L_K, with the doubly reparametrized gradient for the guide.

    ``encoder: sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi)``,
    ``decoder: sum_k v_k d log w_k / d theta``, ``v_k = w_k / sum_j w_j``

    The gradient is unbiased. Its signal-to-noise ratio for the encoder grows with K where that of `IWAE` falls. What
    the model itself knows of the encoder, as under ``priors.Vamp``, is a parameter of the model: it gets v_k there, and
    v_k^2 on its way through z. A guide that cannot state its density at given z cheaply, such as ``posteriors.IAF``, is
    slow here: its draws are inverted. With several latent sites the guide is run three times, on the same draws; it
    should not draw anything else, such as dropout masks.

    *Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker, Lawson, Gu, Maddison 2019)*,
    https://arxiv.org/abs/1810.04152

    Args:
        num_particles: K, draws of the guide per datum.

    Example:
        >>> pyrovae.fit(vae.model, vae.guide, data, objective=objectives.DReG(num_particles=50))

    """

    stops_score = True
    reweights_path = True
