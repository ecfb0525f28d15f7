"""Bounds on the validation data during training."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.bounds.evidence import elbo_terms
from pyrovae.bounds.multi_sample import iwae
from pyrovae.data.loader import Loader
from pyrovae.importance import iter_batches, iter_particles, on_device, score_one_particle
from pyrovae.programs import ModelGuide
from pyrovae.runtime.context import forked_random, module_mode, stream_seed, validation
from pyrovae.runtime.distributed import group

VALIDATION_ROWS = 1024  # largest number of rows scored at once
VALIDATION_ELEMENTS = 2**24  # largest number of elements scored at once


@torch.no_grad()
def compute_bounds(
    programs: ModelGuide, loader: Loader, *, num_weighted: int, seed: int, device: torch.device, checked: bool
) -> tuple[float, float, float]:
    """Return reconstruction, KL and L_K of validation data, nats per datum, with the same draws in each call.

    Processes that train together divide the batches among them.

    Args:
        programs: structure of model and guide.
        loader: the data.
        num_weighted: K.
        seed: seed of the draws; each batch has a stream of its own.
        device: device of the computation.
        checked: whether Pyro checks shapes and supports, and NaN is an error.

    """
    processes, args = group(), loader.fixed()
    sums = torch.zeros(3, dtype=torch.float64)
    batch_size = min(VALIDATION_ROWS, max(1, VALIDATION_ELEMENTS // max(1, programs.num_elements)))
    with module_mode(programs.all_modules, training=False), validation(enabled=False):
        for number, rows in enumerate(iter_batches(programs, len(loader), batch_size=batch_size)):
            if number % processes.size == processes.rank:
                with forked_random(stream_seed(seed, "validation", number), device):
                    batch = on_device(args, rows, device)
                    sums += _sum_terms(programs, *batch, num_weighted, checked=checked)
    (sums,) = processes.sum([sums])
    reconstruction, kl, bound = (sums / len(loader)).tolist()
    return reconstruction, kl, bound


def _sum_terms(
    programs: ModelGuide, args: tuple[Tensor, ...], rows: Tensor, num_weighted: int, *, checked: bool
) -> Tensor:
    """Return reconstruction, KL and L_K summed over the rows, ``(3,)``, nats, float64."""
    one = score_one_particle(programs, args, rows, checked=checked, nan_counts=False)
    particles = [one]
    if num_weighted > 1:
        particles = list(iter_particles(programs, args, rows, num_weighted, checked=checked))
    terms = elbo_terms(programs, particles)
    log_weights = torch.cat([batch.log_weights for batch in particles])
    values = (terms.reconstruction, terms.kl, iwae(log_weights)[0])
    return torch.stack([value.sum() for value in values]).cpu().double()
