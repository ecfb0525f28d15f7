"""Small models with two latent dimensions, and a fit of their guides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrovae import networks
from pyrovae.likelihoods import Bernoulli, Likelihood
from pyrovae.objectives import IWAE
from pyrovae.posteriors import DiagonalNormal, Posterior
from pyrovae.priors import Prior, StandardNormal
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.training import Training, fit
from pyrovae.vae import VAE

WEIGHT_FACTOR = 1.5  # factor of the decoder's initial weights, so that x depends on z
MEANS = {"binary": 0.4, "unit": 0.4, "continuous": 0.3, "levels": 1.5, "counts": 2.5}  # of x, by form of data


def small_vae(
    *,
    likelihood: Likelihood | None = None,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    encoder: nn.Module | None = None,
    seed: int = 0,
) -> VAE:
    """Return a VAE with two latent dimensions and the given parts, whose exact posterior is correlated.

    Args:
        likelihood: p(x | z); Bernoulli of four elements by default.
        prior: p(z); N(0, I) by default.
        posterior: q(z | x); DiagonalNormal by default.
        encoder: network from x; a small MLP by default.
        seed: seed of the initial weights.

    """
    likelihood = Bernoulli((4,)) if likelihood is None else likelihood
    posterior = DiagonalNormal(2) if posterior is None else posterior
    with forked_random(stream_seed(seed, "small vae")):
        mean = torch.full(likelihood.x_shape, MEANS[likelihood.form])
        decoder = networks.MLPDecoder(
            2, likelihood.param_shape, hidden=(6,), initial_params=likelihood.initial_params(mean)
        )
        if encoder is None:
            encoder = networks.MLPEncoder(likelihood.x_shape, posterior.param_shape, hidden=(16,))
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(WEIGHT_FACTOR)
    return VAE(
        prior=StandardNormal(2) if prior is None else prior,
        decoder=decoder,
        likelihood=likelihood,
        encoder=encoder,
        posterior=posterior,
    )


def fit_guide(vae: VAE, x: Tensor, *, steps: int = 300, learning_rate: float = 0.02) -> None:
    """Fit the parameters of encoder and posterior to one minibatch, with the model held fixed.

    Args:
        vae: the model, changed in place; a prior that shares the encoder changes with it.
        x: the minibatch, ``(B, *x_shape)``.
        steps: gradient steps on the IWAE bound of 8 particles, whose optimal guide covers the posterior.
        learning_rate: initial learning rate; it decays to a hundredth.

    """
    moving = {id(p) for module in (vae.encoder, vae.posterior) for p in module.parameters()}
    held = [p for p in vae.parameters() if id(p) not in moving and p.requires_grad]
    for parameter in held:
        parameter.requires_grad = False
    training = Training(
        epochs=steps,
        batch_size=len(x),
        learning_rate=learning_rate,
        final_learning_rate=learning_rate / 100,
        device="cpu",
    )
    fit(vae.model, vae.guide, x, objective=IWAE(num_particles=8), training=training, show_progress=False)
    for parameter in held:
        parameter.requires_grad = True
