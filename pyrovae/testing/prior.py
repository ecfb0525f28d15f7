"""Conformance checks of a prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrovae.posteriors import DiagonalNormal, Posterior
from pyrovae.priors import Prior
from pyrovae.testing.common_checks import (
    BATCHES,
    NUM_DRAWS,
    check_bounds,
    check_description,
    check_draws,
    check_gradients,
    check_kl,
    check_total,
)
from pyrovae.testing.quadrature import plane
from pyrovae.testing.small_models import small_vae
from pyrovae.testing.stages import Stages, require
from pyrovae.vae import VAE


def prior_checks(prior: Prior) -> Stages:
    """Return the checks of a prior of two latent dimensions, by name."""
    return (
        {"shapes under any batch axes": lambda: _shapes(prior)},
        {
            "the density is normalized": lambda: check_total(prior(), *plane()),
            "draws agree with the density": lambda: check_draws(
                prior().expand((2, NUM_DRAWS)).sample(), [prior()] * 2, *plane()
            ),
            "gradients reach every parameter": lambda: _gradients(prior),
            "the closed-form KL is right": lambda: check_kl(DiagonalNormal(2)(_params()), prior()),
            "the description builds the same part": lambda: _described(prior),
        },
        {"bounds against quadrature": lambda: check_bounds(_model(prior))},
    )


def _params() -> Tensor:
    return 0.5 * torch.randn(2, 2)


def _model(prior: Prior) -> VAE:
    """Return a small model with the prior; a prior with an encoder and a posterior shares them with the model."""
    encoder, posterior = getattr(prior, "encoder", None), getattr(prior, "posterior", None)
    if isinstance(encoder, nn.Module) and isinstance(posterior, Posterior):
        return small_vae(prior=prior, encoder=encoder, posterior=posterior)
    return small_vae(prior=prior)


def _shapes(prior: Prior) -> str:
    p_z = prior()
    require(tuple(p_z.batch_shape) == (), f"batch_shape is {tuple(p_z.batch_shape)}, not ()")
    require(tuple(p_z.event_shape) == (2,), f"event_shape is {tuple(p_z.event_shape)}, not (2,)")
    for batch in BATCHES:
        expanded = p_z.expand(batch)
        z = expanded.sample()
        require(tuple(z.shape) == (*batch, 2), f"a draw has shape {tuple(z.shape)} for batch axes {batch}")
        shape = tuple(expanded.log_prob(z).shape)
        require(shape == batch, f"log_prob has shape {shape} for batch axes {batch}")
        require(torch.allclose(expanded.log_prob(z), p_z.log_prob(z)), f"log_prob changes when expanded to {batch}")
    return ", ".join(str(batch) for batch in BATCHES)


def _gradients(prior: Prior) -> str:
    z, weights = 1.5 * torch.randn(200, 2), torch.rand(200)
    return check_gradients(prior, lambda: weights * prior().log_prob(z))


def _described(prior: Prior) -> str:
    z = torch.randn(20, 2)
    return check_description(prior, lambda part: part().log_prob(z))
