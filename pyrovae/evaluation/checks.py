"""What is found out beside the bounds, each on the first data of a set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrovae.bounds.annealed_importance import ais
from pyrovae.bounds.bidirectional import bdmc
from pyrovae.diagnostics.gaps import gaps
from pyrovae.diagnostics.latents import latents
from pyrovae.evaluation.resume import Journal
from pyrovae.programs import Program, take_rows
from pyrovae.results import Annealing, CheckResults, Estimate, Gaps, Latents, Sandwich
from pyrovae.runtime.arguments import require_integer

R = TypeVar("R")

TIGHT = 1000  # particles with which L_K may stand for log p(x); below, the split finds a bound of its own
CHAINS = ("num_chains", "num_temperatures", "num_leapfrog")


def _option(default: int, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Checks:
    """What `evaluate` finds out beside the bounds, and on how many data: the first of the set, 0 for none.

    Attributes:
        num_annealed: data of annealed importance sampling (AIS), a bound that is tight where L_K is not.
        num_simulated: data simulated from the model, for which AIS has an upper bound beside it (BDMC).
        num_refined: data for which the gap between the ELBO and the tightest bound is taken apart.
        num_encoded: data that tell which latent units are in use, and what the code says of x.
        num_chains: of AIS, for each datum.
        num_temperatures: of AIS, from the guide to the joint density.
        num_leapfrog: steps of a transition of AIS.
        refit_epochs: passes over the refined data in which the guide is fitted to them; 0 for none.

    Raises:
        ValueError: if a number is out of range.

    """

    num_annealed: int = _option(100, "data of annealed importance sampling (AIS), tight where L_K is not; 0: none")
    num_simulated: int = _option(100, "data simulated from the model, where AIS meets an upper bound (BDMC); 0: none")
    num_refined: int = _option(100, "data for which the gap from the ELBO to the tightest bound is split; 0: none")
    num_encoded: int = _option(1000, "data that tell which latent units are in use; 0: none")
    num_chains: int = _option(16, "chains of AIS for each datum")
    num_temperatures: int = _option(30, "temperatures of AIS, from the guide to the joint density")
    num_leapfrog: int = _option(5, "leapfrog steps of a transition of AIS")
    refit_epochs: int = _option(50, "passes in which the guide is fitted to the refined data; 0: none")

    def __post_init__(self) -> None:
        """Check the ranges."""
        for option in fields(self):
            require_integer(getattr(self, option.name), name=option.name, least=1 if option.name in CHAINS else 0)


def run_checks(
    model: Program,
    guide: Program,
    args: tuple[Tensor, ...],
    checks: Checks,
    *,
    name: str,
    tightest: Estimate,
    per_datum: Mapping[str, Tensor],
    variances: Tensor,
    draws_rows: bool,
    finished: Journal,
    **common: Any,
) -> CheckResults:
    """Run the checks on the first rows of data; one that a pair does not allow is left out, with the reason.

    A check that is finished is kept, and not run again. A refusal is not: it comes at the start of a check.

    Args:
        model: a Pyro program.
        guide: another.
        args: the data, and what travels with them, on the device.
        checks: what to do.
        name: of the data.
        tightest: the largest rung over all data.
        per_datum: its values ``(N,)``, by label, nats.
        variances: estimates of their Monte Carlo variances ``(C, N)``.
        draws_rows: whether the pair draws rows of the data by itself.
        finished: keeps the checks that are, of these options.
        common: seed, modules and whether progress is shown.

    """
    left_out: dict[str, str] = {}
    rung = per_datum[tightest.label]
    asked = asdict(checks)

    def attempt(what: str, num: int, check: Callable[..., R], kind: type[R]) -> R | None:
        if num == 0:
            return None
        if draws_rows and num < len(args[0]):
            left_out[what] = (
                f"the pair draws rows of the data by itself, so that a check takes all {len(args[0])} data or none; "
                "ask for as many, or write the plate as plate('data', len(x))"
            )
            return None
        found = finished.found(what, kind, asked=asked)
        if found is not None:
            return found
        try:
            found = check(model, guide, *take_rows(args, torch.arange(min(num, len(args[0])))), **common)
        except ValueError as error:
            left_out[what] = str(error).splitlines()[0]
            return None
        finished.keep(what, found, asked=asked)
        return found

    def anneal(check: Callable[..., R]) -> Callable[..., R]:
        return functools.partial(check, **{name: getattr(checks, name) for name in CHAINS})

    annealing = attempt("AIS", checks.num_annealed, anneal(ais), Annealing)
    sandwich = attempt("BDMC", checks.num_simulated, anneal(bdmc), Sandwich)
    same_data = higher = None
    if annealing is not None:
        num = annealing.num_data
        same_data = Estimate.over_data(tightest.name, tightest.num_particles, rung[:num], variances[:, :num])
        higher = annealing.compare_with(tightest.label, rung[:num])
        annealing = replace(annealing, data=_first(name, num, len(rung)))

    def split(*pair_and_data: Any, **options: Any) -> Gaps:
        num = len(pair_and_data[2])
        use_ais = higher is not None and higher.num_data >= num and (higher.value or 0.0) > 2 * (higher.se or 0.0)
        bound: dict[str, Any] = {}
        if use_ais and annealing is not None:
            noise = annealing.per_datum.get("AIS variance")
            bound = {"bound": annealing.per_datum["AIS"][:num], "bound_label": "AIS"}
            bound["bound_variances"] = None if noise is None else noise[:num]
        elif tightest.num_particles >= TIGHT:
            bound = {"bound": rung[:num], "bound_label": tightest.label, "bound_variances": variances[:, :num]}
        options |= bound
        found = gaps(*pair_and_data, refit_epochs=checks.refit_epochs, **options)
        return replace(found, data=_first(name, num, len(rung)))

    return CheckResults(
        annealing=annealing,
        same_data=same_data,
        higher=higher,
        sandwich=sandwich,
        gaps=attempt("gaps", checks.num_refined, split, Gaps),
        latents=attempt("latent units", checks.num_encoded, latents, Latents),
        left_out=left_out,
    )


def _first(name: str, num: int, total: int) -> str:
    return name if num == total else f"the first {num} of {name}"
