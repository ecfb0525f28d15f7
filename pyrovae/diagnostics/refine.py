"""A diagonal Gaussian for each datum, optimized without an encoder until its ELBO stops rising."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.importance import UnconstrainedLatents
from pyrovae.programs.layout import to_float64

START_DRAWS = 128  # draws of the guide whose moments are the start
RATES = (0.3, 0.01)  # first and last rate of Adam: standard deviations of a mean, e-folds of a standard deviation
BETAS = (0.9, 0.99)
AVERAGED = 0.4  # share of the steps, the last ones, whose mean is the result
PRIOR_DRAWS = 128  # draws of the prior from which further starts are chosen
MIN_GAIN = 0.01  # nats by which another start must exceed the guide's to replace it


@dataclass(frozen=True)
class DiagonalGaussian:
    """A Gaussian with independent dimensions over the unconstrained latent vector u of each datum.

    Attributes:
        mean: ``(B, D)``, or ``(S, B, D)`` of S Gaussians for each datum.
        scale: standard deviations, of the same shape as the mean.

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


def start(space: UnconstrainedLatents) -> DiagonalGaussian:
    """Return the diagonal Gaussian with the moments of the guide's draws."""
    u = to_float64(space.draw(START_DRAWS)[0])
    mean = u.mean(0)
    return DiagonalGaussian(mean, torch.maximum(u.std(0), 1e-5 * mean.abs() + 1e-8))


def further_starts(space: UnconstrainedLatents, q: DiagonalGaussian, num_starts: int) -> DiagonalGaussian:
    """Return S starts ``(S, B, D)``: q, and Gaussians of its scale around draws of the prior.

    Each is drawn with a probability in proportion to ``p(x | u)`` and to the squared distance from the nearest earlier
    start. So the starts lie on different modes of a posterior that has several, as far as 128 draws reach. If the
    prior cannot be sampled, q is the only start.

    *k-means++: the advantages of careful seeding (Arthur, Vassilvitskii 2007)*, https://dl.acm.org/doi/10.5555/1283383.1283494

    Args:
        space: unconstrained latent variables of B data.
        q: the first start, ``(B, D)``.
        num_starts: S.

    """
    means = [q.mean]
    try:
        u = space.draw_prior(PRIOR_DRAWS)  # (M, B, D)
        u = torch.where(u.isfinite().all(-1, keepdim=True), u, q.mean.to(u))  # outside the support of the guide
        log_weights = space.log_joint_terms(u)[1]  # (M, B)
    except NotImplementedError:
        num_starts = 1
    for _ in range(num_starts - 1):
        distance = torch.stack([(to_float64(u) - mean).square().sum(-1) for mean in means]).amin(0)
        noise = -torch.empty_like(log_weights).exponential_().log()  # Gumbel's
        chosen = (log_weights + distance.log() + noise).nan_to_num(-math.inf).argmax(0)  # (B,)
        means.append(to_float64(u).gather(0, chosen[None, :, None].expand(1, -1, u.shape[-1]))[0])
    mean = torch.stack(means)
    return DiagonalGaussian(mean, q.scale.expand_as(mean))


def best_of(q: DiagonalGaussian, history: Tensor) -> tuple[DiagonalGaussian, Tensor, Tensor]:
    """Return the best of S Gaussians of each datum, its history ``(num_steps, B)``, and where it lies apart ``(B,)``.

    A Gaussian replaces the first one if it is better by 0.01 nats and three standard errors over the last steps, whose
    draws all Gaussians share. It lies apart if its mean is more than three standard deviations from the first one's.
    ``q`` and ``history`` are results of `refine`.
    """
    last = history[-max(2, round(AVERAGED * len(history))) :]
    gain = last - last[:, :1]
    mean, error = gain.mean(0), gain.std(0) / math.sqrt(len(gain))
    clear = (mean > 3 * error) & (mean > MIN_GAIN)  # never where an error is NaN
    best = torch.where(clear, mean, 0.0).argmax(0)  # (B,), the first where none is better
    where = best[None, :, None].expand(1, -1, q.mean.shape[-1])
    chosen = DiagonalGaussian(q.mean.gather(0, where)[0], q.scale.gather(0, where)[0])
    apart = ((chosen.mean - q.mean[0]).abs() > 3 * torch.maximum(chosen.scale, q.scale[0])).any(-1)
    return chosen, history.gather(1, best.expand(len(history), 1, -1))[:, 0], apart


