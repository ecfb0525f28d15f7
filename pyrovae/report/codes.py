"""What the posterior says about given data: moments of the code, and what each latent dimension carries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from pyrovae.sandbox import module_mode
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


def kl_to_standard_normal(mean: Tensor, stddev: Tensor) -> Tensor:
    """Return for each latent dimension the mean over data of KL(N(mean, stddev^2) || N(0, 1)), ``(D,)``, nats.

    Args:
        mean: ``(N, D)``.
        stddev: ``(N, D)``.

    """
    return (0.5 * (mean**2 + stddev**2 - 1) - stddev.log()).mean(0)
