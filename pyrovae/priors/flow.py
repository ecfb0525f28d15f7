"""A normalizing flow as a prior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import FlowLayer, NormalFlow
from pyrovae.priors.base import Prior
from pyrovae.runtime.annotations import PositiveInt

MAX_LOG_SCALE = 3.0  # smooth bound of |s| of one layer, so that no draw overflows


class Flow(Prior):
    """A standard normal transformed by affine coupling layers.

    ``z_b <- z_b exp(s(z_a)) + t(z_a)``, with the two halves a and b of z swapped from layer to layer.

    Sampling and scoring both take one pass. It starts near N(0, I).

    *Density estimation using Real NVP (Dinh et al. 2017)*, https://arxiv.org/abs/1605.08803

    *Variational lossy autoencoder (Chen et al. 2017)*, https://arxiv.org/abs/1611.02731

    Args:
        latent_dim: D, the number of latent dimensions, at least 2.
        num_layers: coupling layers.
        hidden: widths of the hidden layers of each coupling layer.

    Raises:
        ValueError: if latent_dim < 2, num_layers < 1 or a width < 1.

    """

    loc: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: PositiveInt,
        *,
        num_layers: Annotated[PositiveInt, "for 0 use StandardNormal"] = 4,
        hidden: Sequence[PositiveInt] = (64, 64),
    ) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2:
            raise ValueError(
                f"`latent_dim` of a Flow must be >= 2, got {latent_dim}: a coupling layer has two halves; for one "
                "dimension use MixtureOfGaussians"
            )
        self.layers = nn.ModuleList(
            CouplingLayer(latent_dim, tuple(hidden), swapped=index % 2 == 1) for index in range(num_layers)
        )
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the flow, of event shape ``(latent_dim,)``."""
        return CouplingFlow(self.loc, self.scale, tuple(self.layers))  # type: ignore[arg-type]


class CouplingFlow(NormalFlow):
    """A `NormalFlow` through coupling layers."""


class CouplingLayer(FlowLayer):
    """An affine map of one half of a vector, with scale and shift computed from the other half.

    Args:
        latent_dim: D.
        hidden: widths of the hidden layers.
        swapped: whether the first half is transformed given the second, instead of the second given the first.

    """

    def __init__(self, latent_dim: PositiveInt, hidden: tuple[int, ...], *, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.num_first = latent_dim // 2
        sizes = (self.num_first, latent_dim - self.num_first)
        given, transformed = sizes[::-1] if swapped else sizes
        widths = (given, *hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        last = nn.Linear(widths[-1], 2 * transformed)
        self.net = nn.Sequential(*layers, last)
        nn.init.normal_(last.weight, std=0.01)  # zero would give the layers below no gradient
        nn.init.zeros_(last.bias)

    def forward(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map ``(*, D)`` to the result and the log-determinant ``(*)``."""
        given, transformed = self._halves(value)
        log_scale, shift = self._affine(given)
        return self._join(given, transformed * log_scale.exp() + shift), log_scale.sum(-1)

    def inverse(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the argument that `forward` maps to a value, and the log-determinant of `forward` there."""
        given, transformed = self._halves(value)
        log_scale, shift = self._affine(given)
        return self._join(given, (transformed - shift) * log_scale.neg().exp()), log_scale.sum(-1)

    def _halves(self, value: Tensor) -> tuple[Tensor, Tensor]:
        first, second = value[..., : self.num_first], value[..., self.num_first :]
        return (second, first) if self.swapped else (first, second)

    def _join(self, given: Tensor, transformed: Tensor) -> Tensor:
        return torch.cat((transformed, given) if self.swapped else (given, transformed), -1)

    def _affine(self, given: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(given).chunk(2, -1)
        return MAX_LOG_SCALE * (raw / MAX_LOG_SCALE).tanh(), shift