def refine(space: UnconstrainedLatents, q: DiagonalGaussian, *, num_steps: int) -> tuple[DiagonalGaussian, Tensor]:
    """Maximize the ELBO of a diagonal Gaussian of each datum, for all data at once.

    ``L(m, s) = E[log p(x, m + s e) - log q(m + s e)]`` with ``e ~ N(0, I)``

    Steps are Adam's, in units of the standard deviations s at that step, with a rate that decays. Each step draws a
    pair e, -e for each datum; the gradient follows it through log p - log q, so that its noise vanishes where q is the
    exact posterior. The result is the mean of the last steps' m and log s; the step with the highest estimate would be
    the one with the largest noise. Where the gradient of a datum is not finite, it counts as zero in that step.

    *Sticking the landing (Roeder, Wu, Duvenaud 2017)*, https://arxiv.org/abs/1703.09194

    Args:
        space: unconstrained latent variables of B data.
        q: the start, ``(B, D)``, or S starts of each datum ``(S, B, D)``.
        num_steps: steps of the optimizer.

    Returns:
        The Gaussian, and the estimate of the ELBO at each step ``(num_steps, B)``, nats; ``(num_steps, S, B)`` for S
        Gaussians of each datum.

    """
    dtype = space.draw(1)[0].dtype
    position = torch.stack([q.mean, q.scale.log()])  # (2, B, D) or (2, S, B, D)
    first, second = torch.zeros_like(position), torch.zeros_like(position)
    total, values = torch.zeros_like(position), []
    num_averaged = max(1, round(AVERAGED * num_steps))
    for step in range(1, num_steps + 1):
        here = DiagonalGaussian(position[0], position[1].exp())
        gradient, value = _gradient(space, here, dtype)
        values.append(value)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        move = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + 1e-8)
        rate = RATES[0] * (RATES[1] / RATES[0]) ** ((step - 1) / num_steps)
        position = position + rate * move * torch.stack([here.scale, torch.ones_like(here.scale)])
        if step > num_steps - num_averaged:
            total += position
    mean, log_scale = total / num_averaged
    return DiagonalGaussian(mean, log_scale.exp()), torch.stack(values)


def _gradient(space: UnconstrainedLatents, q: DiagonalGaussian, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradient of the ELBO by m / s and log s ``(2, ..., B, D)``, and an estimate of it ``(..., B)``."""
    noise = to_float64(torch.randn(1, *q.mean.shape[-2:], dtype=dtype, device=q.mean.device))
    noise = torch.cat([noise, -noise])
    noise = noise.reshape(len(noise), *[1] * (q.mean.ndim - 2), *q.mean.shape[-2:])  # the same for all Gaussians
    u = (q.mean + q.scale * noise).to(dtype).requires_grad_()  # (2, B, D) or (2, S, B, D)
    with torch.enable_grad():
        log_joint = space.log_joint(u.reshape(-1, *u.shape[-2:])).reshape(u.shape[:-1])
        (slope,) = torch.autograd.grad(log_joint.sum(), u)
    along = q.scale * to_float64(slope) + noise  # the slope of log p - log q at u, in units of s
    gradient = torch.stack([along.mean(0), (noise * along).mean(0)])
    finite = gradient.isfinite().all(0).all(-1, keepdim=True)
    return torch.where(finite, gradient, 0.0), (log_joint.detach() - q.log_prob(to_float64(u.detach()))).mean(0)
