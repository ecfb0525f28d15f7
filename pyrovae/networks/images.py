"""What the networks of images share: the shape of an image, its size from stage to stage, covariates as channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyrovae.networks.layers import require_training

SMALLEST = 4  # pixels on a side


def image_shape(x_shape: Sequence[int], network: object) -> tuple[int, int, int]:
    """Return ``(C, H, W)`` of images of that shape or of shape ``(H, W)``.

    Raises:
        ValueError: if they are no images, or smaller than 4 x 4.

    """
    if len(x_shape) not in (2, 3) or min(x_shape[-2:]) < SMALLEST:
        raise ValueError(
            f"{type(network).__name__} takes images of shape (C, H, W) or (H, W), of {SMALLEST} x {SMALLEST} pixels or "
            f"more, but received {tuple(x_shape)}; choose networks.MLPEncoder and MLPDecoder for other data"
        )
    channels, height, width = (1, *x_shape)[-3:]
    return channels, height, width


def stage_sizes(image: tuple[int, int, int], stages: int) -> list[tuple[int, int]]:
    """Return ``(H, W)`` before and after each stage that halves it, rounding up."""
    _, height, width = image
    return [(-(-height // 2**stage), -(-width // 2**stage)) for stage in range(stages + 1)]


def require_channels(channels: Sequence[int], *, inputs: int, per_map: int) -> None:
    """Refuse stages without channels, or too many to train.

    Args:
        channels: of each stage.
        inputs: channels of the first.
        per_map: weights from one channel to one of the next.

    """
    if not channels or min(channels) < 1:
        raise ValueError(f"there is one stage or more, each of one channel or more, but received {tuple(channels)}")
    weights = per_map * sum(a * b for a, b in zip((inputs, *channels), channels, strict=False))
    require_training(weights, what=f"convolutions of {tuple(channels)} channels", hint="choose fewer channels")


def quick_layout(x: Tensor) -> Tensor:
    """Return feature maps in the layout that convolutions are quick in: on a CPU with the channels last.

    Convolutions keep the layout of their input. Training took 0.7 times as long as with the channels first.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def as_image(x: Tensor, covariates: Tensor | None, image: tuple[int, int, int]) -> Tensor:
    """Return ``(N, *x_shape)`` as ``(N, C, H, W)``, covariates ``(N, K)`` beside them as K constant channels."""
    x = x.reshape(-1, *image)
    if covariates is None:
        return quick_layout(x)
    return quick_layout(torch.cat([x, covariates[..., None, None].expand(*covariates.shape, *image[1:])], 1))
