"""Bidirectional Monte Carlo: log p(x) between a lower and an upper bound, for data simulated from the model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.bounds.annealed_importance import LOST, VARIANCE, in_batches, lower, mean_and_lowest
from pyrovae.bounds.multi_sample import log_mean_exp, monte_carlo_variances
from pyrovae.bounds.pilot import frozen_kernel
from pyrovae.importance import require_tensor, score_one_particle, simulate
from pyrovae.programs import ModelGuide, Program
from pyrovae.results import AnnealingSettings, Estimate, Sandwich
from pyrovae.runtime.arguments import require_integer
from pyrovae.runtime.context import forked_random, stream_seed


def bdmc(
    model: Program,
    guide: Program,
    x: Tensor,
    *covariates: Any,
    num_data: int | None = None,
    num_chains: int = 16,
    num_temperatures: int = 30,
    num_leapfrog: int = 5,
    from_prior: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    modules: Iterable[nn.Module] = (),
    show_progress: bool = False,
) -> Sandwich:
    """Enclose log p(x) of data that are simulated from the model, to see how tight annealing is.

    ``log (1/K) sum_k w_k <= log p(x) <= -log (1/K) sum_k 1 / v_k``, each in expectation

    z is drawn from the prior and x from p(x | z), so that z is a draw of the posterior p(z | x). w are the weights of
    `ais`; v those of chains that start at z and take the same frozen transitions in the opposite order. The pilot that
    finds them sees x, but never z.

    The bounds hold for the simulated data, not for the given ones, which are but a template: of the shape of x and of
    the covariates. If the sandwich is tight, and the given data are alike, then so is `ais` on them.

    *Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani, Adams 2015)*,
    https://arxiv.org/abs/1511.02543

    Args:
        model: a Pyro program called with ``(x, *covariates)``; see `pyrovae.programs` for the contract. x must be
            observed as it is given, ``obs=x``.
        guide: another.
        x: ``(B, ...)``, a template.
        covariates: what travels with x along the data plate; they are kept.
        num_data: how many data are simulated, with the covariates of the first rows, or of all rows several times; B
            if None.
        num_chains: K, chains of each datum in either direction.
        num_temperatures: T, steps from the start to p(x, z).
        num_leapfrog: leapfrog steps of each transition.
        from_prior: whether the path starts at p(z) instead of q(z | x).
        seed: of the random streams.
        batch_size: data whose chains run together; chosen by the size of a datum if None.
        modules: those used by the programs that cannot be found from them.
        show_progress: whether progress is shown.

    Returns:
        Both bounds and their paired difference in nats per datum, with standard errors. The Monte Carlo errors are
        those of the chains, at fixed x and z.

    Raises:
        ValueError: if a number is not positive, the pair breaks its contract, or data cannot be simulated from the
            model (see `pyrovae.importance.simulation`).

    Example:
        >>> print(bdmc(vae.model, vae.guide, x[:100]))

    """
    settings = AnnealingSettings(num_chains, num_temperatures, num_leapfrog, from_prior, seed)
    if num_data is not None:
        require_integer(num_data, name="num_data")
    require_tensor(x)
    total = len(x) if num_data is None else num_data
    found = in_batches(
        enclose,
        "enclosing",
        model,
        guide,
        (x, *covariates),
        num_data=total,
        settings=settings,
        batch_size=batch_size,
        modules=modules,
        show_progress=show_progress,
    )
    return _sandwich(found, settings)


def enclose(
    programs: ModelGuide, args: tuple[Any, ...], rows: Tensor, settings: AnnealingSettings, *, number: int
) -> dict[str, Tensor]:
    """Return both bounds ``(B,)``, with all that belongs to them, of data simulated for some rows."""
    with forked_random(stream_seed(settings.seed, "simulate", number), rows.device):
        args, z = simulate(programs, args, rows)
        rows = torch.arange(len(rows), device=rows.device)
        score_one_particle(programs, args, rows, checked=True)  # the guide draws inside the support of the prior
    kernel = frozen_kernel(programs, args, rows, settings, number=number)
    below = lower(kernel, settings, number=number)
    with forked_random(stream_seed(settings.seed, "bdmc", number), rows.device):
        u = kernel.path.space.flatten(z)
        log_weights, acceptance = kernel.backward(u.repeat(settings.num_chains, 1, 1))
    lost = log_weights.isnan()
    inverse = -log_weights.masked_fill(lost, math.inf)
    return below | {
        "BDMC": -log_mean_exp(inverse),
        VARIANCE + "BDMC": monte_carlo_variances(inverse, settings.num_chains),
        "reverse acceptance": acceptance,
        LOST: below[LOST] + lost.sum(0),
    }


def _sandwich(per_datum: dict[str, Tensor], settings: AnnealingSettings) -> Sandwich:
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
    )
