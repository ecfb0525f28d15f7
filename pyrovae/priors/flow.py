"""A normalizing flow as a prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import FlowLayer, NormalFlow
from pyrovae.priors.base import Prior

MAX_LOG_SCALE = 3.0  # of one layer; approached smoothly, so that no draw can overflow


class Flow(Prior):
    """A standard normal carried through affine coupling layers: the density of N(0, I), bent.

    ``z_b <- z_b exp(s(z_a)) + t(z_a)``, the two halves a and b of z changing places from layer to layer.

    Sampling and scoring both take one pass. It starts near N(0, I).

    *Density estimation using Real NVP (Dinh et al. 2017)*, https://arxiv.org/abs/1605.08803

    *Variational lossy autoencoder (Chen et al. 2017)*, https://arxiv.org/abs/1611.02731

    Args:
        latent_dim: D, the number of latent dimensions, at least 2.
        num_layers: coupling layers.
        hidden: widths of the hidden layers of each.

    Raises:
        ValueError: if there is one dimension only, no layer, or a layer has no hidden units.

    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, *, num_layers: int = 4, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2:
            raise ValueError(
                f"a coupling layer moves one part of z given the other, so that a Flow needs latent_dim of at least 2, "
                f"but received {latent_dim}; for one dimension take MixtureOfGaussians"
            )
        if num_layers < 1:
            raise ValueError(
                f"a flow has at least 1 layer, but received num_layers={num_layers}; without any it is StandardNormal"
            )
        if hidden and min(hidden) < 1:
            raise ValueError(f"a hidden layer has at least 1 unit, but received hidden={tuple(hidden)}; give widths")
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
    """Scales and shifts one half of a vector by functions of the other.

    Args:
        latent_dim: D.
        hidden: widths of the hidden layers.
        swapped: whether the first half is moved given the second, instead of the second given the first.

    """

    def __init__(self, latent_dim: int, hidden: tuple[int, ...], *, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.num_first = latent_dim // 2
        sizes = (self.num_first, latent_dim - self.num_first)
        given, moved = sizes[::-1] if swapped else sizes
        widths = (given, *hidden, 2 * moved)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        last = layers[-2]
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=0.01)  # not zero, at which the layers below would get no gradient
        nn.init.zeros_(last.bias)

    def forward(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map ``(*, D)`` to the result and the log-determinant ``(*)``."""
        given, moved = self._halves(value)
        log_scale, shift = self._affine(given)
        return self._join(given, moved * log_scale.exp() + shift), log_scale.sum(-1)

    def inverse(self, value: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what `forward` maps to this value, and the log-determinant of `forward` there."""
        given, moved = self._halves(value)
        log_scale, shift = self._affine(given)
        return self._join(given, (moved - shift) * log_scale.neg().exp()), log_scale.sum(-1)

    def _halves(self, value: Tensor) -> tuple[Tensor, Tensor]:
        first, second = value[..., : self.num_first], value[..., self.num_first :]
        return (second, first) if self.swapped else (first, second)

    def _join(self, given: Tensor, moved: Tensor) -> Tensor:
        return torch.cat((moved, given) if self.swapped else (given, moved), -1)

    def _affine(self, given: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(given).chunk(2, -1)
        return MAX_LOG_SCALE * (raw / MAX_LOG_SCALE).tanh(), shift
