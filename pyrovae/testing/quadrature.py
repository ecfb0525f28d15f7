"""Numerical integration over the supports of densities, and log p(x) of small models.

A rule is points ``(N,)`` and weights ``(N,)``: ``sum_n w_n f(x_n)`` approximates the integral of f. The points
are equidistant in a variable t of which x is a smooth function, so that the trapezoidal rule converges exponentially.

*Double exponential formulas for numerical integration (Takahasi, Mori 1974)*, https://doi.org/10.2977/prims/1195192451
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.vae import VAE

Rule = tuple[Tensor, Tensor]

CHUNK = 2**22  # elements of x scored at once


def real_line(
    num_points: int, *, reach: float = 4.0, center: float = 0.0, scale: float = 1.0, dtype: torch.dtype | None = None
) -> Rule:
    """Return a sinh-sinh rule for the real line: ``x = center + scale sinh(pi / 2 sinh(t))``, ``|t| <= reach``.

    Points are dense near the center and extend to 2e18 times the scale at a reach of 4, for heavy tails such as Cauchy.
    """
    t = torch.linspace(-reach, reach, num_points, dtype=dtype)
    u = math.pi / 2 * t.sinh()
    return center + scale * u.sinh(), scale * u.cosh() * math.pi / 2 * t.cosh() * (t[1] - t[0])


def unit_interval(num_points: int) -> Rule:
    """Return a tanh-sinh rule for densities on [0, 1]: ``x = 1 / (1 + exp(-pi sinh(t)))``, ``|t| <= 4.6``.

    Points crowd towards both ends, so that densities that are infinite there, such as Beta(0.2, 3), are integrated: to
    1e-8 at 0. Floating-point numbers end 1e-16 below 1, and a density that is infinite at 1 is cut off there.
    """
    t = torch.linspace(-4.6, 4.6, num_points)
    exponent = math.pi * t.sinh()
    x, rest = exponent.sigmoid(), (-exponent).sigmoid()
    weights = math.pi * t.cosh() * x * rest * (t[1] - t[0])
    return x.clamp(max=1 - torch.finfo(x.dtype).eps / 2), weights


def integers(num_points: int) -> Rule:
    """Return 0, 1, ..., num_points - 1 with weights of 1, for probabilities."""
    return torch.arange(float(num_points)), torch.ones(num_points)


def product_rule(rule: Rule, shape: tuple[int, ...]) -> Rule:
    """Return the rule of points ``(N, *shape)`` whose elements each follow a rule, with weights ``(N,)``."""
    points, weights = (torch.cartesian_prod(*[values] * math.prod(shape)) for values in rule)
    return points.reshape(-1, *shape), weights.reshape(len(points), -1).prod(-1)


@torch.no_grad()
def log_evidence(vae: VAE, x: Tensor) -> Tensor:
    """Return log p(x) of a model with two latent dimensions, by quadrature.

    ``log sum_ij p(z_ij) p(x | z_ij) w_ij``, with z up to 80 in each dimension

    Args:
        vae: the model, in float64.
        x: ``(B, *x_shape)``.

    Returns:
        ``(B,)``, nats.

    Raises:
        ValueError: if the model has another number of latent dimensions.

    """
    if vae.prior.latent_dim != 2:
        raise ValueError(f"the model must have 2 latent dimensions, got {vae.prior.latent_dim}; build its prior with 2")
    z, weights = product_rule(real_line(241, reach=1.75, scale=2.0, dtype=x.dtype), (2,))
    log_prior = vae.prior().log_prob(z) + weights.log()
    rows = max(1, CHUNK // (len(x) * torch.Size(vae.likelihood.param_shape).numel()))
    totals = [
        (vae.decode(part.unsqueeze(1)).log_prob(x) + weight.unsqueeze(1)).logsumexp(0)
        for part, weight in zip(z.split(rows), log_prior.split(rows), strict=True)
    ]
    return torch.stack(totals).logsumexp(0)
