"""First runs of a model and its guide, from which their structure is read."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.util import check_site_shape
from torch import Tensor, nn

from pyrovae.programs.analytic_kl import draws_rows, latent_sites
from pyrovae.programs.contract import autoguide_fault, read_contract, require_common_measure
from pyrovae.programs.layout import from_pyro, log_probs, to_pyro
from pyrovae.programs.link_warnings import find_link_warnings, leaves_of_draws
from pyrovae.programs.model_guide import PARTICLE_PLATE, ModelGuide, Program, replace_draws, take_rows
from pyrovae.programs.modules import RunModules, find_modules, is_stored
from pyrovae.programs.site_checks import find_nan, find_nan_log_prob, run_validated, unwrap_own_error
from pyrovae.runtime.context import (
    forked_random,
    frozen_unremarked,
    full_precision,
    module_mode,
    own_store,
    validation,
)

UNKNOWN_SIZE = -1  # Pyro's size of a plate without one
MISMATCH = re.compile(
    r"Shape mismatch inside plate\('(?P<plate>.+?)'\) at site (?P<site>\S+) dim -\d+, (?P<size>\d+) vs (?P<found>\d+)"
)
LOG_PROB_SHAPE = re.compile(
    r"at site \"(?P<site>.+)\", invalid log_prob shape\s+Expected \[(?P<plates>.*)\], actual \[(?P<found>.*)\]"
)
FIRST_ROWS, SECOND_ROWS = 3, 2  # data points of the first two runs
NUM_PARTICLES = 3  # of the second run; cannot be mistaken for its number of rows
NO_PARTICLES = (
    "model and guide do not take an axis of particles to the left of their plate, and run for one particle after the "
    "other or on repeated data, which is slower; the causes are z.view(len(z), ...), convolutions, or torch.cat of z "
    "with labels that are not expanded to z.shape[:-1]"
)
DRAWS_ROWS = (
    "the plate {0!r} draws rows of the data by itself, but each run is given its rows; write pyro.plate({0!r}, len(x)) "
    "or pyro.plate({0!r}, N, subsample_size=len(x)) for a scale of N / len(x)"
)


@contextmanager
def inspected_programs(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    modules: Iterable[nn.Module] = (),
    device: torch.device | None = None,
    nan_counts: bool = False,
    keep_params: bool = False,
) -> Iterator[ModelGuide]:
    """Run model and guide on a few rows, and yield their structure, in a parameter store of their own.

    Both run once on 3 rows, and once with an axis of particles on 2, with all checks on and a forked random stream.
    Programs that do not take particles run a third time, without them. Modules are in evaluation mode in these runs.
    The store lasts until the end of the block.

    Args:
        model: a Pyro program called with ``args``.
        guide: another, with the same arguments.
        args: the data ``(N, ...)`` and other arguments along the plate, or a few rows of them.
        modules: modules that neither run as modules nor can be found from the programs.
        device: to which modules are moved; where they are if None.
        nan_counts: whether programs that compute NaN pass, because the caller counts NaN.
        keep_params: whether values of ``pyro.param`` are written to the caller's store at the end.

    Raises:
        ValueError: if the programs break the contract; the text says how, and how to mend it.
        TypeError: if a program does not take the arguments.

    """
    _require_signature(model, guide, args)
    modules = find_modules(model, guide, given=modules)
    for module in modules if device is not None else ():
        module.to(device)
    kept: list[str] = []
    with own_store(modules, keep=kept):
        with (
            forked_random(0, args[0].device),
            full_precision(),
            validation(enabled=False),
            frozen_unremarked(),
            torch.no_grad(),
            module_mode(modules, training=False),
            RunModules(device) as ran,
        ):
            inspector = _Inspector(model, guide, modules, ran, SizedPlates(), nan_counts)
            try:
                programs = inspector.inspect(args)
            except (ValueError, RuntimeError) as error:
                if (cause := autoguide_fault(modules) or _explain(error)) is None:
                    raise
                raise ValueError(cause) from error
        kept += programs.params if keep_params else ()
        yield replace(programs, all_modules=(*programs.modules, *ran.beside(programs.modules)))


def _require_signature(model: Program, guide: Program, args: tuple[Any, ...]) -> None:
    """Check that both programs take as many arguments as there are tensors."""
    for role, program in (("model", model), ("guide", guide)):
        with suppress(ValueError):  # a builtin has no signature
            signature = inspect.signature(program, follow_wrapped=False)  # a wrapper may take other arguments
            try:
                signature.bind(*args)
            except TypeError as error:
                fix = f"if it takes them as one tuple, write lambda *tensors: {role}(tensors)"
                if str(error).startswith("missing"):
                    fix = "give further tensors in a tuple, (x, labels)"
                raise TypeError(
                    f"the {role} is called with x and each further tensor as an argument of its own, {len(args)} here, "
                    f"but has the signature {signature} ({error}); {fix}"
                ) from None


@dataclass(frozen=True)
class _Run:
    """Traces of one run, the elements of each output of a module in the model, and the rows times particles."""

    guide_trace: poutine.Trace
    model_trace: poutine.Trace
    outputs: list[int]
    num_rows: int

    @property
    def sites(self) -> list[Any]:
        """All sample sites, the guide's first."""
        nodes = (*self.guide_trace.nodes.values(), *self.model_trace.nodes.values())
        return [site for site in nodes if site["type"] == "sample"]

    @property
    def plates(self) -> dict[str, Any]:
        """Vectorized plates of all sites by name."""
        return {frame.name: frame for site in self.sites for frame in site["cond_indep_stack"] if frame.vectorized}


