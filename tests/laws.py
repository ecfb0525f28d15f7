"""What priors and posteriors are checked by: quadrature over all z, and gradients."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn


def grid(latent_dim: int, *, reach: float = 8.0, num: int = 0) -> tuple[Tensor, Tensor]:
    """Return points ``(N, latent_dim)`` and their weights: z = sinh(t) of an even grid, which reaches far."""
    t = torch.linspace(-reach, reach, num or (4001 if latent_dim == 1 else 481))
    step = t[1] - t[0]
    points = torch.cartesian_prod(*[t.sinh()] * latent_dim).reshape(-1, latent_dim)
    weights = torch.cartesian_prod(*[t.cosh() * step] * latent_dim).reshape(-1, latent_dim)
    return points, weights.prod(-1)


def features(z: Tensor) -> Tensor:
    """Return bounded first and second moments, ``(N, F)``; heavy tails have no others."""
    inside = z.tanh()
    return torch.cat([inside, inside**2, inside.prod(-1, keepdim=True)], -1)


def check_moments(fn: TorchDistribution, latent_dim: int) -> None:
    """Check that a density integrates to one, and that draws have the moments that it gives."""
    z, weight = grid(latent_dim)
    with torch.no_grad():
        mass = fn.log_prob(z).exp() * weight
        assert abs(mass.sum().item() - 1) < 1e-8
        expected = mass @ features(z)
        drawn = features(fn.sample((40_000,)))
        error = (drawn.mean(0) - expected).abs()
        assert (error < 5 * drawn.std(0) / len(drawn) ** 0.5).all()


def check_gradients(module: nn.Module) -> None:
    """Check that every element of every parameter has a gradient, but for weights that a mask takes out."""
    for key, parameter in module.named_parameters():
        owner = module.get_submodule(key.rpartition(".")[0])
        mask = getattr(owner, "mask", None) if key.endswith("weight") else None
        expected = torch.ones_like(parameter) if mask is None else mask
        assert parameter.grad is not None, key
        assert torch.equal(parameter.grad != 0, expected != 0), key
