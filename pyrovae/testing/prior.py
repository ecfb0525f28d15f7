"""Laws of a prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.testing.laws import require
from pyrovae.testing.shared import BATCHES, check_bounds, check_description, check_gradients, check_mean
from pyrovae.testing.truth import small_vae
from pyrovae.vae import VAE

NUM_DRAWS = 20_000


def prior_laws(prior: Prior) -> Mapping[str, Callable[[], str]]:
    """Return the laws of a prior of two latent dimensions, by name."""
    return {
        "the density is normalized": lambda: _normalized(prior),
        "shapes under any batch axes": lambda: _shapes(prior),
        "draws agree with the density": lambda: _draws(prior),
        "gradients reach every parameter": lambda: _gradients(prior),
        "it is rebuilt from its description": lambda: check_description(prior),
        "bounds against quadrature": lambda: check_bounds(_model(prior)),
    }


def grid() -> tuple[Tensor, Tensor]:
    """Return points of the plane ``(N, 2)`` and their areas ``(N,)``, equidistant in t with z = 2 sinh(t)."""
    t = torch.linspace(-8, 8, 801)
    width = 2 * t.cosh() * (t[1] - t[0])
    return torch.cartesian_prod(2 * t.sinh(), 2 * t.sinh()), torch.cartesian_prod(width, width).prod(-1)


def _model(prior: Prior) -> VAE:
    """Return a small model with the prior; one that is made of an encoder and a posterior shares them."""
    encoder, posterior = getattr(prior, "encoder", None), getattr(prior, "posterior", None)
    if isinstance(encoder, nn.Module) and isinstance(posterior, Posterior):
        return small_vae(prior=prior, encoder=encoder, posterior=posterior)
    return small_vae(prior=prior)


def _normalized(prior: Prior) -> str:
    z, area = grid()
    total = (prior().log_prob(z).exp() * area).sum().item()
    return require(abs(total - 1) < 1e-3, f"it integrates to {total:.6f}")


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


def _draws(prior: Prior) -> str:
    z, area = grid()
    weights = prior().log_prob(z).exp() * area
    draws = prior().sample((NUM_DRAWS,))
    bounded = [torch.tanh(draws), torch.tanh(draws) ** 2, torch.tanh(draws).prod(-1, keepdim=True)]
    exact = [torch.tanh(z), torch.tanh(z) ** 2, torch.tanh(z).prod(-1, keepdim=True)]
    expected = weights @ torch.cat(exact, -1)
    return check_mean(torch.cat(bounded, -1), expected, "moments of tanh(z)")


def _gradients(prior: Prior) -> str:
    z = 1.5 * torch.randn(200, 2)
    return check_gradients(prior, torch.rand(200) * prior().log_prob(z))