@dataclass(frozen=True)
class _Inspector:
    """The runs of an inspection.

    Attributes:
        model: the generative program.
        guide: the inference program.
        modules: modules found in them.
        ran: records the modules that run.
        sized: gives plates a size; records whether one had none.
        nan_counts: whether NaN passes.

    """

    model: Program
    guide: Program
    modules: tuple[nn.Module, ...]
    ran: RunModules
    sized: SizedPlates
    nan_counts: bool

    def inspect(self, args: tuple[Any, ...]) -> ModelGuide:
        """Return the structure of programs whose plate follows the data, read off two runs on a few rows."""
        few = take_rows(args, torch.arange(FIRST_ROWS, device=args[0].device) % len(args[0]))
        try:
            first, link_warnings = self._run_with_gradients(few)
        except Exception as error:  # a program may raise anything
            if self.sized.drawing and isinstance(error, IndexError):
                raise ValueError(DRAWS_ROWS.format(self.sized.drawing)) from error
            cause = unwrap_own_error(error) or error
            raise cause from cause.__cause__
        plates = {name for name, frame in first.plates.items() if frame.size == FIRST_ROWS}
        while True:
            if drawing := _drawing_plate(first, plates):
                raise ValueError(DRAWS_ROWS.format(drawing))
            programs = self._read(first, plates)
            with_particles = self._run_with_particles(programs, first, few)
            second = with_particles or self._run(take_rows(few, torch.arange(SECOND_ROWS, device=few[0].device)))
            plates &= {name for name, frame in second.plates.items() if frame.size == SECOND_ROWS}
            if programs.plate in plates:
                programs = replace(programs, link_warnings=link_warnings)
                return _complete(programs, first, second, broadcasts=with_particles is not None)

    def _run(self, args: tuple[Any, ...], *, gradients: bool = False) -> _Run:
        """Run guide and model with all checks on."""

        def attempt() -> _Run:
            with torch.set_grad_enabled(gradients), self.sized:
                guide_trace = poutine.trace(self.guide).get_trace(*args)
                model = poutine.replay(self.model, trace=guide_trace)
                model = replace_draws(model, leaves_of_draws(guide_trace)) if gradients else model
                self.ran.outputs.clear()
                model_trace = poutine.trace(model).get_trace(*args)
            run = _Run(guide_trace, model_trace, list(self.ran.outputs), len(args[0]))
            drawn, scored = latent_sites(guide_trace), latent_sites(model_trace)
            for name in drawn if drawn.keys() == scored.keys() else ():
                require_common_measure(drawn[name], scored[name])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Encountered NaN")  # described by find_nan
                guide_trace.compute_log_prob()
                model_trace.compute_log_prob()
            for site in run.sites:
                if isinstance(site["log_prob"], Tensor) and not draws_rows(site):
                    check_site_shape(site, max_plate_nesting=float("inf"))
            return run

        return run_validated(attempt, args[0].device, nan_counts=self.nan_counts)

    def _run_with_gradients(self, args: tuple[Any, ...]) -> tuple[_Run, tuple[str, ...]]:
        """Run with gradients where the programs allow them, and find link functions in their graph."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")  # as float(z.mean()) does
                first = self._run(args, gradients=True)
        except Exception:  # as z.numpy() raises; an error without gradients too is raised by the second run
            return self._run(args), ()
        return first, find_link_warnings(first.guide_trace, first.model_trace)

    def _read(self, first: _Run, plates: set[str]) -> ModelGuide:
        """Check the contract, and read the structure off the first run."""
        nan = find_nan_log_prob(first.sites)
        nan = nan and (find_nan(first.sites) or nan)
        if nan is not None and not self.nan_counts:
            raise ValueError(nan)
        modules = (*self.modules, *(module for module in self.ran.beside(self.modules) if not is_stored(module)))
        traces = first.guide_trace, first.model_trace
        model, guide = (SizedPlates()(p) if self.sized.changed else p for p in (self.model, self.guide))
        programs = read_contract(model, guide, modules, *traces, plates=plates)
        return replace(programs, nan=nan)

    def _run_with_particles(self, programs: ModelGuide, first: _Run, args: tuple[Any, ...]) -> _Run | None:
        """Run two rows with an axis of particles, one with the draws of the first run.

        Returns:
            The run if its log-probabilities agree with the first run, else None.

        """
        rows = torch.arange(SECOND_ROWS, device=args[0].device)
        plate = pyro.plate(PARTICLE_PLATE, NUM_PARTICLES, dim=-1 - programs.nesting)
        try:
            draws = {}
            for name in programs.latents:
                site = first.guide_trace.nodes[name]
                values = (site["fn"](), site["value"], site["fn"]())
                z = torch.cat([from_pyro(programs, name, value)[:, :SECOND_ROWS] for value in values])
                draws[name] = to_pyro(programs, name, z, has_particles=True)
            model, guide = programs.bind(args, rows)
            guide_trace = poutine.trace(replace_draws(plate(guide), draws)).get_trace()
            self.ran.outputs.clear()
            model_trace = poutine.trace(poutine.condition(plate(model), data=draws)).get_trace()
            second = _Run(guide_trace, model_trace, list(self.ran.outputs), SECOND_ROWS * NUM_PARTICLES)
            drawn = all(guide_trace.nodes[name]["fn"]().shape == z.shape for name, z in draws.items())
            return second if drawn and _agree(programs, first, second) else None
        except Exception:  # whatever fails with particles, the programs do not take them
            return None


def _complete(programs: ModelGuide, first: _Run, second: _Run, *, broadcasts: bool) -> ModelGuide:
    """Complete the structure with the run with particles.

    The units of a data point are the elements of the largest output of a module in the model, as far as it grows
    from the first run to the second.
    """
    num_units = programs.num_elements
    if len(first.outputs) == len(second.outputs):
        num_more = second.num_rows - FIRST_ROWS
        growth = ((b - a) // num_more for a, b in zip(first.outputs, second.outputs, strict=True))
        num_units = max(num_units, *growth, 0)
    return replace(programs, broadcasts=broadcasts, num_units=num_units)


def _agree(programs: ModelGuide, first: _Run, second: _Run) -> bool:
    """Return whether the second particle has the log-probabilities of the first run, not all NaN at any site."""
    known = True
    for one, many in ((first.guide_trace, second.guide_trace), (first.model_trace, second.model_trace)):
        names = [name for name in (*programs.latents, *programs.observed) if name in one.nodes]
        alone, together = log_probs(programs, one, names), log_probs(programs, many, names)
        for name in names:
            a, b = alone[name][0, :SECOND_ROWS], together[name][1]
            if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True):
                return False
            known = known and not a.isnan().all()
    return known


def _drawing_plate(first: _Run, plates: set[str]) -> str | None:
    """Return the name of a plate that draws some rows of the data.

    Such a plate has fewer rows than its full size and does not follow the data, or it would draw from more than a few
    rows, as with ``min(128, len(x))``.
    """
    nodes = first.model_trace.nodes
    for name, frame in first.plates.items():
        draws = name in nodes and getattr(nodes[name]["fn"], "subsample_size", None) is not None
        if draws and (frame.size == frame.full_size if name in plates else not plates and frame.size < frame.full_size):
            return name
    return None


def _explain(error: Exception) -> str | None:
    """Translate a common error of Pyro into cause and remedy; return None for others."""
    text = str(error)
    if mismatch := MISMATCH.search(text):
        if int(mismatch["size"]) not in (FIRST_ROWS, SECOND_ROWS):
            return (
                f"the plate {mismatch['plate']!r} has {mismatch['size']} rows whatever data it is given; write "
                f"pyro.plate({mismatch['plate']!r}, len(x))"
            )
        return (
            f"the distribution of {mismatch['site']!r} has a batch axis of {mismatch['found']} where the plate "
            f"{mismatch['plate']!r} has its rows; make the axes of one datum event axes, by .to_event(1) for one axis; "
            "or, if it has one row for each datum of all data, compute it from x"
        )
    if shapes := LOG_PROB_SHAPE.search(text):
        num_plates, num_found = (len(shapes[name].split(",")) if shapes[name] else 0 for name in ("plates", "found"))
        if not num_plates:
            return (
                f"the site {shapes['site']!r} has {num_found} batch axes, but is in no plate; put it and all others "
                "into one plate over the data: with pyro.plate('data', len(x)): ..."
            )
        if num_found > num_plates:
            return (
                f"the distribution of {shapes['site']!r} has {num_found} batch axes, but its plates are {num_plates}; "
                f"make the axes of one datum event axes, by .to_event({num_found - num_plates})"
            )
    return None


class SizedPlates(Messenger):
    """Give a plate without a size, ``pyro.plate("data")``, the size of the batch axis that its sites have.

    Plates that draw rows of the data are recorded by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed = False  # whether there was such a plate
        self.drawing = ""  # name of a plate that draws some of its rows

    def _pyro_sample(self, msg: Any) -> None:
        frames = msg["cond_indep_stack"]
        if draws_rows(msg) and msg["fn"].subsample_size is not None:
            self.drawing = msg["name"]
        if not any(frame.size == UNKNOWN_SIZE for frame in frames):
            return
        self.changed = True
        shape = getattr(msg["fn"], "batch_shape", ())
        sizes = {frame: shape[frame.dim] if len(shape) >= -frame.dim else 1 for frame in frames if frame.vectorized}
        msg["cond_indep_stack"] = tuple(
            frame._replace(size=sizes[frame], full_size=sizes[frame]) if frame.size == UNKNOWN_SIZE else frame
            for frame in frames
        )
