"""Annealed importance sampling: a lower bound on log p(x) that stays tight where importance sampling is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.hmc import Kernel, frozen_kernel
from pyrovae.bounds.multi_sample import VARIANCE, effective_sample_size, log_mean_exp, monte_carlo_variances
from pyrovae.importance import find_low_precision, iter_batches, rows_per_chunk, score_one_particle, scoring_context
from pyrovae.programs import ModelGuide, Program, find_modules
from pyrovae.results import Annealing, AnnealingSettings, Estimate
from pyrovae.results.estimates import require_possible
from pyrovae.runtime.annotations import PositiveInt, checked, convert_fields, merge_options
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

LOST = "lost weights"  # name of the number of lost weights of each datum


@dataclass(frozen=True)
class AnnealingOptions:
    """How chains of annealed importance sampling are run.

    Attributes:
        num_chains: K, chains of each datum.
        num_temperatures: T, steps from the start to p(x, z); 1 is importance sampling with K draws.
        num_leapfrog: leapfrog steps of each transition.
        from_prior: start the chains from p(z) instead of q(z | x), which takes many more temperatures.
        batch_size: data whose chains run together; None for a size by the elements of a datum.
        modules: modules of the programs that cannot be found from the programs.
        show_progress: show a progress bar.

    Raises:
        ValueError: if a number is not an integer >= 1.

    """

    num_chains: PositiveInt = 16
    num_temperatures: PositiveInt = 30
    num_leapfrog: PositiveInt = 5
    from_prior: bool = False
    batch_size: PositiveInt | None = None
    modules: Iterable[nn.Module] = ()
    show_progress: bool = False

    def __post_init__(self) -> None:
        """Convert the options and check their ranges."""
        convert_fields(self)

    def settings(self, seed: int) -> AnnealingSettings:
        """Return the numbers that the results report."""
        return AnnealingSettings(self.num_chains, self.num_temperatures, self.num_leapfrog, self.from_prior, seed)


@checked
def ais(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    seed: int = 0,
    options: AnnealingOptions | None = None,
    **keywords: Any,
) -> Annealing:
    """Estimate log p(x) of each datum by chains from q(z | x) to the posterior.

    ``log (1/K) sum_k w_k`` with ``log w = sum_t (1/T) (log p(x, u_{t-1}) - log q(u_{t-1} | x))`` and u_t from u_{t-1}
    by a transition that leaves ``q^(1 - t/T) p^(t/T)`` invariant; u is z on an unconstrained scale.

    ``E w = p(x)`` exactly for any transitions, so that the bound is a lower bound in expectation. It is not always
    above L_K: print both. Transitions are Hamiltonian; a pilot run with draws of its own finds their step sizes, which
    are then frozen. Weights, modes and random streams are restored afterwards. Batch i draws from the stream (seed, i).

    *Annealed importance sampling (Neal 2001)*, https://arxiv.org/abs/physics/9803008

    *On the quantitative analysis of decoder-based generative models (Wu, Burda, Salakhutdinov, Grosse 2017)*,
    https://arxiv.org/abs/1611.04273

    Args:
        model: a Pyro program called with ``(x, *covariates)``; see `pyrovae.programs` for the contract.
        guide: another.
        x: ``(B, ...)``, the data.
        covariates: tensors that travel with x along the data plate.
        seed: seed of the random streams.
        options: chains, temperatures and the other fields of `AnnealingOptions`.
        keywords: fields of `AnnealingOptions`, which override ``options``.

    Returns:
        The bound in nats per datum, with standard errors, acceptance, effective chains and the values per datum.

    Raises:
        ValueError: if a number is not positive, or the programs break their contract.
        TypeError: if a keyword is not an option.

    Example:
        >>> annealing = ais(vae.model, vae.guide, x, num_chains=8)
        >>> print(annealing.compare_with("L_5000", evaluation.per_datum["L_5000"]))

    """
    options = merge_options(options, AnnealingOptions, keywords, function="ais")
    settings = options.settings(seed)
    per_datum, fields = run_batches(
        anneal, "annealing", model, guide, (x, *covariates), num_data=len(x), settings=settings, options=options
    )
    lost, ess = per_datum.pop(LOST), per_datum["ESS"]
    variances = per_datum.pop(VARIANCE + "AIS")
    if len(variances):
        per_datum["AIS variance"] = variances[variances.sum(1).argmax()]
    acceptance, lowest_acceptance = mean_and_lowest(per_datum["acceptance"])
    return Annealing(
        bound=Estimate.over_data("AIS", settings.num_chains, per_datum["AIS"], variances),
        acceptance=acceptance,
        lowest_acceptance=lowest_acceptance,
        ess=ess.mean().item(),
        lowest_ess=ess.min().item(),
        num_not_finite=int((~per_datum["AIS"].isfinite()).sum()),
        num_lost=int(lost.sum()),
        settings=settings,
        num_data=len(x),
        per_datum=per_datum,
        **fields,
    )


def anneal(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> dict[str, Tensor]:
    """Return bound, acceptance and effective chains ``(B,)`` of the rows of one batch."""
    with forked_random(stream_seed(settings.seed, "ais", number), rows.device):
        score_one_particle(programs, args, rows, checked=True)  # raises for data outside the support
    kernel = frozen_kernel(programs, args, rows, settings, number=number)
    return lower_bound(kernel, settings, number=number)


def lower_bound(kernel: Kernel, settings: AnnealingSettings, *, number: int) -> dict[str, Tensor]:
    """Return bound, acceptance and effective chains ``(B,)`` of chains with frozen transitions."""
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


def run_batches(
    function: Callable[..., dict[str, Tensor]],
    title: str,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    num_data: int,
    settings: AnnealingSettings,
    options: AnnealingOptions,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the values ``(N,)`` by name that `anneal`, or a function with its arguments, returns for all batches.

    The second mapping has the fields of the result on an unnormalized model and on certified bounds.
    """
    parts, done = [], 0
    with (
        scoring_context(model, guide, args, modules=options.modules) as programs,
        torch.no_grad(),
        progress(title, num_data, show_progress=options.show_progress, unit="data") as advance,
    ):
        device = args[0].device
        size = options.batch_size or max(1, rows_per_chunk(programs, device, gradients=True) // settings.num_chains)
        for number, (rows, count) in enumerate(iter_batches(programs, num_data, batch_size=size)):
            part = function(programs, args, (rows % len(args[0])).to(device), settings, number=number)
            parts.append({name: value[..., :count].cpu() for name, value in part.items()})
            done += count
            advance(done)
    values = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
    if programs.base_measure == "counting" and programs.unnormalized is None:
        require_possible(Estimate.over_data("AIS", settings.num_chains, values["AIS"], values[VARIANCE + "AIS"]))
    coarse = find_low_precision((*options.modules, *find_modules(model, guide)), args)
    return values, {"unnormalized": programs.unnormalized, "certified": coarse is None}


def mean_and_lowest(acceptance: Tensor) -> tuple[float | None, float | None]:
    """Return mean and minimum over the data, None where there were no transitions."""
    return (None, None) if acceptance.isnan().any() else (acceptance.mean().item(), acceptance.min().item())
