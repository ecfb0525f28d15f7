"""Pareto k-hat: the weight of the right tail of importance weights.

*Pareto smoothed importance sampling (Vehtari, Simpson, Gelman, Yao, Gabry 2024)*, https://arxiv.org/abs/1507.02646
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae.programs.layout import to_float64
from pyrovae.runtime.annotations import checked

FEWEST = 25  # particles: a fifth of them is the tail, and a fit takes five values
TAIL = 5  # fewest values of a tail
CHUNK = 2**21  # elements of one table of the fit: grid x tail x data
ROUNDING = 1e-6, 1e-2  # spread of the tail, relative to log w and at most in nats, below which weights are constant
PRIOR_WEIGHT, PRIOR_SHAPE = 10, 0.5  # weight, in draws, and mean of the prior on k


@checked
def pareto_khat(log_weights: Tensor) -> Tensor:
    """Return the Pareto k-hat of the weights of each datum.

    A generalized Pareto distribution, ``P(w > u + y) ~ (1 + k y / s)^(-1/k)``, is fitted to the largest weights,
    ``min(K / 5, 3 sqrt K)`` of them, rounded down; k-hat is its shape. Weights have about 1 / k finite moments: above
    0.5 their variance is infinite and the gap of L_K falls slower than 1 / K; above `khat_threshold` a mean over K is
    unsound.

    It needs no smoothing, depends on the right tail alone, and is the same for weights times a constant. It does not
    detect weights that are large where the guide never draws.

    *A new and efficient estimation method for the generalized Pareto distribution (Zhang, Stephens 2009)*,
    https://doi.org/10.1198/tech.2009.08017

    Args:
        log_weights: log p(x, z) - log q(z | x), ``(K, ...)``, nats.

    Returns:
        ``(...)``, float64. -inf where the tail is constant but for rounding; inf where fewer than five weights rise
        above the others; NaN (not available) where K < 25, a weight is NaN or infinite, or all are zero.

    Example:
        >>> steps = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        >>> pareto_khat(-0.5 * (1 - steps).log())  # weights with a Pareto tail of k = 0.5
        tensor(0.4965, dtype=torch.float64)

    """
    total, shape = len(log_weights), log_weights.shape[1:]
    flat = to_float64(log_weights.detach()).reshape(total, -1).T  # (B, K)
    khat = flat.new_full((len(flat),), math.nan)
    if total < FEWEST:
        return khat.reshape(shape)
    largest = flat.amax(1)  # NaN where a weight is
    usable = largest.isfinite().nonzero()[:, 0]
    tail = math.floor(3 * math.sqrt(total)) if total > 225 else total // 5
    for rows in usable.split(max(1, CHUNK // (tail * _grid_size(tail)))):
        top = (flat if len(rows) == len(flat) else flat[rows]).topk(tail + 1).values  # (B, n + 1), descending
        shifted = top - top[:, :1]
        khat[rows] = _of_tails(shifted[:, :-1].flip(1), shifted[:, -1:])
        rounding = (ROUNDING[0] * top[:, 0].abs()).clamp(*ROUNDING)
        khat[rows] = torch.where(-shifted[:, -1] <= rounding, -math.inf, khat[rows])
    return khat.reshape(shape)


@checked
def khat_threshold(num_particles: int) -> float:
    """Return the k-hat above which a mean over K >= 2 weights is unreliable: ``min(1 - 1 / log10 K, 0.7)``."""
    return min(1 - 1 / math.log10(num_particles), 0.7)


def _grid_size(tail: int) -> int:
    return 30 + math.isqrt(tail)


def _of_tails(tail: Tensor, cutoff: Tensor) -> Tensor:
    """Return k-hat of ascending log-weights ``(B, n)`` above a cutoff ``(B, 1)``, shifted so that the largest is 0."""
    log_excess = tail + (-(cutoff - tail).expm1()).log()
    log_excess = torch.where(tail > cutoff, log_excess, -math.inf)  # ties, and zeros among zeros
    khat = log_excess.new_empty(len(tail))
    tied = log_excess[:, _quartile(tail.shape[1])].isneginf()
    khat[~tied] = _fit(log_excess[~tied])
    for row in tied.nonzero()[:, 0].tolist():
        above = log_excess[row][log_excess[row].isfinite()]
        few = -math.inf if len(above) == 0 else math.inf
        khat[row] = _fit(above.unsqueeze(0))[0] if len(above) >= TAIL else few
    return khat


def _quartile(size: int) -> int:
    return int(size / 4 + 0.5) - 1


def _fit(log_excess: Tensor) -> Tensor:
    """Fit the shape k to the logarithms of ascending excesses y ``(B, n)``: the posterior mean of Zhang and Stephens.

    They put a grid on ``b = 1 / max y - c / y*``, y* being the lower quartile. For each b, ``k = mean log(1 - b y)``,
    and ``1 - b y = (1 - y / max y) + c y / y*`` is a sum of positive terms, each scaled here so that no ratio of
    excesses overflows: weights may lie a thousand nats apart.
    """
    size = log_excess.shape[1]
    if not len(log_excess):
        return log_excess.new_empty(0)
    relative = log_excess - log_excess[:, _quartile(size), None]  # log y / y*
    scale = relative.clamp(min=0)
    first = -(log_excess - log_excess[:, -1:]).expm1() * (-scale).exp()
    second = (relative - scale).exp()

    def shape(c: Tensor) -> Tensor:  # (B, m) to (B, m)
        inside = torch.addcmul(first.unsqueeze(1), c.unsqueeze(2), second.unsqueeze(1))  # (B, m, n)
        return inside.log_().mean(2) + scale.mean(1, keepdim=True)

    grid = _grid_size(size)
    steps = torch.arange(1, grid + 1, dtype=relative.dtype, device=relative.device) - 0.5
    c = ((grid / steps).sqrt() - 1).expand(len(relative), -1) / 3
    k = shape(c)
    log_likelihood = size * (((c - (-relative[:, -1:]).exp()) / k).log() - k - 1)
    weights = log_likelihood.nan_to_num(-math.inf).softmax(1)  # 0 / 0 where b = 0
    weights = torch.where(weights < 10 * torch.finfo(weights.dtype).eps, 0.0, weights)
    c = (weights * c).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    return (size * shape(c)[:, 0] + PRIOR_WEIGHT * PRIOR_SHAPE) / (size + PRIOR_WEIGHT)
