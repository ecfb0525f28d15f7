"""What is kept of the particles of one batch: a few numbers for each datum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyrovae.bounds.multi_sample import iwae, monte_carlo_variances
from pyrovae.diagnostics import weight_diagnostics
from pyrovae.importance import ParticleBatch

VARIANCE = "variance of "


def batch_statistics(found: Iterator[ParticleBatch], ks: Sequence[int]) -> dict[str, Tensor]:
    """Return the bounds of each datum ``(B,)`` of one batch, their Monte Carlo variances ``(C, B)``, and diagnostics of
    its weights ``(B,)``, on the CPU.
    """
    collected: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for block in found:
        kl = sum(block.kl.values(), torch.zeros_like(block.log_prior))
        for pieces, value in zip(
            collected, (block.log_prior + block.log_likelihood - block.log_guide, block.log_likelihood, kl), strict=True
        ):
            pieces.append((value.cpu() if value.device.type == "mps" else value).double())  # MPS has no float64
    weights, likelihood, kl = (torch.cat(pieces) for pieces in collected)  # each (K, B)
    result = {}
    for name, value in (("ELBO", likelihood - kl), ("reconstruction", likelihood), ("KL", kl)):
        result[name] = value.mean(0)
        result[VARIANCE + name] = monte_carlo_variances(value, 1)
    for k, bound in zip(ks, iwae(weights, ks), strict=True):
        result[f"L_{k}"] = bound
        result[f"{VARIANCE}L_{k}"] = monte_carlo_variances(weights, k)
    return {name: value.cpu() for name, value in (result | weight_diagnostics(weights)).items()}
