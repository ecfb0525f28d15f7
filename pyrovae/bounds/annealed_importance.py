"""Annealed importance sampling: a lower bound on log p(x) that stays tight where importance sampling is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.hmc import Kernel
from pyrovae.bounds.multi_sample import effective_sample_size, log_mean_exp, monte_carlo_variances
from pyrovae.bounds.pilot import batch_of, frozen_kernel
from pyrovae.importance import iter_batches, score_one_particle, scoring_context
from pyrovae.programs import ModelGuide, Program
from pyrovae.results import Annealing, AnnealingSettings, Estimate
from pyrovae.results.estimates import require_possible
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

VARIANCE, LOST = "variance of ", "lost weights"


def ais(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_chains: int = 16,
    num_temperatures: int = 30,
    num_leapfrog: int = 5,
    from_prior: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    modules: Iterable[nn.Module] = (),
    show_progress: bool = False,
) -> Annealing:
    """Estimate log p(x) of each datum by chains that walk from q(z | x) to the posterior.

    ``log (1/K) sum_k w_k`` with ``log w = sum_t (1/T) (log p(x, u_{t-1}) - log q(u_{t-1} | x))`` and u_t from u_{t-1}
    by a transition that leaves ``q^(1 - t/T) p^(t/T)`` invariant; u is z on an unconstrained scale.

    ``E w = p(x)`` exactly, whatever the chains do, so that the bound is a lower one in expectation. It is not always
    above L_K: print both. Transitions are Hamiltonian, their step sizes found by a pilot run with draws of its own and
    then frozen. Values of weights, modes and random streams are afterwards as before. Batch i draws from the stream
    (seed, i). A single temperature is importance sampling with K draws.

    *Annealed importance sampling (Neal 2001)*, https://arxiv.org/abs/physics/9803008

    *On the quantitative analysis of decoder-based generative models (Wu, Burda, Salakhutdinov, Grosse 2017)*,
    https://arxiv.org/abs/1611.04273

    Args:
        model: a Pyro program called with ``(x, *covariates)``; see `pyrovae.programs` for the contract.
        guide: another.
        x: ``(B, ...)``, the data.
        covariates: what travels with x along the data plate.
        num_chains: K, chains of each datum.
        num_temperatures: T, steps from the start to p(x, z).
        num_leapfrog: leapfrog steps of each transition.
        from_prior: whether chains start from p(z) instead, which takes many more temperatures.
        seed: of the random streams.
        batch_size: data whose chains run together; chosen by the size of a datum if None.
        modules: those used by the programs that cannot be found from them.
        show_progress: whether progress is shown.

    Returns:
        The bound in nats per datum, with standard errors, acceptance, effective chains and the values per datum.

    Raises:
        ValueError: if a number is not positive, the pair breaks its contract, or the chains do not fit into memory.

    Example:
        >>> annealing = ais(vae.model, vae.guide, x)
        >>> print(annealing.compare_with("L_5000", evaluation.per_datum["L_5000"]))

    """
    settings = AnnealingSettings(num_chains, num_temperatures, num_leapfrog, from_prior, seed)
    per_datum = in_batches(
        anneal,
        "annealing",
        model,
        guide,
        (x, *covariates),
        num_data=len(x),
        settings=settings,
        batch_size=batch_size,
        modules=modules,
        show_progress=show_progress,
    )
    lost, ess = per_datum.pop(LOST), per_datum["ESS"]
    variances = per_datum.pop(VARIANCE + "AIS")
    if len(variances):
        per_datum["AIS variance"] = variances[variances.sum(1).argmax()]
    acceptance, lowest_acceptance = mean_and_lowest(per_datum["acceptance"])
    return Annealing(
        bound=Estimate.over_data("AIS", num_chains, per_datum["AIS"], variances),
        acceptance=acceptance,
        lowest_acceptance=lowest_acceptance,
        ess=ess.mean().item(),
        lowest_ess=ess.min().item(),
        num_not_finite=int((~per_datum["AIS"].isfinite()).sum()),
        num_lost=int(lost.sum()),
        settings=settings,
        num_data=len(x),
        per_datum=per_datum,
    )


def anneal(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> dict[str, Tensor]:
    """Return bound, acceptance and effective chains ``(B,)`` of some rows, the batch of that number."""
    with forked_random(stream_seed(settings.seed, "ais", number), rows.device):
        score_one_particle(programs, args, rows, checked=True)  # refuses data outside the support
    kernel = frozen_kernel(programs, args, rows, settings, number=number)
    return lower(kernel, settings, number=number)


def lower(kernel: Kernel, settings: AnnealingSettings, *, number: int) -> dict[str, Tensor]:
    """Return what `anneal` does, for a kernel that is already there."""
    with forked_random(stream_seed(settings.seed, "ais", number), kernel.scale.device):
        log_weights, acceptance = kernel.forward(settings.num_chains)
    lost = log_weights.isnan()
    log_weights = log_weights.masked_fill(lost, -math.inf)
    return {
        "AIS": log_mean_exp(log_weights),
        VARIANCE + "AIS": monte_carlo_variances(log_weights, settings.num_chains),
        "acceptance": acceptance,
        "ESS": effective_sample_size(log_weights).nan_to_num(0.0),
        LOST: lost.sum(0),
    }


def in_batches(
    run: Callable[..., dict[str, Tensor]],
    title: str,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    num_data: int,
    settings: AnnealingSettings,
    batch_size: int | None,
    modules: Iterable[nn.Module],
    show_progress: bool,
) -> dict[str, Tensor]:
    """Return what `anneal`, or another function with its arguments, gives for so many data: ``(N,)`` by name."""
    found, done = [], 0
    with (
        scoring_context(model, guide, args, modules=modules) as programs,
        torch.no_grad(),
        progress(title, num_data, show_progress=show_progress, unit="data") as advance,
    ):
        walked = iter_batches(programs, num_data, batch_size=batch_of(programs, settings, batch_size, args[0].device))
        for number, (rows, count) in enumerate(walked):
            of_batch = run(programs, args, (rows % len(args[0])).to(args[0].device), settings, number=number)
            found.append({name: value[..., :count].cpu() for name, value in of_batch.items()})
            done += count
            advance(done)
    joined = {name: torch.cat([of_batch[name] for of_batch in found], -1) for name in found[0]}
    if programs.base_measure == "counting" and programs.unnormalized is None:
        require_possible(Estimate.over_data("AIS", settings.num_chains, joined["AIS"], joined[VARIANCE + "AIS"]))
    return joined


def mean_and_lowest(acceptance: Tensor) -> tuple[float | None, float | None]:
    """Return mean and minimum over data, None where there were no transitions."""
    return (None, None) if acceptance.isnan().any() else (acceptance.mean().item(), acceptance.min().item())
