"""Convolutional networks for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.head import ImageHead
from pyrovae.networks.images import as_image, image_shape, quick_layout, require_channels, stage_sizes
from pyrovae.networks.layers import he, hidden_layers, linear
from pyrovae.networks.mlp import joined


class ConvEncoder(Encoder):
    """From an image to the parameters of its posterior, by 3 x 3 convolutions that halve it.

    Covariates are appended to the image as constant channels. Weights start at He's normal distribution (the last
    layer's at Glorot's uniform one) and biases at zero.

    Args:
        x_shape: ``(C, H, W)`` or ``(H, W)``, of 4 x 4 pixels or more.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: how many covariates are seen beside an image.
        channels: of each convolution.
        hidden: widths of linear layers after them.
        activation: class of the nonlinearity between layers.

    Raises:
        ValueError: if data are no images, a layer has no units, or training the network does not fit into memory.

    """

    def __init__(
        self,
        x_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim)
        self.image = image_shape(x_shape, self)
        inputs = self.image[0] + covariate_dim
        require_channels(channels, inputs=inputs, per_map=9)
        layers: list[nn.Module] = []
        for before, after in zip((inputs, *channels), channels, strict=False):
            layers += [convolution(before, after, stride=2), activation()]
        height, width = stage_sizes(self.image, len(channels))[-1]
        widths = (channels[-1] * height * width, *hidden)
        dense = hidden_layers(widths, activation, then=math.prod(out_shape), initialize=he)
        self.layers = nn.Sequential(*layers, nn.Flatten(), *dense, linear(widths[-1], math.prod(out_shape)))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, *out_shape)``."""
        return self.layers(as_image(x, covariates, self.image)).unflatten(-1, self.out_shape)


class ConvDecoder(Decoder):
    """From a latent variable to the parameters of a likelihood of images.

    A linear layer makes small feature maps; each stage enlarges them (nearest neighbor, to the size that the encoder's
    stage has) and convolves them, 3 x 3; a 1 x 1 convolution with a bias for each pixel ends it. Enlarging first leaves
    no checkerboard, as transposed convolutions do: *Deconvolution and checkerboard artifacts (Odena et al. 2016)*,
    https://distill.pub/2016/deconv-checkerboard

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: ``(C, H, W, n_params)`` or ``(H, W, n_params)``, ``likelihood.param_shape``.
        covariate_dim: how many covariates are joined to z.
        channels: as those of the encoder, from the largest feature maps to the smallest.
        hidden: widths of linear layers before the smallest feature maps.
        activation: class of the nonlinearity between layers.
        initial_params: ``out_shape``, the bias of the last layer at the start, for instance
            ``likelihood.initial_params(data.train.mean())``; the output at z = 0 (and covariates of 0) where the
            activation is 0 at 0.

    Raises:
        ValueError: if data are no images, a layer has no units, or training the network does not fit into memory.

    """

    def __init__(
        self,
        latent_dim: int,
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        activation: type[nn.Module] = nn.ReLU,
        initial_params: Tensor | None = None,
    ) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=covariate_dim, initial_params=initial_params)
        image = image_shape(out_shape[:-1], self)
        downward = (*reversed(channels), *channels[:1])  # (64, 32, 32) for stages of (32, 64)
        require_channels(downward, inputs=0, per_map=9)
        sizes = stage_sizes(image, len(channels))[::-1]
        widths = (latent_dim + covariate_dim, *hidden)
        smallest = channels[-1] * math.prod(sizes[0])
        self.dense = nn.Sequential(
            *hidden_layers((*widths, smallest), activation, initialize=he),
            nn.Unflatten(1, (channels[-1], *sizes[0])),
        )
        self.stages = nn.Sequential()
        for size, before, after in zip(sizes[1:], downward, downward[1:], strict=False):
            self.stages.extend([Enlarge(size), convolution(before, after), activation()])
        self.head = ImageHead(channels[0], image, out_shape[-1], initial_params=initial_params)

    def output_layer(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        maps = quick_layout(self.dense(joined(z, covariates)))
        return self.head(self.stages(maps)).reshape(-1, *self.out_shape)


class Enlarge(nn.Module):
    """Feature maps of another size ``(H, W)``, each pixel as its nearest neighbor.

    Args:
        size: ``(H, W)``.

    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, h, w)`` to ``(N, C, H, W)``."""
        return functional.interpolate(x, size=self.size, mode="nearest")


def convolution(before: int, after: int, *, stride: int = 1, size: int = 3, bias: bool = True) -> nn.Conv2d:
    """Return a convolution that keeps the size of feature maps, or divides it by the stride and rounds up."""
    layer = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=bias)
    he(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
