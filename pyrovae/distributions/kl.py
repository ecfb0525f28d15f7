"""Closed forms of KL(q || p) that neither torch nor Pyro has.

They are registered with `torch.distributions.register_kl` when `pyrovae.distributions` is imported: this is how torch
and Pyro mean `kl_divergence` to be extended. It adds pairs that raised NotImplementedError before, and changes none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, register_kl


@register_kl(MultivariateNormal, Independent)
def _full_to_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    """``sum log s - sum log L_ii + (sum (L_ij / s_i)^2 + |(m - mu) / s|^2 - D) / 2``."""
    normal = _diagonal_normal(p, q.event_shape)
    tril = q._unbroadcasted_scale_tril
    variance = tril.square().sum(-1)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _to_diagonal(q.loc, variance, log_det, normal)


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_to_diagonal(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    """As above, with the diagonal and the determinant of ``W W^T + diag d``."""
    normal = _diagonal_normal(p, q.event_shape)
    variance = q._unbroadcasted_cov_factor.square().sum(-1) + q._unbroadcasted_cov_diag
    return _to_diagonal(q.loc, variance, _half_log_det(q), normal)


@register_kl(Independent, LowRankMultivariateNormal)
def _diagonal_to_low_rank(q: Independent, p: LowRankMultivariateNormal) -> Tensor:
    """``log det P / 2 - sum log s + (tr(P^-1 diag s^2) + (m - mu)^T P^-1 (m - mu) - D) / 2``, P the covariance of p."""
    normal = _diagonal_normal(q, p.event_shape)
    factor, diagonal = p._unbroadcasted_cov_factor, p._unbroadcasted_cov_diag
    whitened = factor.mT / diagonal.unsqueeze(-2)  # (*batch, rank, D)
    solved = torch.linalg.solve_triangular(p._capacitance_tril, whitened, upper=False)
    precision = diagonal.reciprocal() - solved.square().sum(-2)  # its diagonal, by Woodbury's identity
    difference = normal.loc - p.loc
    along = torch.einsum("...rd,...d->...r", solved, difference)
    mahalanobis = (difference.square() / diagonal).sum(-1) - along.square().sum(-1)
    trace = (precision * normal.scale.square() - 1).sum(-1)
    return _half_log_det(p) - normal.scale.log().sum(-1) + 0.5 * (trace + mahalanobis)


def _to_diagonal(mean: Tensor, variance: Tensor, half_log_det: Tensor, p: Normal) -> Tensor:
    """Return the KL to a diagonal normal of a normal with these variances of its elements."""
    squares = (variance + (mean - p.loc).square()) / p.scale.square() - 1
    return p.scale.log().sum(-1) - half_log_det + 0.5 * squares.sum(-1)


def _half_log_det(low_rank: LowRankMultivariateNormal) -> Tensor:
    log_capacitance = low_rank._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return log_capacitance + 0.5 * low_rank._unbroadcasted_cov_diag.log().sum(-1)


def _diagonal_normal(fn: Independent, event_shape: torch.Size) -> Normal:
    """Return the elements of a diagonal normal with that event.

    Raises:
        NotImplementedError: if it is none, as `kl_divergence` does for a pair that it does not know.

    """
    if not isinstance(fn.base_dist, Normal) or fn.event_shape != event_shape:
        raise NotImplementedError
    return fn.base_dist
