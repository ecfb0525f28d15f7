"""Small models whose log p(x) is known, and a fit of their guides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyrovae import networks
from pyrovae.likelihoods import Bernoulli, Likelihood
from pyrovae.objectives import IWAE
from pyrovae.posteriors import DiagonalNormal, Posterior
from pyrovae.priors import Prior, StandardNormal
from pyrovae.runtime.annotations import checked
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.training import Training, fit
from pyrovae.vae import VAE

WEIGHT_FACTOR = 1.5  # factor of the decoder's initial weights, so that x depends on z
MEANS = {"binary": 0.4, "unit": 0.4, "continuous": 0.3, "levels": 1.5, "counts": 2.5}  # of x, by form of data


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Probabilistic principal components: z ~ N(0, I), x = W z + b + s e with e ~ N(0, I).

    ``log p(x) = log N(x; b, W W^T + s^2 I)``, and ``q(z | x) = N(M^-1 W^T (x - b), s^2 M^-1)`` with
    ``M = W^T W + s^2 I``, which is diagonal where the columns of W are orthogonal.

    *Probabilistic principal component analysis (Tipping, Bishop 1999)*, https://doi.org/10.1111/1467-9868.00196

    Args:
        weight: W, ``(P, D)``.
        bias: b, ``(P,)``.
        scale: s, standard deviation of the noise.

    """

    weight: Tensor
    bias: Tensor
    scale: float

    def sample(self, num_data: int, *, seed: int = 0) -> Tensor:
        """Draw data ``(num_data, P)``."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.weight.shape[1], generator=generator, dtype=self.weight.dtype)
        noise = torch.randn(num_data, self.weight.shape[0], generator=generator, dtype=self.weight.dtype)
        return z @ self.weight.T + self.bias + self.scale * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of data ``(N, P)``: ``(N,)``, nats."""
        noise = self.scale**2 * torch.eye(len(self.bias), dtype=self.weight.dtype)
        return MultivariateNormal(self.bias, self.weight @ self.weight.T + noise).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return p(z | x) of data ``(N, P)``, of event shape ``(D,)``."""
        precision = self.weight.T @ self.weight + self.scale**2 * torch.eye(
            self.weight.shape[1], dtype=self.weight.dtype
        )
        covariance = torch.linalg.inv(precision)
        mean = (x - self.bias) @ self.weight @ covariance
        return MultivariateNormal(mean, self.scale**2 * covariance)


@checked
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
        decoder = networks.MLPDecoder(2, likelihood.param_shape, hidden=(6,))
        decoder.start(likelihood.initial_params(mean))
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


@checked
def fit_guide(vae: VAE, x: Tensor, *, steps: int = 300) -> None:
    """Fit the parameters of encoder and posterior to one minibatch, with the model held fixed.

    Args:
        vae: the model, changed in place; a prior that shares the encoder changes with it.
        x: the minibatch, ``(B, *x_shape)``.
        steps: gradient steps on the IWAE bound of 8 particles, whose optimal guide covers the posterior.

    """
    moving = {id(p) for module in (vae.encoder, vae.posterior) for p in module.parameters()}
    held = [p for p in vae.parameters() if id(p) not in moving and p.requires_grad]
    for parameter in held:
        parameter.requires_grad = False
    training = Training(epochs=steps, batch_size=len(x), learning_rate=0.02, final_learning_rate=2e-4, device="cpu")
    fit(vae.model, vae.guide, x, objective=IWAE(num_particles=8), training=training, show_progress=False)
    for parameter in held:
        parameter.requires_grad = True
