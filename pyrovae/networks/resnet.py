"""Residual networks for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.networks.base import Decoder, Encoder
from pyrovae.networks.batch_norm import BatchNorm
from pyrovae.networks.conv import Enlarge, convolution
from pyrovae.networks.head import ImageHead
from pyrovae.networks.images import as_image, image_shape, quick_layout, require_channels, stage_sizes
from pyrovae.networks.layers import he, hidden_layers, linear, require_training
from pyrovae.networks.mlp import joined

RESNET18_WEIGHTS = 11.2e6  # without first layer and head
RESNET18_FEATURES = 512


class ResNetEncoder(Encoder):
    """From an image to the parameters of its posterior, by torchvision's ResNet-18.

    Its first layer is a 3 x 3 convolution of stride 1 for the channels of the image, the pooling after it is left out
    and its head replaced, so that images of 8 x 8 pixels still have a size to lose. Covariates are appended to the
    image as constant channels. Batch normalization makes the output of a datum depend on its minibatch while training.

    *Deep residual learning for image recognition (He et al. 2016)*, https://arxiv.org/abs/1512.03385

    Args:
        x_shape: ``(C, H, W)`` or ``(H, W)``, of 4 x 4 pixels or more.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: how many covariates are seen beside an image.
        pretrained: start from weights learned on ImageNet, but for first layer and head. Descriptions leave it out,
            as they do initial parameters: a run folder holds the weights themselves.

    Raises:
        ValueError: if data are no images, training the network does not fit into memory, or pretrained weights cannot
            be fetched.

    """

    def __init__(
        self,
        x_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        pretrained: bool = False,
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim)
        self.image = image_shape(x_shape, self)
        weights = RESNET18_WEIGHTS + RESNET18_FEATURES * math.prod(out_shape)
        require_training(weights, what="a ResNet-18", hint="choose networks.ConvEncoder")
        from torchvision.models import resnet18

        self.resnet = resnet18(norm_layer=BatchNorm)
        if pretrained:
            self.resnet.load_state_dict(_imagenet_weights(), strict=False)
        self.resnet.conv1 = convolution(self.image[0] + covariate_dim, 64, bias=False)
        self.resnet.maxpool = nn.Identity()
        self.resnet.fc = linear(RESNET18_FEATURES, math.prod(out_shape))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, *out_shape)``."""
        return self.resnet(as_image(x, covariates, self.image)).unflatten(-1, self.out_shape)

    @property
    def init_arguments(self) -> dict[str, Any]:
        """What a description holds."""
        return self._arguments

    @init_arguments.setter
    def init_arguments(self, arguments: dict[str, Any]) -> None:
        self._arguments = {name: value for name, value in arguments.items() if name != "pretrained"}


def _imagenet_weights() -> dict[str, Tensor]:
    """Return the weights of torchvision's ResNet-18, fetched if need be."""
    from torchvision.models import ResNet18_Weights

    try:
        return ResNet18_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, HTTPException, RuntimeError) as error:
        url = ResNet18_Weights.IMAGENET1K_V1.url
        raise ValueError(
            f"pretrained weights come from torch's hub folder, {torch.hub.get_dir()}/checkpoints, or else from {url}, "
            f"but they could not be fetched ({error}); put the file there, or use pretrained=False"
        ) from error


class ResNetDecoder(Decoder):
    """From a latent variable to the parameters of a likelihood of images, by residual blocks that enlarge it.

    A linear layer makes small feature maps; each stage enlarges them (nearest neighbor) and adds to them two 3 x 3
    convolutions with batch normalization; a 1 x 1 convolution with a bias for each pixel ends it. Batch normalization
    makes the output for z depend on its minibatch while training.

    *Deep residual learning for image recognition (He et al. 2016)*, https://arxiv.org/abs/1512.03385

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: ``(C, H, W, n_params)`` or ``(H, W, n_params)``, ``likelihood.param_shape``.
        covariate_dim: how many covariates are joined to z.
        channels: from the largest feature maps to the smallest.
        activation: class of the nonlinearity between layers.
        initial_params: ``out_shape``, the bias of the last layer at the start, for instance
            ``likelihood.initial_params(data.train.mean())``; in evaluation mode the output at z = 0 (and covariates of
            0) where the activation is 0 at 0.

    Raises:
        ValueError: if data are no images, a layer has no units, or training the network does not fit into memory.

    """

    def __init__(
        self,
        latent_dim: int,
        out_shape: Sequence[int],
        *,
        covariate_dim: int = 0,
        channels: Sequence[int] = (64, 128, 256),
        activation: type[nn.Module] = nn.ReLU,
        initial_params: Tensor | None = None,
    ) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=covariate_dim, initial_params=initial_params)
        image = image_shape(out_shape[:-1], self)
        downward = (*reversed(channels), *channels[:1])
        require_channels(downward, inputs=0, per_map=2 * 9 + 1)
        sizes = stage_sizes(image, len(channels))[::-1]
        widths = (latent_dim + covariate_dim, channels[-1] * math.prod(sizes[0]))
        self.dense = nn.Sequential(
            *hidden_layers(widths, activation, initialize=he), nn.Unflatten(1, (channels[-1], *sizes[0]))
        )
        self.stages = nn.Sequential()
        for size, before, after in zip(sizes[1:], downward, downward[1:], strict=False):
            self.stages.extend([Enlarge(size), ResidualBlock(before, after, activation)])
        self.head = ImageHead(channels[0], image, out_shape[-1], initial_params=initial_params)

    def output_layer(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def run(self, z: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, latent_dim)`` to ``(N, *out_shape)``."""
        maps = quick_layout(self.dense(joined(z, covariates)))
        return self.head(self.stages(maps)).reshape(-1, *self.out_shape)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalization, added to their input, or to a 1 x 1 convolution of it.

    The 1 x 1 convolution is there where the number of channels changes.

    Args:
        before: channels of the input.
        after: channels of the output.
        activation: class of the nonlinearity.

    """

    def __init__(self, before: int, after: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            convolution(before, after, bias=False),
            BatchNorm(after),
            activation(),
            convolution(after, after, bias=False),
            BatchNorm(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(convolution(before, after, size=1, bias=False), BatchNorm(after))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, before, H, W)`` to ``(N, after, H, W)``."""
        return self.activation(self.shortcut(x) + self.residual(x))
