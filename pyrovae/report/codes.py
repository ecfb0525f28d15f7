"""What the posterior says about given data, and what they are given with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from pyrovae.runtime.context import module_mode
from pyrovae.vae import VAE

ROWS = 4096  # data encoded at once


def device_of(vae: VAE) -> torch.device:
    """Return the device that a model lies on."""
    return next(chain(vae.parameters(), vae.buffers()), torch.empty(0)).device


@torch.no_grad()
def codes(vae: VAE, x: Tensor, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of q(z | x) for data ``(N, *x_shape)``, each ``(N, D)``, on the CPU.

    Args:
        vae: the model.
        x: ``(N, *x_shape)``.
        covariates: ``(N, ...)`` each, of a conditional model.

    """
    moments = []
    with module_mode([vae], training=False):
        for args in zip(*(tensor.split(ROWS) for tensor in (x, *covariates)), strict=True):
            q = vae.encode(*(rows.to(device_of(vae)) for rows in args))
            moments.append(torch.stack([q.mean, q.stddev]).cpu().double())
    mean, stddev = torch.cat(moments, 1)
    return mean, stddev


def first_rows(tensor: Tensor, num: int) -> Tensor:
    """Return the first rows of ``(N, ...)``, as many as asked for: after the last one comes the first again."""
    return tensor[torch.arange(num, device=tensor.device) % len(tensor)]


def condition(covariates: Sequence[Tensor], row: int) -> str:
    """Return the covariates of one datum in a word or two: the class of a one-hot row, or at most two numbers.

    Args:
        covariates: ``(N, ...)`` each.
        row: of the datum.

    """
    values = torch.cat([covariate[row].flatten().cpu().double() for covariate in covariates])
    if len(values) > 1 and bool(((values == 0) | (values == 1)).all()) and values.sum() == 1:
        return f"class {int(values.argmax())}"
    numbers = [f"{value:.3g}".replace("-", "\N{MINUS SIGN}") for value in values[:2].tolist()]
    return f"c = {numbers[0]}" if len(values) == 1 else f"({', '.join(numbers)}{', ...' if len(values) > 2 else ''})"
