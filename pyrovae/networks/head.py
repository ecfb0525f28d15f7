"""What decoders end with: some parameters for each element of x."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.networks.layers import Initialize, glorot, linear

FEW = 8  # parameters per element, up to which each has weights of its own


class SharedMap(nn.Module):
    """One linear map from features to parameters, shared by all elements, and a bias for each element and parameter.

    Map and bias are one operation, so that of tensors as large as the output, ``(N, E, P)``, there is one.

    Args:
        features: F, of each element.
        elements: E, their number.
        num_params: P, for each element.
        initialize: fills the map.

    """

    def __init__(self, features: int, elements: int, num_params: int, *, initialize: Initialize) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_params, features))
        self.bias = nn.Parameter(torch.zeros(elements, num_params))
        initialize(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, E, F)`` to ``(N, E, P)``."""
        return torch.baddbmm(self.bias, x, self.weight.T.expand(len(x), -1, -1))


def head_width(out_shape: Sequence[int], features: int) -> int:
    """Return the width of the linear layer of a `dense_head`.

    Raises:
        ValueError: if there is no feature.

    """
    if features < 1:
        raise ValueError(f"an element has 1 feature or more, but received features={features}")
    return math.prod(out_shape[:-1]) * (features if is_shared(out_shape) else out_shape[-1])


def is_shared(out_shape: Sequence[int]) -> bool:
    """Tell whether elements have so many parameters that they share the map to them."""
    return len(out_shape) > 1 and out_shape[-1] > FEW


def dense_head(
    width: int,
    out_shape: Sequence[int],
    *,
    features: int,
    activation: type[nn.Module],
    initialize: Initialize = glorot,
    initial_params: Tensor | None = None,
) -> nn.Module:
    """Return the end of a decoder of linear layers, from ``(N, width)`` to ``(N, *out_shape)``, flattened or not.

    Up to 8 parameters per element come from one linear layer. More, such as the 256 logits of a categorical pixel, come
    from a few features per element, a nonlinearity, and a map that all elements share: a linear layer to all of them
    would have 256 times as many weights as a binary image needs.

    Args:
        width: of the last hidden layer.
        out_shape: ``(*x_shape, n_params)``.
        features: per element, where the map is shared.
        activation: class of the nonlinearity between the two.
        initialize: fills the weights.
        initial_params: ``out_shape``, the bias at the start; zero if None.

    """
    head: nn.Module = linear(width, head_width(out_shape, features), initialize)
    if is_shared(out_shape):
        elements = math.prod(out_shape[:-1])
        shared = SharedMap(features, elements, out_shape[-1], initialize=initialize)
        head = nn.Sequential(head, activation(), nn.Unflatten(1, (elements, features)), shared)
    if initial_params is not None:
        set_output(head, initial_params)
    return head


class ImageHead(nn.Module):
    """The end of a decoder of images: a 1 x 1 convolution, and a bias for each element and parameter.

    It works with the channels last, so that the output of images of one channel is contiguous.

    Args:
        features: F, channels of the feature maps.
        image: ``(C, H, W)``.
        num_params: P, per element of the image.
        initial_params: ``(..., P)`` with the elements of the image, the bias at the start; zero if None.

    """

    def __init__(
        self, features: int, image: tuple[int, int, int], num_params: int, *, initial_params: Tensor | None = None
    ) -> None:
        super().__init__()
        self.image, self.num_params = image, num_params
        channels, height, width = image
        self.map = SharedMap(features, height * width, channels * num_params, initialize=glorot)
        if initial_params is not None:
            set_output(self, initial_params)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, F, H, W)`` to ``(N, C, H, W, P)``."""
        out = self.map(x.flatten(2).mT)  # (N, H * W, C * P)
        return out.unflatten(2, (-1, self.num_params)).unflatten(1, self.image[1:]).movedim(3, 1)


def output_bias(layer: nn.Module) -> nn.Parameter:
    """Return the bias of the end of a decoder, of any shape."""
    last: Any = layer.map if isinstance(layer, ImageHead) else layer[-1] if isinstance(layer, nn.Sequential) else layer
    return last.bias


@torch.no_grad()
def set_output(layer: nn.Module, params: Tensor) -> None:
    """Set the bias of the end of a decoder to parameters ``(*x_shape, n_params)``, its output where features are 0."""
    if isinstance(layer, ImageHead):
        params = params.reshape(*layer.image, layer.num_params).movedim(0, 2)  # (H, W, C, P)
    bias = output_bias(layer)
    bias.copy_(params.reshape(bias.shape))
