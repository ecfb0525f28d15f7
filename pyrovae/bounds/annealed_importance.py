"""Annealed importance sampling and bidirectional Monte Carlo.

The first is a lower bound on log p(x) that stays tight where importance sampling is not. The second encloses log p(x)
of data simulated from the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.hmc import Kernel, frozen_kernel
from pyrovae.bounds.multi_sample import VARIANCE, effective_sample_size, log_mean_exp, monte_carlo_variances
from pyrovae.importance import (
    find_low_precision,
    iter_batches,
    rows_per_chunk,
    score_one_particle,
    scoring_context,
    simulate,
)
from pyrovae.programs import ModelGuide, Program, find_modules
from pyrovae.results import Annealing, AnnealingSettings, Estimate, Sandwich
from pyrovae.results.estimates import require_possible
from pyrovae.runtime.annotations import CheckedFields, PositiveInt, checked, merge_options
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

LOST = "lost weights"  # name of the number of lost weights of each datum


@dataclass(frozen=True)
class AnnealingOptions(CheckedFields):
    """How chains of annealed importance sampling are run.

    Attributes:
        num_chains: K, chains of each datum.
        num_temperatures: T, steps from the start to p(x, z); 1 is importance sampling with K draws.
        num_leapfrog: leapfrog steps of each transition.
        batch_size: data whose chains run together; None for a size by the elements of a datum.
        modules: modules of the programs that cannot be found from the programs.
        show_progress: show a progress bar.

    Raises:
        ValueError: if a number is not an integer >= 1.

    """

    num_chains: PositiveInt = 16
    num_temperatures: PositiveInt = 30
    num_leapfrog: PositiveInt = 5
    batch_size: PositiveInt | None = None
    modules: Iterable[nn.Module] = ()
    show_progress: bool = False

    def settings(self, seed: int) -> AnnealingSettings:
        """Return the numbers that the results report."""
        return AnnealingSettings(self.num_chains, self.num_temperatures, self.num_leapfrog, seed)


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
    are then frozen. Weights, modes and random streams are restored afterwards; each batch has its own stream.

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
    values, variances, fields = run_batches(
        anneal, "annealing", model, guide, (x, *covariates), num_data=len(x), seed=seed, options=options
    )
    noise = variances["AIS"]
    if len(noise):
        values["AIS variance"] = noise[noise.sum(1).argmax()]
    acceptance, lowest_acceptance = mean_and_lowest(values["acceptance"])
    return Annealing(
        bound=Estimate.over_data("AIS", options.num_chains, values["AIS"], noise),
        acceptance=acceptance,
        lowest_acceptance=lowest_acceptance,
        ess=values["ESS"].mean().item(),
        lowest_ess=values["ESS"].min().item(),
        num_not_finite=int((~values["AIS"].isfinite()).sum()),
        **fields,
    )


@checked
def bdmc(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_data: PositiveInt | None = None,
    seed: int = 0,
    options: AnnealingOptions | None = None,
    **keywords: Any,
) -> Sandwich:
    """Enclose log p(x) of data that are simulated from the model, to see how tight AIS is.

    ``log (1/K) sum_k w_k <= log p(x) <= -log (1/K) sum_k 1 / v_k``, each in expectation

    z is drawn from the prior and x from p(x | z), so that z is a draw of the posterior p(z | x). w are the weights of
    `ais`; v are the weights of chains that start at z and take the same frozen transitions in the opposite order. The
    pilot that finds the transitions sees x, but never z.

    The bounds hold for the simulated data. The given data are only a template: of the shape of x and of the
    covariates. If the bounds are close, and the given data are alike, then `ais` is tight on them too.

    *Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani, Adams 2015)*,
    https://arxiv.org/abs/1511.02543

    Args:
        model: a Pyro program called with ``(x, *covariates)``; see `pyrovae.programs` for the contract. x must be
            observed as it is given, ``obs=x``.
        guide: another.
        x: ``(B, ...)``, a template.
        covariates: tensors that travel with x along the data plate; they are used as given.
        num_data: number of simulated data, which take the covariates of the rows in order, from the first again after
            the last; B if None.
        seed: seed of the random streams.
        options: chains, temperatures and the other fields of `AnnealingOptions`.
        keywords: fields of `AnnealingOptions`, which override ``options``.

    Returns:
        Both bounds and their paired difference in nats per datum, with standard errors. Monte Carlo errors are over
        the chains, at fixed x and z.

    Raises:
        ValueError: if a number is not positive, the programs break their contract, or data cannot be simulated from the
            model (see `pyrovae.importance.simulation`).
        TypeError: if a keyword is not an option.

    Example:
        >>> print(bdmc(vae.model, vae.guide, x[:100]))

    """
    options = merge_options(options, AnnealingOptions, keywords, function="bdmc")
    total = len(x) if num_data is None else num_data
    values, variances, fields = run_batches(
        enclose, "enclosing", model, guide, (x, *covariates), num_data=total, seed=seed, options=options
    )
    gap, noise = values["BDMC"] - values["AIS"], variances["AIS"] + variances["BDMC"]
    acceptance, lowest = mean_and_lowest(values["acceptance"])
    reverse_acceptance, lowest_reverse = mean_and_lowest(values["reverse acceptance"])
    return Sandwich(
        lower=Estimate.over_data("AIS", options.num_chains, values["AIS"], variances["AIS"]),
        upper=Estimate.over_data("BDMC", options.num_chains, values["BDMC"], variances["BDMC"]),
        gap=Estimate.over_data("BDMC - AIS", options.num_chains, gap, noise),
        acceptance=acceptance,
        reverse_acceptance=reverse_acceptance,
        lowest_acceptance=None if lowest is None or lowest_reverse is None else min(lowest, lowest_reverse),
        num_not_finite=int((~gap.isfinite()).sum()),
        **fields,
    )


def anneal(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> dict[str, Tensor]:
    """Run the chains of one batch of data.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: ``(B,)``, rows of the data.
        settings: number of chains, temperatures and leapfrog steps.
        number: number of the batch, which chooses its random streams.

    Returns:
        Bound, acceptance and effective chains, each ``(B,)`` by name, and Monte Carlo variances; see `lower_bound`.

    """
    with forked_random(stream_seed(settings.seed, "ais", number), rows.device):
        score_one_particle(programs, args, rows, checked=True)  # raises for data outside the support
    kernel = frozen_kernel(programs, args, rows, settings, number=number)
    return lower_bound(kernel, settings, number=number)


def lower_bound(kernel: Kernel, settings: AnnealingSettings, *, number: int) -> dict[str, Tensor]:
    """Run chains from the start to the posterior, with frozen transitions.

    Args:
        kernel: the transitions.
        settings: number of chains, and the seed.
        number: number of the batch, which chooses its random stream.

    Returns:
        By name ``(B,)``: the bound "AIS" in nats, "acceptance", the effective number of chains "ESS" and the number of
        lost weights; and ``(C, B)`` the variance of the bound over the chains, after `VARIANCE`.

    """
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


def enclose(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> dict[str, Tensor]:
    """Run chains in both directions on data that are simulated for one batch.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs; the simulated data take the place of the first.
        rows: ``(B,)``, rows of the covariates.
        settings: number of chains, temperatures and leapfrog steps.
        number: number of the batch, which chooses its random streams.

    Returns:
        The values of `lower_bound`, and the upper bound "BDMC" with its variance and "reverse acceptance".

    """
    with forked_random(stream_seed(settings.seed, "simulate", number), rows.device):
        args, z = simulate(programs, args, rows)
        rows = torch.arange(len(rows), device=rows.device)
        score_one_particle(programs, args, rows, checked=True)  # raises if the guide draws outside the prior's support
    kernel = frozen_kernel(programs, args, rows, settings, number=number)
    lower = lower_bound(kernel, settings, number=number)
    with forked_random(stream_seed(settings.seed, "bdmc", number), rows.device):
        u = kernel.path.space.flatten_prior(z)
        log_weights, acceptance = kernel.backward(u.repeat(settings.num_chains, 1, 1))
    lost = log_weights.isnan()
    inverse = -log_weights.masked_fill(lost, math.inf)
    return lower | {
        "BDMC": -log_mean_exp(inverse),
        VARIANCE + "BDMC": monte_carlo_variances(inverse, settings.num_chains),
        "reverse acceptance": acceptance,
        LOST: lower[LOST] + lost.sum(0),
    }


def run_batches(
    function: Callable[..., dict[str, Tensor]],
    title: str,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    num_data: int,
    seed: int,
    options: AnnealingOptions,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Run `anneal` or `enclose` on all batches.

    Args:
        function: one of the two.
        title: of the progress bar.
        model: a Pyro program called with the arguments.
        guide: another.
        args: arguments of the programs, the data first.
        num_data: N, from which the batches are cut; rows beyond the data start again at the first.
        seed: seed of the random streams.
        options: chains, temperatures and sizes.

    Returns:
        Values ``(N,)`` by name, Monte Carlo variances ``(C, N)`` by name, and the fields that `Annealing` and
        `Sandwich` share, the values among them.

    """
    settings = options.settings(seed)
    parts, done = [], 0
    with (
        scoring_context(model, guide, args, modules=options.modules) as programs,
        torch.no_grad(),
        progress(title, num_data, show_progress=options.show_progress, unit="data") as advance,
    ):
        device = args[0].device
        size = options.batch_size or max(1, rows_per_chunk(programs, device, gradients=True) // settings.num_chains)
        for number, rows in enumerate(iter_batches(programs, num_data, batch_size=size)):
            part = function(programs, args, (rows % len(args[0])).to(device), settings, number=number)
            parts.append({name: value.cpu() for name, value in part.items()})
            done += len(rows)
            advance(done)
    values = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
    variances = {name: values.pop(VARIANCE + name) for name in list(values) if VARIANCE + name in values}
    if programs.base_measure == "counting" and programs.unnormalized is None:
        require_possible(Estimate.over_data("AIS", settings.num_chains, values["AIS"], variances["AIS"]))
    fields: dict[str, Any] = {
        "num_lost": int(values.pop(LOST).sum()),
        "settings": settings,
        "num_data": num_data,
        "per_datum": values,
        "unnormalized": programs.unnormalized,
        "certified": find_low_precision(find_modules(model, guide, given=options.modules), args) is None,
    }
    return values, variances, fields


def mean_and_lowest(acceptance: Tensor) -> tuple[float | None, float | None]:
    """Return mean and minimum over the data, None where there were no transitions."""
    return (None, None) if acceptance.isnan().any() else (acceptance.mean().item(), acceptance.min().item())
