"""Bidirectional Monte Carlo: log p(x) between a lower and an upper bound, for data simulated from the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyrovae.bounds.annealed_importance import (
    LOST,
    AnnealingOptions,
    lower_bound,
    mean_and_lowest,
    run_batches,
)
from pyrovae.bounds.hmc import frozen_kernel
from pyrovae.bounds.multi_sample import VARIANCE, log_mean_exp, monte_carlo_variances
from pyrovae.importance import require_tensor, score_one_particle, simulate
from pyrovae.programs import ModelGuide, Program
from pyrovae.results import AnnealingSettings, Estimate, Sandwich
from pyrovae.runtime.annotations import PositiveInt, checked, merge_options
from pyrovae.runtime.context import forked_random, stream_seed


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
    settings = options.settings(seed)
    require_tensor(x)
    total = len(x) if num_data is None else num_data
    per_datum, fields = run_batches(
        enclose, "enclosing", model, guide, (x, *covariates), num_data=total, settings=settings, options=options
    )
    low, high, lost = (per_datum.pop(name) for name in (VARIANCE + "AIS", VARIANCE + "BDMC", LOST))
    gap = per_datum["BDMC"] - per_datum["AIS"]
    acceptance, lowest = mean_and_lowest(per_datum["acceptance"])
    reverse_acceptance, lowest_reverse = mean_and_lowest(per_datum["reverse acceptance"])
    return Sandwich(
        lower=Estimate.over_data("AIS", settings.num_chains, per_datum["AIS"], low),
        upper=Estimate.over_data("BDMC", settings.num_chains, per_datum["BDMC"], high),
        gap=Estimate.over_data("BDMC - AIS", settings.num_chains, gap, low + high),
        acceptance=acceptance,
        reverse_acceptance=reverse_acceptance,
        lowest_acceptance=None if lowest is None or lowest_reverse is None else min(lowest, lowest_reverse),
        num_not_finite=int((~gap.isfinite()).sum()),
        num_lost=int(lost.sum()),
        settings=settings,
        num_data=len(gap),
        per_datum=per_datum,
        **fields,
    )


def enclose(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> dict[str, Tensor]:
    """Return both bounds and acceptances ``(B,)`` of data simulated for the rows of one batch."""
    with forked_random(stream_seed(settings.seed, "simulate", number), rows.device):
        args, z = simulate(programs, args, rows)
        rows = torch.arange(len(rows), device=rows.device)
        score_one_particle(programs, args, rows, checked=True)  # raises if the guide draws outside the prior's support
    kernel = frozen_kernel(programs, args, rows, settings, number=number)
    lower = lower_bound(kernel, settings, number=number)
    with forked_random(stream_seed(settings.seed, "bdmc", number), rows.device):
        u = kernel.path.space.flatten(z)
        log_weights, acceptance = kernel.backward(u.repeat(settings.num_chains, 1, 1))
    lost = log_weights.isnan()
    inverse = -log_weights.masked_fill(lost, math.inf)
    return lower | {
        "BDMC": -log_mean_exp(inverse),
        VARIANCE + "BDMC": monte_carlo_variances(inverse, settings.num_chains),
        "reverse acceptance": acceptance,
        LOST: lower[LOST] + lost.sum(0),
    }
