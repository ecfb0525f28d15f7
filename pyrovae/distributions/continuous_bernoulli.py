"""Continuous Bernoulli distribution that is accurate at every logit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.elements import BroadcastDistribution, SavesInputs
from pyrovae.distributions.series import polynomial

# B_2k / (2k)!, coefficients of l^(2k - 1) in E[x] - 1/2
_SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000, 1 / 74724249600)
_NEAR = 0.5  # |l| up to which seven terms are exact in float64; above it the closed forms do not cancel
_AT_NEAR = -1 / math.expm1(-_NEAR) - 1 / _NEAR


class ContinuousBernoulli(BroadcastDistribution):
    """The density proportional to exp(x l) on [0, 1], given by its logit l.

    ``log p(x) = x l - log((exp(l) - 1) / l) = x l - max(l, 0) - log((1 - exp(-|l|)) / |l|)``

    torch's log-density is wrong beyond |l| = 16, by -0.92 nats at 40.

    *The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem, Cunningham 2019)*,
    https://arxiv.org/abs/1907.06845

    Args:
        logits: l of each element.
        validate_args: whether arguments and values are validated.

    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        return _LogProb.apply(*torch.broadcast_tensors(self.logits, value))

    @property
    def mean(self) -> Tensor:
        """E[x] = 1 / (1 - exp(-l)) - 1 / l."""
        return _mean(self.logits).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Var[x] = 1 / l^2 - 1 / (2 sinh(l / 2))^2."""
        near = self.logits.abs() < _NEAR
        small, large = self.logits.where(near, 0), self.logits.where(~near, 1)
        slopes = [(2 * k + 1) * coefficient for k, coefficient in enumerate(_SERIES)]
        variance = torch.where(near, polynomial(small**2, slopes), large**-2 - (2 * (large / 2).sinh()) ** -2)
        return variance.expand(self.batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw values."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return _quantile(self.logits, torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))


def _mean(logits: Tensor) -> Tensor:
    """Return E[x]: the series up to |l| = 1/2, plus the increase of the closed form beyond it (no slow `where`)."""
    size = logits.abs()
    near, far = logits.clamp(-_NEAR, _NEAR), (size - _NEAR).relu() + _NEAR
    series = near * polynomial(near * near, _SERIES)
    return 0.5 + series + logits.sign() * (-torch.expm1(-far).reciprocal() - far.reciprocal() - _AT_NEAR)


class _LogProb(SavesInputs):
    """The log-density, with the gradient x - E[x]."""

    @staticmethod
    def forward(logits: Tensor, value: Tensor) -> Tensor:
        size = logits.abs().clamp(min=torch.finfo(logits.dtype).tiny)
        log_ratio = size.neg().expm1_().neg_().div_(size).log_()
        return (value - (logits > 0).to(value.dtype)).mul(logits).sub_(log_ratio)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        logits, value = ctx.saved_tensors
        for_logits, for_value = ctx.needs_input_grad
        return (
            gradient * (value - _mean(logits)) if for_logits else None,
            gradient * logits if for_value else None,
        )


def _quantile(logits: Tensor, value: Tensor) -> Tensor:
    """Return log(1 + u (exp(l) - 1)) / l of values u in [0, 1]."""
    size = logits.abs().clamp(min=torch.finfo(logits.dtype).tiny)
    upper = torch.where(logits > 0, 1 - value, value)  # for the density that falls from 0 to 1
    fallen = -(upper * torch.expm1(-size)).log1p() / size
    return torch.where(logits > 0, 1 - fallen, fallen).clamp(0, 1)
