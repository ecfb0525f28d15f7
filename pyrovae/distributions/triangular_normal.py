"""A normal distribution with a full covariance, for many draws of each of many data."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor


class TriangularNormal(dist.MultivariateNormal):
    """`pyro.distributions.MultivariateNormal` given by ``scale_tril``, quicker where K draws share their factors.

    torch copies the factors ``(B, D, D)`` for each draw ``(K, B, D)``; here they are used where they lie.
    """

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, D)``, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + torch.einsum("...ij,...j->...i", self._unbroadcasted_scale_tril, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each event, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        tril = self._unbroadcasted_scale_tril
        noise = _solve(tril, value - self.loc)
        log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return -0.5 * (noise.square().sum(-1) + self.event_shape[0] * math.log(2 * math.pi)) - log_det


def _solve(tril: Tensor, value: Tensor) -> Tensor:
    """Return ``tril^-1 value`` for ``(*batch, D, D)`` and ``(*draws, *batch, D)``, all draws of a datum at once."""
    batch = tril.ndim - 2
    draws = value.shape[: value.ndim - 1 - batch]
    columns = value.reshape(-1, *value.shape[len(draws) :]).movedim(0, -1)  # (*batch, D, draws)
    solved = torch.linalg.solve_triangular(tril, columns, upper=False)
    return solved.movedim(-1, 0).unflatten(0, draws) if draws else solved.squeeze(-1)
