"""The diagonal Gaussian of each datum by itself, moved until its ELBO no longer rises: what no encoder has to share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.scoring import FlatSpace
from pyrovae.scoring.layout import wide

START_DRAWS = 128  # of the guide, whose moments are the start
RATES = (0.3, 0.01)  # of Adam at both ends, in standard deviations of a mean and e-folds of a standard deviation a step
BETAS = (0.9, 0.99)
AVERAGED = 0.4  # of the steps, the last ones, whose mean is the result
STRAIGHT = 0.02  # deviation from a straight line, relative to its rise, that counts as none in float32


@dataclass(frozen=True)
class DiagonalGaussian:
    """A Gaussian with independent dimensions over the unconstrained latent vector u of each datum.

    Attributes:
        mean: ``(B, D)``.
        scale: standard deviations ``(B, D)``.

    """

    mean: Tensor
    scale: Tensor

    def draw(self, num_particles: int, dtype: torch.dtype) -> Tensor:
        """Draw u ``(K, B, D)``."""
        noise = torch.randn(num_particles, *self.mean.shape, dtype=dtype, device=self.mean.device)
        return (self.mean + self.scale * noise).to(dtype)

    def log_prob(self, u: Tensor) -> Tensor:
        """Return log q(u) ``(K, B)`` in nats."""
        standard = (u - self.mean) / self.scale
        return (-0.5 * standard**2 - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def start(space: FlatSpace) -> DiagonalGaussian:
    """Return the diagonal Gaussian with the moments of the guide's draws."""
    u = wide(space.draw(START_DRAWS)[0])
    mean = u.mean(0)
    return DiagonalGaussian(mean, torch.maximum(u.std(0), 1e-5 * mean.abs() + 1e-8))


def refine(
    space: FlatSpace, q: DiagonalGaussian, *, num_steps: int, num_pairs: int = 1
) -> tuple[DiagonalGaussian, Tensor]:
    """Maximize the ELBO of a diagonal Gaussian of each datum, all data together and each by itself.

    ``L(m, s) = E[log p(x, m + s e) - log q(m + s e)]`` with ``e ~ N(0, I)``

    Steps are Adam's, in units of the standard deviations s as they are at that step, with a rate that decays. Draws
    come in pairs e, -e, and the gradient follows them through log p - log q, so that its noise vanishes where q is the
    exact posterior. The result is the mean of the last steps' m and log s, never the step that looked best, which would
    be the one whose noise was largest. Where the gradient of a datum is not finite, that step counts as one without.

    *Sticking the landing (Roeder, Wu, Duvenaud 2017)*, https://arxiv.org/abs/1703.09194

    Args:
        space: the latent vectors of the data.
        q: where to start.
        num_steps: of Adam.
        num_pairs: pairs of draws of a step, for each datum.

    Returns:
        The Gaussian, and what each step estimated of the ELBO of each datum ``(num_steps, B)``, nats.

    """
    dtype = space.draw(1)[0].dtype
    place = torch.stack([q.mean, q.scale.log()])  # (2, B, D)
    first, second = torch.zeros_like(place), torch.zeros_like(place)
    kept, values = torch.zeros_like(place), []
    num_kept = max(1, round(AVERAGED * num_steps))
    for step in range(1, num_steps + 1):
        here = DiagonalGaussian(place[0], place[1].exp())
        gradient, value = _gradient(space, here, num_pairs, dtype)
        values.append(value)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        move = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + 1e-8)
        rate = RATES[0] * (RATES[1] / RATES[0]) ** ((step - 1) / num_steps)
        place = place + rate * move * torch.stack([here.scale, torch.ones_like(here.scale)])
        if step > num_steps - num_kept:
            kept += place
    mean, log_scale = kept / num_kept
    return DiagonalGaussian(mean, log_scale.exp()), torch.stack(values)


def _gradient(space: FlatSpace, q: DiagonalGaussian, num_pairs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradient of the ELBO by m / s and log s ``(2, B, D)``, and an estimate of the ELBO ``(B,)``."""
    noise = wide(torch.randn(num_pairs, *q.mean.shape, dtype=dtype, device=q.mean.device))
    noise = torch.cat([noise, -noise])
    u = (q.mean + q.scale * noise).to(dtype).requires_grad_()
    with torch.enable_grad():
        log_joint = space.log_joint(u)
        (slope,) = torch.autograd.grad(log_joint.sum(), u)
    along = q.scale * wide(slope) + noise  # the slope of log p - log q at u, in units of s
    gradient = torch.stack([along.mean(0), (noise * along).mean(0)])
    finite = gradient.isfinite().all(0).all(-1, keepdim=True)
    return torch.where(finite, gradient, 0.0), (log_joint.detach() - q.log_prob(wide(u.detach()))).mean(0)


def is_diagonal_gaussian(space: FlatSpace) -> bool | None:
    """Tell whether the guide is a diagonal Gaussian over u: each slope of log q is then a straight line in its own u_d.

    None where log q(u | x) or its slope cannot be computed for u that were not drawn this moment.
    """
    u = space.draw(8)[0].requires_grad_()
    try:
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(space.log_guide(u).sum(), u)
    except (NotImplementedError, RuntimeError, ValueError):
        return None
    u, slope = (wide(value.detach()) - wide(value.detach()).mean(0) for value in (u, slope))
    residual = slope - u * (u * slope).sum(0) / (u * u).sum(0)
    return bool((residual.std(0) <= STRAIGHT * slope.std(0)).all())
