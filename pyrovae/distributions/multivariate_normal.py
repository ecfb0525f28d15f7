"""Normal distributions with full and low-rank covariances, and closed-form KL divergences between them.

The divergences KL(q || p) of full to diagonal, low-rank to diagonal and diagonal to low-rank are registered with
`torch.distributions.register_kl` on import. torch and Pyro lack them; no existing closed form changes.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, register_kl


class TriangularNormal(dist.MultivariateNormal):
    """`pyro.distributions.MultivariateNormal` given by ``scale_tril``, faster where K draws share their factors.

    torch copies the factors ``(B, D, D)`` for each draw ``(K, B, D)``; this class does not.
    """

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + torch.einsum("...ij,...j->...i", self._unbroadcasted_scale_tril, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each event, nats."""
        if self._validate_args:
            self._validate_sample(value)
        tril = self._unbroadcasted_scale_tril  # (*batch, D, D)
        difference = value - self.loc
        draws = difference.shape[: difference.ndim - tril.ndim + 1]
        columns = difference.reshape(-1, *difference.shape[len(draws) :]).movedim(0, -1)  # (*batch, D, draws)
        noise = torch.linalg.solve_triangular(tril, columns, upper=False)
        squares = noise.square().sum(-2).movedim(-1, 0).reshape((*draws, *noise.shape[:-2]))
        return -0.5 * (squares + self.event_shape[0] * math.log(2 * math.pi)) - _log_diagonal(tril)


class LowRankNormal(dist.LowRankMultivariateNormal):
    """`pyro.distributions.LowRankMultivariateNormal` whose log-density does not cancel.

    With ``y = d^-1/2 (z - m)``, ``V = d^-1/2 W`` and ``u = (I + V^T V)^-1 V^T y``, the Mahalanobis distance is the sum
    of squares ``|y - V u|^2 + |u|^2``. torch's difference of squares is wrong in float32, by 0.02 nats where W is 10
    times as large as the square root of d and by 3 where it is 100 times as large; it also copies W for each of K
    draws, and synchronizes with the device when it is constructed.

    Args:
        loc: ``(*batch, D)``, m.
        cov_factor: ``(*batch, D, rank)``, W.
        cov_diag: ``(*batch, D)``, d.
        validate_args: whether arguments and values are validated.

    """

    def __init__(self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc, self.cov_factor, self.cov_diag = loc, cov_factor, cov_diag
        self._unbroadcasted_cov_factor, self._unbroadcasted_cov_diag = cov_factor, cov_diag
        self._whitened, self._capacitance_tril = _capacitance(cov_factor, cov_diag)
        dist.TorchDistribution.__init__(self, loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: Any = None) -> LowRankNormal:
        """Return the distribution with a larger batch shape."""
        new = self._get_checked_instance(LowRankNormal, _instance)
        new._whitened = self._whitened
        return super().expand(torch.Size(batch_shape), _instance=new)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        factor = self._unbroadcasted_cov_factor
        common = torch.randn(*shape[:-1], factor.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        directions = torch.einsum("...dr,...r->...d", factor, common)
        return self.loc + self._unbroadcasted_cov_diag.sqrt() * noise + directions

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each event, nats."""
        if self._validate_args:
            self._validate_sample(value)
        y = (value - self.loc) / self._unbroadcasted_cov_diag.sqrt()
        to_u = torch.cholesky_solve(self._whitened.mT, self._capacitance_tril)  # (*batch, rank, D)
        u = torch.einsum("...rd,...d->...r", to_u, y)
        residual = y - torch.einsum("...dr,...r->...d", self._whitened, u)
        distance = residual.square().sum(-1) + u.square().sum(-1)
        log_det = _log_diagonal(self._capacitance_tril) + 0.5 * self._unbroadcasted_cov_diag.log().sum(-1)
        return -0.5 * (distance + self.event_shape[0] * math.log(2 * math.pi)) - log_det


@register_kl(MultivariateNormal, Independent)
def _full_to_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    """``sum log s - sum log L_ii + (sum (L_ij / s_i)^2 + |(m - mu) / s|^2 - D) / 2``."""
    variance = q.scale_tril.square().sum(-1)
    return _to_diagonal(q.loc, variance, _log_diagonal(q.scale_tril), _diagonal_normal(p, q.event_shape))


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_to_diagonal(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    """As above, with the diagonal and the determinant of ``W W^T + diag d``."""
    variance = q.cov_factor.square().sum(-1) + q.cov_diag
    _, tril = _capacitance(q.cov_factor, q.cov_diag)
    half_log_det = _log_diagonal(tril) + 0.5 * q.cov_diag.log().sum(-1)
    return _to_diagonal(q.loc, variance, half_log_det, _diagonal_normal(p, q.event_shape))


@register_kl(Independent, LowRankMultivariateNormal)
def _diagonal_to_low_rank(q: Independent, p: LowRankMultivariateNormal) -> Tensor:
    """``log det P / 2 - sum log s + (tr(P^-1 diag s^2) + (m - mu)^T P^-1 (m - mu) - D) / 2``, P the covariance of p."""
    normal, diagonal = _diagonal_normal(q, p.event_shape), p.cov_diag
    whitened, tril = _capacitance(p.cov_factor, diagonal)
    solved = torch.linalg.solve_triangular(tril, (whitened / diagonal.sqrt().unsqueeze(-1)).mT, upper=False)
    precision = diagonal.reciprocal() - solved.square().sum(-2)  # diagonal of P^-1, by Woodbury's identity
    difference = normal.loc - p.loc
    along = torch.einsum("...rd,...d->...r", solved, difference)
    mahalanobis = (difference.square() / diagonal).sum(-1) - along.square().sum(-1)
    trace = (precision * normal.scale.square() - 1).sum(-1)
    half_log_det = _log_diagonal(tril) + 0.5 * diagonal.log().sum(-1)
    return half_log_det - normal.scale.log().sum(-1) + 0.5 * (trace + mahalanobis)


def _to_diagonal(mean: Tensor, variance: Tensor, half_log_det: Tensor, p: Normal) -> Tensor:
    """Return the KL divergence to a diagonal normal, from the marginal variances and half the log-determinant of q."""
    squares = (variance + (mean - p.loc).square()) / p.scale.square() - 1
    return p.scale.log().sum(-1) - half_log_det + 0.5 * squares.sum(-1)


def _capacitance(cov_factor: Tensor, cov_diag: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``V = d^-1/2 W`` and the Cholesky factor of ``I + V^T V``."""
    whitened = cov_factor / cov_diag.sqrt().unsqueeze(-1)
    identity = torch.eye(cov_factor.shape[-1], dtype=cov_factor.dtype, device=cov_factor.device)
    return whitened, torch.linalg.cholesky_ex(identity + whitened.mT @ whitened).L  # cholesky waits for the device


def _log_diagonal(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _diagonal_normal(fn: Independent, event_shape: torch.Size) -> Normal:
    """Return the elements of a diagonal normal distribution with this event shape.

    Raises:
        NotImplementedError: if it is another distribution, as `kl_divergence` does without a closed form.

    """
    if not isinstance(fn.base_dist, Normal) or fn.event_shape != event_shape:
        raise NotImplementedError
    return fn.base_dist
