"""Convolutional networks for images, and the pieces that networks of images share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.layers import ImageHead, he, hidden_layers, join, linear
from pyrovae.runtime.annotations import NonNegativeInt, PositiveInt, Shape

MIN_SIZE = 4  # pixels, height and width of the smallest images


class ConvEncoder(Encoder):
    """3 x 3 convolutions of stride 2 from an image to the parameters of its posterior.

    Covariates are appended to the image as constant channels. Initial weights are drawn from He's normal distribution
    (the last layer's from Glorot's uniform one); initial biases are zero.

    Args:
        x_shape: ``(C, H, W)`` or ``(H, W)``, of 4 x 4 pixels or more.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: number of covariates.
        channels: of each convolution.
        hidden: widths of linear layers after the convolutions.
        activation: class of the nonlinearity between layers.

    Raises:
        ValueError: if the data are not images, or a layer has no units.

    """

    def __init__(
        self,
        x_shape: Shape,
        out_shape: Shape,
        *,
        covariate_dim: NonNegativeInt = 0,
        channels: Sequence[PositiveInt] = (32, 64),
        hidden: Sequence[PositiveInt] = (),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim)
        self.image = image_shape(x_shape, self)
        height, width = stage_sizes(self.image, channels)[-1]
        layers: list[nn.Module] = []
        for before, after in pairwise((self.image[0] + covariate_dim, *channels)):
            layers += [convolution(before, after, stride=2), activation()]
        widths = (channels[-1] * height * width, *hidden)
        dense = hidden_layers(widths, activation, initialize=he)
        self.layers = nn.Sequential(*layers, nn.Flatten(), *dense, linear(widths[-1], math.prod(out_shape)))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, *out_shape)``."""
        return self.layers(as_image(x, covariates, self.image)).unflatten(-1, self.out_shape)


class ConvDecoder(Decoder):
    """Convolutions from a latent variable to the parameters of a likelihood of images.

    A linear layer computes small feature maps; each stage enlarges them (nearest neighbor, to the size of the encoder's
    stage) and convolves them, 3 x 3; a 1 x 1 convolution with a bias per pixel is last. Transposed convolutions would
    leave a checkerboard: *Deconvolution and checkerboard artifacts (Odena et al. 2016)*,
    https://distill.pub/2016/deconv-checkerboard

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: ``(C, H, W, n_params)`` or ``(H, W, n_params)``, ``likelihood.param_shape``.
        covariate_dim: number of covariates, appended to z.
        channels: as in the encoder, from the largest feature maps to the smallest.
        hidden: widths of linear layers before the smallest feature maps.
        activation: class of the nonlinearity between layers.

    Raises:
        ValueError: if the data are not images, or a layer has no units.

    """

    def __init__(
        self,
        latent_dim: PositiveInt,
        out_shape: Shape,
        *,
        covariate_dim: NonNegativeInt = 0,
        channels: Sequence[PositiveInt] = (32, 64),
        hidden: Sequence[PositiveInt] = (),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=covariate_dim)
        image = image_shape(out_shape[:-1], self)
        smallest, *sizes = reversed(stage_sizes(image, channels))
        widths = (latent_dim + covariate_dim, *hidden, channels[-1] * math.prod(smallest))
        self.dense = nn.Sequential(
            *hidden_layers(widths, activation, initialize=he), nn.Unflatten(1, (channels[-1], *smallest))
        )
        self.stages = nn.Sequential()
        downward = (*reversed(channels), channels[0])  # (64, 32, 32) for stages of (32, 64)
        for size, (before, after) in zip(sizes, pairwise(downward), strict=True):
            self.stages.extend([nn.Upsample(size, mode="nearest"), *self.stage(before, after, activation)])
        self.head = ImageHead(channels[0], image, out_shape[-1])

    def stage(self, before: int, after: int, activation: type[nn.Module]) -> list[nn.Module]:
        """Return the layers of one stage, from enlarged feature maps of ``before`` channels to ``after`` channels."""
        return [convolution(before, after), activation()]

    def output_layer(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        maps = quick_layout(self.dense(join(z, covariates)))
        return self.head(self.stages(maps)).reshape(-1, *self.out_shape)


def convolution(before: int, after: int, *, stride: int = 1, size: int = 3, bias: bool = True) -> nn.Conv2d:
    """Return a convolution that keeps the size of feature maps, or divides it by the stride and rounds up.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: divisor of height and width.
        size: height and width of the kernel, odd.
        bias: whether there is a bias, which starts at zero; weights start at He's values.

    """
    layer = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=bias)
    he(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def image_shape(x_shape: Sequence[int], network: object) -> tuple[int, int, int]:
    """Return ``(C, H, W)`` of images of this shape or of shape ``(H, W)``; raise a ValueError for other shapes."""
    if len(x_shape) not in (2, 3) or min(x_shape[-2:]) < MIN_SIZE:
        raise ValueError(
            f"{type(network).__name__} takes images of shape (C, H, W) or (H, W), of {MIN_SIZE} x {MIN_SIZE} pixels or "
            f"more, but received {tuple(x_shape)}; choose networks.MLPEncoder and MLPDecoder for other data"
        )
    channels, height, width = (1, *x_shape)[-3:]
    return channels, height, width


def stage_sizes(image: tuple[int, int, int], channels: Sequence[int]) -> list[tuple[int, int]]:
    """Return ``(H, W)`` before and after each stage, one per number of channels; each halves it, rounding up."""
    if not channels:
        raise ValueError("`channels` must be one or more integers, one for each stage, got ()")
    _, height, width = image
    return [(-(-height // 2**stage), -(-width // 2**stage)) for stage in range(len(channels) + 1)]


def quick_layout(x: Tensor) -> Tensor:
    """Return feature maps in the fastest memory layout: on a CPU with the channels last.

    Convolutions keep the layout of their input. Training takes 0.7 times as long as with the channels first.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def as_image(x: Tensor, covariates: Tensor | None, image: tuple[int, int, int]) -> Tensor:
    """Return ``(N, *x_shape)`` as ``(N, C, H, W)``, with covariates ``(N, K)`` appended as K constant channels."""
    x = x.reshape(-1, *image)
    if covariates is not None:
        x = torch.cat([x, covariates[..., None, None].expand(*covariates.shape, *image[1:])], 1)
    return quick_layout(x)
