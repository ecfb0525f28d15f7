"""Student's t distribution with one number of degrees of freedom for all elements."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.distributions.elements import BroadcastDistribution


class StudentT(BroadcastDistribution):
    """`pyro.distributions.StudentT` whose gamma functions are computed once, exactly, and not on the device.

    ``log p(x) = -(v + 1) / 2 log(1 + y^2 / v) - log(s B(v / 2, 1 / 2) sqrt(v))``, y = (x - m) / s

    Args:
        df: v, degrees of freedom, a number.
        loc: m of each element.
        scale: s, a scalar tensor or one value per element.
        validate_args: whether arguments and values are validated.

    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, df: float, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None) -> None:
        self.df, self.loc, self.scale = df, loc, scale
        super().__init__(torch.broadcast_shapes(loc.shape, scale.shape), validate_args=validate_args)

    def _log_prob(self, value: Tensor) -> Tensor:
        log_beta = math.lgamma(self.df / 2) - math.lgamma((self.df + 1) / 2) + 0.5 * math.log(math.pi)
        log_norm = self.scale.log() + (log_beta + 0.5 * math.log(self.df))
        y = (value - self.loc) / self.scale
        return (y * y / self.df).log1p() * (-(self.df + 1) / 2) - log_norm

    @property
    def mean(self) -> Tensor:
        """The location where v > 1, otherwise NaN."""
        return (self.loc if self.df > 1 else torch.full_like(self.loc, math.nan)).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """s^2 v / (v - 2) where v > 2, infinite for v > 1, otherwise NaN."""
        factor = self.df / (self.df - 2) if self.df > 2 else math.inf if self.df > 1 else math.nan
        return (self.scale**2 * factor).expand(self.batch_shape)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw values, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        normal = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        half_chi2 = dist.Gamma(torch.full_like(normal, self.df / 2), 1.0, validate_args=False).sample()
        return self.loc + self.scale * normal * (self.df / 2 / half_chi2).sqrt()
