"""Laws of a prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrovae.posteriors import DiagonalNormal, Posterior
from pyrovae.priors import Prior
from pyrovae.testing.laws import Stages, require
from pyrovae.testing.shared import (
    BATCHES,
    NUM_DRAWS,
    check_bounds,
    check_description,
    check_draws,
    check_gradients,
    check_kl,
    check_total,
    grid,
)
from pyrovae.testing.truth import small_vae
from pyrovae.vae import VAE


def prior_laws(prior: Prior) -> Stages:
    """Return the laws of a prior of two latent dimensions, by name."""
    return (
        {"shapes under any batch axes": lambda: _shapes(prior)},
        {
            "the density is normalized": lambda: check_total(prior(), *grid()),
            "draws agree with the density": lambda: check_draws(
                prior().expand((2, NUM_DRAWS)).sample(), [prior()] * 2, *grid()
            ),
            "gradients reach every parameter": lambda: _gradients(prior),
            "its closed-form KL is right": lambda: check_kl(DiagonalNormal(2)(_params()), prior()),
            "it is rebuilt from its description": lambda: _described(prior),
        },
        {"bounds against quadrature": lambda: check_bounds(_model(prior))},
    )


def _params() -> Tensor:
    return 0.5 * torch.randn(2, 2)


def _model(prior: Prior) -> VAE:
    """Return a small model with the prior; one that is made of an encoder and a posterior shares them."""
    encoder, posterior = getattr(prior, "encoder", None), getattr(prior, "posterior", None)
    if isinstance(encoder, nn.Module) and isinstance(posterior, Posterior):
        return small_vae(prior=prior, encoder=encoder, posterior=posterior)
    return small_vae(prior=prior)


def _shapes(prior: Prior) -> str:
    p_z = prior()
    require(tuple(p_z.batch_shape) == (), f"batch_shape is {tuple(p_z.batch_shape)}, not ()")
    require(tuple(p_z.event_shape) == (2,), f"event_shape is {tuple(p_z.event_shape)}, not (2,)")
    for batch in BATCHES:
        wide = p_z.expand(batch)
        z = wide.sample()
        require(tuple(z.shape) == (*batch, 2), f"a draw has shape {tuple(z.shape)} for batch axes {batch}")
        shape = tuple(wide.log_prob(z).shape)
        require(shape == batch, f"log_prob has shape {shape} for batch axes {batch}")
        require(torch.allclose(wide.log_prob(z), p_z.log_prob(z)), f"log_prob changes when it is expanded to {batch}")
    return ", ".join(str(batch) for batch in BATCHES)


def _gradients(prior: Prior) -> str:
    z, weights = 1.5 * torch.randn(200, 2), torch.rand(200)
    return check_gradients(prior, lambda: weights * prior().log_prob(z))


def _described(prior: Prior) -> str:
    z = torch.randn(20, 2)
    return check_description(prior, lambda part: part().log_prob(z))
