"""Data whose log p(x) is known exactly: the ground truth that estimates are tested against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Probabilistic principal components: z ~ N(0, I), x = W z + b + s e with e ~ N(0, I).

    ``log p(x) = log N(x; b, W W^T + s^2 I)``, and ``q(z | x) = N(M^-1 W^T (x - b), s^2 M^-1)`` with
    ``M = W^T W + s^2 I``, which is diagonal where the columns of W are orthogonal.

    *Probabilistic principal component analysis (Tipping, Bishop 1999)*, https://doi.org/10.1111/1467-9868.00196

    Args:
        weight: W, ``(P, D)``.
        bias: b, ``(P,)``.
        scale: s, standard deviation of the noise.

    """

    weight: Tensor
    bias: Tensor
    scale: float

    def sample(self, num_data: int, *, seed: int = 0) -> Tensor:
        """Draw data ``(num_data, P)``."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.weight.shape[1], generator=generator, dtype=self.weight.dtype)
        noise = torch.randn(num_data, self.weight.shape[0], generator=generator, dtype=self.weight.dtype)
        return z @ self.weight.T + self.bias + self.scale * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of data ``(N, P)``: ``(N,)``, nats."""
        noise = self.scale**2 * torch.eye(len(self.bias), dtype=self.weight.dtype)
        return MultivariateNormal(self.bias, self.weight @ self.weight.T + noise).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return p(z | x) of data ``(N, P)``, of event shape ``(D,)``."""
        precision = self.weight.T @ self.weight + self.scale**2 * torch.eye(
            self.weight.shape[1], dtype=self.weight.dtype
        )
        covariance = torch.linalg.inv(precision)
        mean = (x - self.bias) @ self.weight @ covariance
        return MultivariateNormal(mean, self.scale**2 * covariance)
