"""Particles: draws of the guide with their log-probabilities under model and guide.

Every bound and every diagnostic is a function of these numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.data.loader import Loader
from pyrovae.importance.chunks import iter_batches
from pyrovae.importance.particle_batches import iter_particles, score_model, score_one_particle
from pyrovae.programs import ModelGuide, Program, find_modules, inspected_programs
from pyrovae.programs.layout import sum_over_sites
from pyrovae.results import Particles
from pyrovae.runtime import memory
from pyrovae.runtime.annotations import PositiveInt, checked
from pyrovae.runtime.context import (
    forked_random,
    frozen_unremarked,
    full_precision,
    module_mode,
    validation,
)


@checked
def particles(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_particles: PositiveInt,
    modules: Iterable[nn.Module] = (),
) -> Particles:
    """Draw particles from the guide and score them, each by itself and free of plate and scale factors.

    Modules are in evaluation mode meanwhile, and no gradients are kept. Draws come from torch's default stream.

    Args:
        model: a Pyro program called with ``(x, *covariates)``.
        guide: another.
        x: ``(B, ...)``, the data.
        covariates: further arguments, with rows along the data plate.
        num_particles: K, draws per datum.
        modules: modules of the programs that cannot be found from them.

    Returns:
        z of every latent site and log p(z), log p(x | z), log q(z | x), each ``(K, B)`` in nats and float64.

    Raises:
        ValueError: if K is not positive, the programs break the contract (see `pyrovae.programs`), or the particles do
            not fit into memory.

    Example:
        >>> record = particles(vae.model, vae.guide, x, num_particles=5000)
        >>> record.log_weights.logsumexp(0) - math.log(5000)  # the IWAE bound of each datum

    """
    args = (x, *covariates)
    with scoring_context(model, guide, args, modules=modules) as programs, torch.no_grad():
        per_particle = 24 + 8 * sum(latent.num_elements for latent in programs.latents.values())
        memory.require(
            float(per_particle) * num_particles * len(x),
            what=f"keeping {num_particles} particles of {len(x)} data",
            hint="ask for fewer, or use evaluate, which keeps none",
            device=x.device,
        )
        parts = [
            Particles.concatenate(list(iter_particles(programs, args, rows.to(x.device), num_particles)), 0)
            for rows in iter_batches(programs, len(x), batch_size=len(x))
        ]
        return Particles.concatenate(parts, 1)


@checked
def log_weights(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_particles: PositiveInt,
    modules: Iterable[nn.Module] = (),
) -> Tensor:
    """Return log p(x, z_k) - log q(z_k | x) for draws z_k of the guide.

    The mean over K is the Monte Carlo ELBO, the log-mean-exp the IWAE bound.

    Args:
        model: a Pyro program called with ``(x, *covariates)``.
        guide: another.
        x: ``(B, ...)``, the data.
        covariates: further arguments, with rows along the data plate.
        num_particles: K, draws per datum.
        modules: modules of the programs that cannot be found from them.

    Returns:
        ``(K, B)``, nats, float64.

    Raises:
        ValueError: as for `particles`.

    Example:
        >>> log_weights(vae.model, vae.guide, x, num_particles=64).logsumexp(0) - math.log(64)  # L_64 of each datum

    """
    return particles(model, guide, x, *covariates, num_particles=num_particles, modules=modules).log_weights


@checked
def log_joint(
    model: Program, x: Tensor, *covariates: Any, z: Tensor | Mapping[str, Tensor], modules: Iterable[nn.Module] = ()
) -> Tensor:
    """Return log p(x, z) for given z, differentiable in z and in the parameters.

    Args:
        model: a Pyro program called with ``(x, *covariates)``, whose plate has the length of x.
        x: ``(B, ...)``, the data.
        covariates: further arguments, with rows along the data plate.
        z: ``(B, ...)`` or ``(K, B, ...)`` for the model's only latent site, or a mapping from site to such tensors.
        modules: modules of the program that cannot be found from it.

    Returns:
        ``(B,)`` or ``(K, B)``, nats.

    Raises:
        ValueError: if sites are missing, or the model breaks the contract (see `pyrovae.programs`).

    """
    args = (x, *covariates)
    prior = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    with scoring_context(model, prior, args, modules=modules) as programs:
        values = dict(z) if isinstance(z, Mapping) else dict.fromkeys(programs.latents, z)
        if set(values) != set(programs.latents) or (len(values) > 1 and not isinstance(z, Mapping)):
            raise ValueError(f"z must give a value for each of the latent sites {sorted(programs.latents)}, by name")
        with_particles = _have_particles(programs, values, len(x))
        z = values if with_particles else {name: value.unsqueeze(0) for name, value in values.items()}
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad(), forked_random(0, x.device):
            score_one_particle(programs, args, rows, checked=True)  # refuses data outside the support
        scores = score_model(programs, args, rows, z)
        total = sum_over_sites(scores.prior) + scores.likelihood
        return total if with_particles else total[0]


def _have_particles(programs: ModelGuide, z: Mapping[str, Tensor], num_data: int) -> bool:
    """Return whether z are ``(K, B, ...)``, not ``(B, ...)``; raise a ValueError for any other shapes."""
    shapes = {name: tuple(value.shape) for name, value in z.items()}
    num_axes = {name: len(latent.plate_dims) + latent.event_dim for name, latent in programs.latents.items()}
    leads = {shape[: len(shape) - num_axes[name] + 1] for name, shape in shapes.items()}
    lead = leads.pop()
    if leads or len(lead) not in (1, 2) or lead[-1] != num_data:
        raise ValueError(
            f"z is (B, ...) or (K, B, ...) for B = {num_data} data, alike for all latent sites, but received {shapes}"
        )
    return len(lead) == 2


def find_low_precision(modules: Iterable[nn.Module], args: Iterable[Tensor]) -> str | None:
    """Return a description of the first tensor of modules or arguments with fewer bits than float32, or None."""
    given = ((f"argument {number} of the programs", value) for number, value in enumerate(args))
    for name, value in (*_named_tensors(modules), *given):
        if value.is_floating_point() and value.dtype.itemsize < 4:
            return f"{name} is {value.dtype}, in which a log-probability may be off by a nat"
    return None


@contextlib.contextmanager
def scoring_context(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    modules: Iterable[nn.Module],
) -> Iterator[ModelGuide]:
    """Inspect model and guide, and set the process up for scoring them inside the block.

    Modules are in evaluation mode, matrix products in full precision, and checks are off.

    Args:
        model: a Pyro program called with the arguments.
        guide: another.
        args: arguments of the programs, the data first.
        modules: modules of the programs that cannot be found from them.

    Yields:
        The structure of the programs, which the functions of `pyrovae.importance` take.

    Raises:
        ValueError: if a parameter is not finite, or the programs break the contract (see `pyrovae.programs`).

    """
    Loader(args[0])  # validates the data
    modules = find_modules(model, guide, given=modules)
    _require_finite(modules)
    with (
        full_precision(),
        validation(enabled=False),
        frozen_unremarked(),
        inspected_programs(model, guide, args, modules=modules, nan_counts=True) as programs,
        module_mode(programs.all_modules, training=False),
    ):
        _require_finite(programs.modules)
        yield programs


def _named_tensors(modules: Iterable[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers of modules, with their names in error messages."""
    for module in modules:
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            yield f"{name} of {type(module).__name__}", value


def _require_finite(modules: Iterable[nn.Module]) -> None:
    for name, value in _named_tensors(modules):
        if bad := int((~value.isfinite()).sum()):
            raise ValueError(
                f"{bad} of {value.numel()} values of {name} are NaN or infinite, so that nothing can be computed from "
                "them; load weights from before training went wrong"
            )
