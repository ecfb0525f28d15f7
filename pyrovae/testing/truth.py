"""Models small enough that log p(x) is known: two latent dimensions, integrated over a grid."""

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

REACH = 4.0  # of the grid in t, where z = 2 sinh(t): |z| up to 54
POINTS = 241  # along each axis
STEEPER = 1.5  # than at initialization is the decoder, so that x says something of z
CHUNK = 2**22  # elements of x scored at once


def small_vae(
    *,
    likelihood: Likelihood | None = None,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    encoder: nn.Module | None = None,
    seed: int = 0,
) -> VAE:
    """Return a model of two latent dimensions around the given parts, whose posterior is correlated.

    Args:
        likelihood: Bernoulli of four elements if not given.
        prior: N(0, I) if not given.
        posterior: of two latent dimensions; DiagonalNormal if not given.
        encoder: a small MLP if not given.
        seed: of the weights.

    """
    likelihood = Bernoulli((4,)) if likelihood is None else likelihood
    posterior = DiagonalNormal(2) if posterior is None else posterior
    with forked_random(stream_seed(seed, "small vae")):
        mean = torch.full(likelihood.x_shape, _MEANS[likelihood.form])
        decoder = networks.MLPDecoder(
            2, likelihood.param_shape, hidden=(6,), initial_params=likelihood.initial_params(mean)
        )
        if encoder is None:
            encoder = networks.MLPEncoder(likelihood.x_shape, posterior.param_shape, hidden=(16,))
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(STEEPER)
    return VAE(
        prior=StandardNormal(2) if prior is None else prior,
        decoder=decoder,
        likelihood=likelihood,
        encoder=encoder,
        posterior=posterior,
    )


_MEANS = {"binary": 0.4, "unit": 0.4, "continuous": 0.3, "levels": 1.5, "counts": 2.5}


@torch.no_grad()
def log_evidence(vae: VAE, x: Tensor) -> Tensor:
    """Return log p(x) of a model with two latent dimensions, by quadrature.

    ``log sum_ij p(z_ij) p(x | z_ij) |dz_ij|``, a grid that is equidistant in t with z = 2 sinh(t), so that heavy tails
    are covered. Where densities are smooth its error falls faster than any power of the spacing.

    Args:
        vae: the model, in float64.
        x: ``(B, *x_shape)``.

    Returns:
        ``(B,)``, nats.

    Raises:
        ValueError: if the model has another number of latent dimensions.

    """
    if vae.prior.latent_dim != 2:
        raise ValueError(f"the grid has 2 latent dimensions, but the prior {vae.prior.latent_dim}; build it with 2")
    t = torch.linspace(-REACH, REACH, POINTS, dtype=x.dtype)
    log_width = torch.log(2 * t.cosh() * (t[1] - t[0]))
    z = torch.cartesian_prod(2 * t.sinh(), 2 * t.sinh())  # (POINTS ** 2, 2)
    log_volume = (log_width.unsqueeze(0) + log_width.unsqueeze(1)).flatten()
    log_prior = vae.prior().log_prob(z) + log_volume
    rows = max(1, CHUNK // (len(x) * torch.Size(vae.likelihood.param_shape).numel()))
    totals = [
        (vae.decode(part.unsqueeze(1)).log_prob(x) + weight.unsqueeze(1)).logsumexp(0)
        for part, weight in zip(z.split(rows), log_prior.split(rows), strict=True)
    ]
    return torch.stack(totals).logsumexp(0)


def fit_guide(vae: VAE, x: Tensor, *, steps: int = 300, learning_rate: float = 0.02) -> None:
    """Fit the encoder and what the posterior learns to given data, for a short while, with the model held fixed.

    Args:
        vae: changed in place. A prior that shares the encoder moves with it.
        x: ``(B, *x_shape)``, one minibatch.
        steps: of gradient descent on the IWAE bound of 8 particles, whose guides cover the posterior.
        learning_rate: at the start; it decays to a hundredth.

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
    fit(
        vae.model,
        vae.guide,
        x,
        objective=IWAE(num_particles=8),
        training=training,
        show_progress=False,
    )
    for parameter in held:
        parameter.requires_grad = True
