"""The first runs of a pair, which show its structure."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.util import check_site_shape
from torch import Tensor, nn

from pyrovae.compile.trace import first_line
from pyrovae.programs.analytic_kl import latent_sites
from pyrovae.programs.contract import read_contract
from pyrovae.programs.model_guide import PARTICLE_PLATE, Latent, ModelGuide, Program, take_rows
from pyrovae.programs.modules import RunModules, find_modules
from pyrovae.programs.outputs import largest_output
from pyrovae.programs.support import require_common_measure
from pyrovae.programs.validation import nan_in, run_validated, unwrap_own_error
from pyrovae.runtime.context import forked_random, frozen_unremarked, full_precision, validation

logger = logging.getLogger("pyrovae")


def inspect_programs(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    modules: Iterable[nn.Module] = (),
    all_data: Callable[[], tuple[Any, ...]] | None = None,
    device: torch.device | None = None,
    nan_counts: bool = False,
) -> ModelGuide:
    """Run a pair on a few rows, with all checks on and in a random stream of its own, and read off its structure.

    Modules that run are in evaluation mode meanwhile.

    Args:
        model: a Pyro program called with ``args``.
        guide: another, with the same arguments.
        args: the data ``(N, ...)`` and whatever travels with them along the plate, or a few rows of these.
        modules: those that neither run as modules nor can be found from the programs.
        all_data: returns all data where ``args`` holds a few rows; asked if the pair draws its own rows.
        device: to which modules are moved as they run; where they are if None.
        nan_counts: whether a pair that computes NaN is taken as it is, since they will be counted.

    Returns:
        The pair's structure.

    Raises:
        ValueError: if the pair breaks the contract; the text says how and what to do.

    """
    found = tuple({id(module): module for module in (*modules, *find_modules(model, guide))}.values())
    fork, exact = forked_random(0, args[0].device), full_precision()
    with fork, exact, validation(enabled=False), frozen_unremarked(), torch.no_grad(), RunModules(device) as ran:
        traces, used, plates, draws_rows = _first_run(
            model, guide, args, all_data or (lambda: args), nan_counts=nan_counts
        )
        if (nan := nan_in(*traces)) is not None and not nan_counts:
            raise ValueError(nan)
        found = (*found, *(module for module in ran.beside(found) if not _is_stored(module)))
        programs = read_contract(model, guide, found, *traces, plates=plates, draws_rows=draws_rows)
        rows = torch.arange(programs.num_rows, device=args[0].device) % len(used[0])
        broadcasts = _broadcasts(programs, *programs.bind(used, rows), args[0].device)
        programs = replace(programs, broadcasts=bool(broadcasts), nan=nan)
        num_units = max(programs.num_elements, largest_output(programs, used, rows))
        programs = replace(programs, num_units=num_units, all_modules=(*found, *ran.beside(found)))
    if broadcasts is False:
        logger.warning(
            "the pair does not take an axis of particles to the left of its plate; "
            "it is run with its data repeated along the plate instead, which is right but slower"
        )
    return programs


def _is_stored(module: nn.Module) -> bool:
    """Tell whether all tensors of a module are in Pyro's store, where its programs put them by ``pyro.module``."""
    stored = {id(value) for _, value in pyro.get_param_store().named_parameters()}
    return all(id(tensor) in stored for tensor in (*module.parameters(), *module.buffers()))


def run(model: Program, guide: Program) -> tuple[poutine.Trace, poutine.Trace]:
    """Return the guide's trace and that of the model replayed against it."""
    guide_trace = poutine.trace(guide).get_trace()
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()


def _first_run(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    all_data: Callable[[], tuple[Any, ...]],
    *,
    nan_counts: bool,
) -> tuple[tuple[poutine.Trace, poutine.Trace], tuple[Any, ...], set[str], bool]:
    """Run on 2 and then on 3 rows; a pair whose plate does not follow draws its own rows and is given all of them.

    Returns:
        The traces, the arguments of that run, names of the plates that may hold the data, whether rows are drawn.

    """
    failure: Exception | None = None
    plates: set[str] | None = None
    for size in (2, 3):
        example_inputs = take_rows(args, torch.arange(size, device=args[0].device) % len(args[0]))
        try:
            traces = _checked_run(model, guide, example_inputs, nan_counts=nan_counts)
        except Exception as error:  # a program of the user's may raise anything
            failure = error
            break
        following = {frame.name for frame in _frames(traces[1]) if frame.size == size}
        plates = following if plates is None else plates & following
        if not plates or _draws_from_many(traces[1], plates):
            break
    else:
        return traces, example_inputs, plates or set(), False
    try:
        args = all_data()
    except ValueError as error:  # they do not fit
        if failure is None:
            raise
        raise ValueError(f"the pair fails on a few rows ({first_line(failure)}), and {error}") from failure
    rows = _EarlyRows(len(args[0]), args[0].device)
    try:
        traces = _checked_run(rows(model), rows(guide), args, nan_counts=nan_counts)
    except Exception as error:
        failures = [error] if failure is None else [error, failure]  # few rows may fail only because they are few
        told = next(filter(None, map(unwrap_own_error, failures)), failures[-1])
        raise told from told.__cause__
    frames = _frames(traces[1])
    following = {frame.name for frame in frames if frame.size == frame.full_size == len(args[0])}
    if plates and plates & following:
        return traces, args, plates & following, False
    fixed = [frame for frame in frames if frame.size == frame.full_size == len(args[0])]
    if failure is not None and fixed:
        raise ValueError(
            f"the plate {fixed[0].name!r} has {fixed[0].size} rows whatever data it is given, so that the pair cannot "
            f"be run on some of them; write pyro.plate({fixed[0].name!r}, len(x))"
        ) from failure
    return traces, args, {frame.name for frame in frames if frame.size < frame.full_size}, True


