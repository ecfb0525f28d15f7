"""Laws of a posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyrovae.posteriors import Posterior
from pyrovae.priors import StandardNormal
from pyrovae.testing.laws import require
from pyrovae.testing.prior import grid
from pyrovae.testing.shared import BATCHES, check_bounds, check_description, check_gradients, check_mean
from pyrovae.testing.truth import small_vae

NUM_DRAWS = 20_000


def posterior_laws(posterior: Posterior) -> Mapping[str, Callable[[], str]]:
    """Return the laws of a posterior of two latent dimensions, by name."""
    return {
        "the density is normalized": lambda: _normalized(posterior),
        "shapes under any batch axes": lambda: _shapes(posterior),
        "draws agree with the density": lambda: _draws(posterior),
        "its density at its own draws": lambda: _own_draws(posterior),
        "gradients reach every parameter": lambda: _gradients(posterior),
        "its closed-form KL is right": lambda: _kl(posterior),
        "it is rebuilt from its description": lambda: check_description(posterior),
        "bounds against quadrature": lambda: check_bounds(small_vae(posterior=posterior)),
    }


def _params(posterior: Posterior, *batch: int) -> Tensor:
    return 0.5 * torch.randn(*batch, *posterior.param_shape)


def _normalized(posterior: Posterior) -> str:
    z, area = grid()
    total = (posterior(_params(posterior)).log_prob(z).exp() * area).sum().item()
    return require(abs(total - 1) < 1e-3, f"it integrates to {total:.6f}")


def _shapes(posterior: Posterior) -> str:
    for batch in BATCHES:
        q_z = posterior(_params(posterior, *batch))
        require(tuple(q_z.batch_shape) == batch, f"batch_shape is {tuple(q_z.batch_shape)}, not {batch}")
        require(tuple(q_z.event_shape) == (2,), f"event_shape is {tuple(q_z.event_shape)}, not (2,)")
        z = q_z.expand((4, *batch)).rsample()
        require(tuple(z.shape) == (4, *batch, 2), f"four particles have shape {tuple(z.shape)} for batch axes {batch}")
        shape = tuple(q_z.log_prob(z).shape)
        require(shape == (4, *batch), f"log_prob of four particles has shape {shape} for batch axes {batch}")
        for what in ("mean", "stddev"):
            shape = tuple(getattr(q_z, what).shape)
            require(shape == (*batch, 2), f"{what} has shape {shape} for batch axes {batch}")
    return ", ".join(str(batch) for batch in BATCHES)


def _draws(posterior: Posterior) -> str:
    q_z = posterior(_params(posterior))
    z, area = grid()
    weights = q_z.log_prob(z).exp() * area
    draws = q_z.sample((NUM_DRAWS,))
    return check_mean(torch.tanh(torch.cat([draws, 2 * draws], -1)), weights @ torch.tanh(torch.cat([z, 2 * z], -1)),
                      "moments of tanh(z)")  # fmt: skip


def _own_draws(posterior: Posterior) -> str:
    q_z = posterior(_params(posterior, 50))
    z = q_z.rsample()
    off = (q_z.log_prob(z) - q_z.log_prob(z.detach().clone())).abs().max().item()
    return require(off < 1e-8, f"differs by {off:.2g} nats at the same values given anew")


def _gradients(posterior: Posterior) -> str:
    params = _params(posterior, 50).requires_grad_()
    q_z = posterior(params)
    z = q_z.rsample()
    require(z.requires_grad, "rsample gives draws without gradient")
    weights = torch.rand(50)
    return check_gradients(posterior, weights * ((z**3).sum(-1) + q_z.log_prob(z)), [params])


def _kl(posterior: Posterior) -> str:
    q_z, p_z = posterior(_params(posterior)), StandardNormal(2)()
    try:
        kl = torch.distributions.kl_divergence(q_z, p_z)
    except NotImplementedError:
        return "none against N(0, I): estimated by Monte Carlo"
    z, area = grid()
    log_q = q_z.log_prob(z)
    inside = log_q > -300
    expected = ((log_q - p_z.log_prob(z)) * log_q.exp() * area)[inside].sum()
    off = (kl - expected).abs().item()
    return require(off < 1e-3 * (1 + expected.item()), f"{kl.item():.6f}, by quadrature {expected.item():.6f}")
