"""Diagnostics beside the bounds, each on the first data of a set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrovae.bounds.annealed_importance import ais, bdmc
from pyrovae.bounds.multi_sample import VARIANCE
from pyrovae.diagnostics.inference_gaps import gaps
from pyrovae.diagnostics.latent_use import latents
from pyrovae.evaluation.batch_scoring import Inputs
from pyrovae.evaluation.resume import Journal
from pyrovae.programs import Program, take_rows
from pyrovae.results import Annealing, CheckResults, Estimate, Gaps, Latents, Sandwich
from pyrovae.runtime.annotations import CheckedFields, NonNegativeInt, PositiveInt
from pyrovae.runtime.errors import first_line

R = TypeVar("R")

MIN_LADDER = 1000  # particles from which L_K may stand for log p(x); below, `gaps` estimates a bound of its own
CHAINS = ("num_chains", "num_temperatures", "num_leapfrog")


@dataclass(frozen=True)
class Checks(CheckedFields):
    """Diagnostics that `evaluate` runs beside the bounds, each on the first data of the set; 0 data skip one.

    The texts below are also the help of ``pyrovae evaluate``.

    Attributes:
        num_annealed: data for annealed importance sampling (AIS), a bound that is tight where L_K is not; 0: none.
        num_simulated: data simulated from the model, for which AIS has an upper bound beside it (BDMC); 0: none.
        num_refined: data for which the gap between the ELBO and the tightest bound is split into its parts; 0: none.
        num_encoded: data by which latent units are found active or not, and I(x; z) is estimated; 0: none.
        num_chains: chains of AIS for each datum.
        num_temperatures: temperatures of AIS, from the guide to the joint density.
        num_leapfrog: leapfrog steps of a transition of AIS.
        refit_epochs: passes over the refined data in which the guide is fitted to them; 0: none.

    Raises:
        ValueError: if a number is out of range.

    """

    num_annealed: NonNegativeInt = 100
    num_simulated: NonNegativeInt = 100
    num_refined: NonNegativeInt = 100
    num_encoded: NonNegativeInt = 1000
    num_chains: PositiveInt = 16
    num_temperatures: PositiveInt = 30
    num_leapfrog: PositiveInt = 5
    refit_epochs: NonNegativeInt = 50


def run_checks(
    model: Program,
    guide: Program,
    inputs: Inputs,
    checks: Checks,
    *,
    tightest: Estimate,
    is_certified: bool,
    density: str,
    per_datum: Mapping[str, Tensor],
    journal: Journal,
    show_progress: bool,
) -> CheckResults:
    """Run the checks on the first rows of the data, and skip a check that raises an error, with its first line.

    A finished check is saved in the journal and not run again. A skipped check is not saved.

    Args:
        model: a Pyro program.
        guide: another.
        inputs: the data, the modules and the seed.
        checks: numbers of data and options.
        tightest: the largest rung over all data.
        is_certified: whether bounds hold with 95 % confidence over the draws.
        density: the estimated density, such as ``p(x | c)``.
        per_datum: values ``(N,)`` by label, nats, and Monte Carlo variances ``(C, N)``.
        journal: progress file.
        show_progress: whether to show progress bars.

    """
    rung, variances = per_datum[tightest.label], per_datum[VARIANCE + tightest.label]
    args, name, num_data, asked = inputs.args, inputs.loader.name, len(rung), asdict(checks)
    common: dict[str, Any] = {"seed": inputs.seed, "modules": inputs.modules, "show_progress": show_progress}
    left_out: dict[str, str] = {}

    def run(title: str, num: int, check: Callable[..., R], record: type[R]) -> R | None:
        """Return the record of a check of the first data, saved or new; None if the check is skipped."""
        if num == 0:
            return None
        result = journal.load_record(title, record, asked=asked)
        if result is None:
            try:
                first_rows = take_rows(args, torch.arange(min(num, num_data)))
                result = check(model, guide, *(x.to(inputs.device) for x in first_rows), **common)
            except Exception as error:  # the bounds are complete and are kept
                left_out[title] = first_line(error).removeprefix("ValueError: ")
                return None
            journal.save_record(title, result, asked=asked)
        return result

    def first(num: int) -> str:
        return name if num == num_data else f"the first {num} of {name}"

    chains = {option: getattr(checks, option) for option in CHAINS}
    annealing = run("AIS", checks.num_annealed, functools.partial(ais, **chains), Annealing)
    sandwich = run("BDMC", checks.num_simulated, functools.partial(bdmc, **chains), Sandwich)
    same_data = higher = None
    if annealing is not None:
        num = annealing.num_data
        same_data = Estimate.over_data(tightest.name, tightest.num_particles, rung[:num], variances[:, :num])
        higher = annealing.compare_with(tightest.label, rung[:num], se_monte_carlo=same_data.se_monte_carlo)
        certified = annealing.certified and is_certified
        annealing = replace(annealing, data=first(num), density=density, certified=certified)
    if sandwich is not None:
        sandwich = replace(sandwich, density=density)

    def split(model: Program, guide: Program, x: Tensor, *covariates: Any, **options: Any) -> Gaps:
        num = len(x)
        if annealing is not None and higher is not None and higher.num_data >= num and higher.exceeds(0.0):
            noise = annealing.per_datum.get("AIS variance")
            options |= {"bound": annealing.per_datum["AIS"][:num], "bound_label": "AIS"}
            options["bound_variances"] = None if noise is None else noise[:num]
        elif tightest.num_particles >= MIN_LADDER:
            options |= {"bound": rung[:num], "bound_label": tightest.label, "bound_variances": variances[:, :num]}
        result = gaps(model, guide, x, *covariates, refit_epochs=checks.refit_epochs, **options)
        return replace(result, data=first(num), density=density)

    return CheckResults(
        annealing=annealing,
        same_data=same_data,
        higher=higher,
        sandwich=sandwich,
        gaps=run("gaps", checks.num_refined, split, Gaps),
        latents=run("latent units", checks.num_encoded, latents, Latents),
        left_out=left_out,
    )