def _checked_run(
    model: Program, guide: Program, args: tuple[Any, ...], *, nan_counts: bool
) -> tuple[poutine.Trace, poutine.Trace]:
    def attempt() -> tuple[poutine.Trace, poutine.Trace]:
        traces = run(functools.partial(model, *args), functools.partial(guide, *args))
        drawn, scored = (latent_sites(trace) for trace in traces)
        for name in drawn if drawn.keys() == scored.keys() else ():
            require_common_measure(drawn[name], scored[name])
        _log_probs(*traces)
        return traces

    return run_validated(attempt, args[0].device, nan_counts=nan_counts)


def _log_probs(*traces: poutine.Trace) -> None:
    """Compute all log-probabilities, which also checks shapes and supports."""
    for trace in traces:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN")  # which is told otherwise
            trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and isinstance(site["log_prob"], Tensor) and not _draws_rows(site):
                check_site_shape(site, max_plate_nesting=float("inf"))


def _draws_rows(site: Any) -> bool:
    """Tell whether a site is a plate's draw of its rows."""
    return type(site["fn"]).__name__ == "_Subsample"


def _draws_from_many(trace: poutine.Trace, plates: set[str]) -> bool:
    """Tell whether a plate that followed a few rows in size would draw some of many, as with ``min(128, len(x))``."""
    frames = {frame.name: frame for frame in _frames(trace)}
    sizes = {name: getattr(trace.nodes[name]["fn"], "subsample_size", None) for name in plates if name in trace.nodes}
    return any(size is not None and frames[name].size == frames[name].full_size for name, size in sizes.items())


def _frames(trace: poutine.Trace) -> list[Any]:
    """Return the vectorized plates of all sample sites of a trace."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    return [frame for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]


def _broadcasts(programs: ModelGuide, model: Program, guide: Program, device: torch.device) -> bool | None:
    """Tell whether a particle axis gives, for each particle, what a run without that axis gives; None where all that is
    found is NaN, so that it cannot be told.
    """
    particles = pyro.plate(PARTICLE_PLATE, 2, dim=-1 - programs.nesting)

    def agree() -> bool | None:
        together = run(particles(model), particles(guide))
        _log_probs(*together)
        found: list[bool | None] = []
        for k in range(2):
            values = {name: _particle(latent, together[0].nodes[name], k) for name, latent in programs.latents.items()}
            alone = [poutine.trace(poutine.condition(program, data=values)).get_trace() for program in (guide, model)]
            _log_probs(*alone)
            for many, one in zip(together, alone, strict=True):
                names = [name for name in (*programs.latents, *programs.observed) if name in many.nodes]
                found += [_agree(many.nodes[name], one.nodes[name], k) for name in names]
        return False if False in found else None if None in found else True

    try:
        return run_validated(agree, device, nan_counts=True)
    except Exception:  # whatever fails under an extra axis, the answer is the same
        return False


def _particle(latent: Latent, site: Any, k: int) -> Tensor:
    """Return the value of one particle of a site."""
    value = getattr(site["value"], "_unquantize", site["value"])[k]
    return value if latent.quantize is None else latent.quantize.apply(value)


def _agree(many: Any, one: Any, k: int) -> bool | None:
    """Tell whether a site has the same log-probabilities in both runs; None if there are none that are numbers."""
    a, b = many["unscaled_log_prob"], one["unscaled_log_prob"]
    if a[k].numel() != b.numel() or not torch.allclose(a[k].reshape(b.shape), b, rtol=1e-3, atol=1e-3, equal_nan=True):
        return False
    return None if b.isnan().all() else True


class _EarlyRows(Messenger):
    """Makes plates that draw their own rows take early ones, of which there are so many."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        super().__init__()
        self.num_rows, self.device = num_rows, device

    def _pyro_sample(self, msg: Any) -> None:
        if _draws_rows(msg) and msg["value"] is None and msg["fn"].subsample_size is not None:
            msg["value"] = torch.arange(msg["fn"].subsample_size, device=self.device) % self.num_rows
