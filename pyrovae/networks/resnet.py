"""Residual networks for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from pyrovae.networks.base import Encoder
from pyrovae.networks.conv import ConvDecoder, as_image, convolution, image_shape
from pyrovae.networks.layers import linear
from pyrovae.runtime.annotations import NonNegativeInt, PositiveInt, Shape


class ResNetEncoder(Encoder):
    """torchvision's ResNet-18 from an image to the parameters of its posterior.

    The first layer is a 3 x 3 convolution of stride 1 for the channels of the image, the pooling after it is left out
    and the head replaced, so that images of 8 x 8 pixels are not too small. With ``imagenet_stem=True`` the first layer
    is the original one of stride 2, followed by pooling, which takes about a fifth of the time. Covariates are appended
    to the image as constant channels. Batch normalization makes the output of a datum depend on its minibatch during
    training.

    *Deep residual learning for image recognition (He et al. 2016)*, https://arxiv.org/abs/1512.03385

    Args:
        x_shape: ``(C, H, W)`` or ``(H, W)``, of 4 x 4 pixels or more.
        out_shape: shape of the output for one datum, ``posterior.param_shape``.
        covariate_dim: number of covariates.
        imagenet_stem: first layer and pooling as for ImageNet, which divide height and width by 4.
        pretrained: start from weights learned on ImageNet, except first layer and head; they are downloaded if they are
            not in torch's hub folder. Descriptions leave it out: a run folder holds the weights.

    Raises:
        ValueError: if the data are not images.

    """

    not_described = ("pretrained",)

    def __init__(
        self,
        x_shape: Shape,
        out_shape: Shape,
        *,
        covariate_dim: NonNegativeInt = 0,
        imagenet_stem: bool = False,
        pretrained: bool = False,
    ) -> None:
        super().__init__(x_shape, out_shape, covariate_dim=covariate_dim)
        self.image = image_shape(x_shape, self)
        from torchvision.models import ResNet18_Weights, resnet18

        self.resnet = resnet18(norm_layer=BatchNorm)
        if pretrained:
            self.resnet.load_state_dict(ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True), strict=False)
        num_channels = self.image[0] + covariate_dim
        size, stride = (7, 2) if imagenet_stem else (3, 1)
        self.resnet.conv1 = convolution(num_channels, 64, size=size, stride=stride, bias=False)
        if not imagenet_stem:
            self.resnet.maxpool = nn.Identity()
        self.resnet.fc = linear(self.resnet.fc.in_features, math.prod(out_shape))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """Map ``(N, *x_shape)`` to ``(N, *out_shape)``."""
        return self.resnet(as_image(x, covariates, self.image)).unflatten(-1, self.out_shape)


class ResNetDecoder(ConvDecoder):
    """Residual blocks from a latent variable to the parameters of a likelihood of images.

    A linear layer computes small feature maps; each stage enlarges them (nearest neighbor) and adds two 3 x 3
    convolutions with batch normalization; a 1 x 1 convolution with a bias per pixel is last. Batch normalization makes
    the output for z depend on its minibatch during training.

    *Deep residual learning for image recognition (He et al. 2016)*, https://arxiv.org/abs/1512.03385

    Args:
        latent_dim: D, the number of latent dimensions.
        out_shape: ``(C, H, W, n_params)`` or ``(H, W, n_params)``, ``likelihood.param_shape``.
        covariate_dim: number of covariates, appended to z.
        channels: from the largest feature maps to the smallest.
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
        channels: Sequence[PositiveInt] = (64, 128, 256),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(latent_dim, out_shape, covariate_dim=covariate_dim, channels=channels, activation=activation)

    def stage(self, before: int, after: int, activation: type[nn.Module]) -> list[nn.Module]:
        """Return a residual block."""
        return [ResidualBlock(before, after, activation)]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalization, added to their input.

    If the number of channels changes, they are added to a 1 x 1 convolution of the input.
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


class BatchNorm(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that normalizes a single value per channel by the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)``."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
