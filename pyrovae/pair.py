"""The contract with a Pyro model/guide pair: what is read off one run of it, and what is refused.

One plate must hold all latent and observed sites; a datum is one row of it. Its length is that of the data that the
pair is called with (``plate("data", len(x))``, with or without a larger full size), or the pair draws its own rows from
the whole data (``plate("data", N, subsample_size=B) as i: x[i]``), and then the rows are chosen for it. Plates inside
the data plate are summed over.
"""

from __future__ import annotations

import dis
import functools
import inspect
import logging
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.util import check_site_shape
from torch import Tensor, nn

from pyrovae.kl import CLOSED_FORM, MASKED_DIFFERENTLY, closed_form_kl, latent_sites
from pyrovae.sandbox import forked_random, validation

Program = Callable[..., Any]
logger = logging.getLogger("pyrovae")

PARTICLE_PLATE = "pyrovae particles"


@dataclass(frozen=True)
class Latent:
    """One latent site: the batch dims of the plates it lies in, its event dims, and its elements per datum."""

    plate_dims: tuple[int, ...]
    event_dim: int
    num_elements: int

    @property
    def ndim(self) -> int:
        """Number of axes of one draw for B data."""
        return len(self.plate_dims) + self.event_dim


@dataclass(frozen=True)
class Pair:
    """What one run of a model and its guide shows.

    Attributes:
        model: the generative program.
        guide: the inference program.
        modules: the modules found in the two programs.
        params: names of the ``pyro.param`` values that they use and that belong to none of these modules.
        plate: name of the data plate.
        dim: its dimension among the batch axes, counted from the right, negative.
        num_rows: rows of the plate in one run; for a pair that draws its own rows this number is fixed.
        plate_size: full size of the plate: Pyro multiplies log-probabilities by ``plate_size / num_rows``.
        draws_rows: whether the pair takes all data and draws rows by itself.
        nesting: number of batch axes that plates take up.
        latents: the latent sites by name, in the guide's order.
        observed: names of the observed sites.
        num_elements: observed elements per datum.
        kl: for each latent site, `CLOSED_FORM` or the reason why its KL is estimated by Monte Carlo.
        broadcasts: whether it can be run with an axis of particles to the left of its plates.

    """

    model: Program
    guide: Program
    modules: tuple[nn.Module, ...]
    params: tuple[str, ...]
    plate: str
    dim: int
    num_rows: int
    plate_size: int
    draws_rows: bool
    nesting: int
    latents: dict[str, Latent]
    observed: tuple[str, ...]
    num_elements: int
    kl: dict[str, str]
    broadcasts: bool = True

    @property
    def max_rows(self) -> int:
        """The most rows that one run can take."""
        return self.plate_size if self.plate_size > self.num_rows else sys.maxsize

    def bind(self, args: tuple[Any, ...], rows: Tensor) -> tuple[Program, Program]:
        """Return model and guide without arguments, run on the given rows ``(R,)`` of the data."""
        if self.draws_rows:
            return tuple(
                functools.partial(_ChosenRows(self.plate, rows)(program), *args) for program in (self.model, self.guide)
            )  # type: ignore[return-value]
        taken = take_rows(args, rows)
        return functools.partial(self.model, *taken), functools.partial(self.guide, *taken)


def take_rows(args: tuple[Any, ...], rows: Tensor) -> tuple[Any, ...]:
    """Return the given rows of every tensor that is as long as the first one; other arguments stay as they are."""
    length = len(args[0])
    return tuple(a[rows.to(a.device)] if isinstance(a, Tensor) and a.ndim and len(a) == length else a for a in args)


def find_modules(*programs: Program) -> tuple[nn.Module, ...]:
    """Return the modules that programs are made of: their own object, or what they refer to by name or closure.

    Modules inside others are not listed again.
    """
    seen: set[int] = set()
    found = [module for program in programs for module in _referred(program, depth=5, seen=seen)]
    inner = {id(part) for module in found for part in module.modules() if part is not module}
    return tuple(module for module in found if id(module) not in inner)


def _referred(thing: object, *, depth: int, seen: set[int]) -> Iterator[nn.Module]:
    """Yield the modules that are reached from an object in a few steps, each once and in a fixed order."""
    if id(thing) in seen or depth == 0 or isinstance(thing, (type, types.ModuleType, Tensor)):
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    step = 0 if isinstance(thing, functools.partial) or inspect.ismethod(thing) else 1
    for part in _parts(thing):
        yield from _referred(part, depth=depth - step, seen=seen)


def _parts(thing: object) -> list[object]:
    """Return what an object refers to: a function's names and defaults, a method's owner, a container's items."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if inspect.ismethod(thing):
        return [thing.__self__, thing.__func__]
    if inspect.isfunction(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != types.CellType()]
        names = [thing.__globals__[name] for name in _global_names(thing.__code__) if name in thing.__globals__]
        return [*cells, *names, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (list, tuple)):
        return list(thing)
    call = [type(thing).__call__] if callable(thing) else []  # an object that is called as a program
    return [*getattr(thing, "__dict__", {}).values(), *call]


def _global_names(code: types.CodeType) -> list[str]:
    """Return the global names that a function or one written inside it reads."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inside = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _global_names(part)]
    return [*names, *inside]


def inspect_pair(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    *,
    modules: Iterable[nn.Module] = (),
    everything: Callable[[], tuple[Any, ...]] | None = None,
) -> Pair:
    """Run a pair on a few rows, with all checks on and in a random stream of its own, and read off its structure.

    Args:
        model: a Pyro program called with ``args``.
        guide: another, with the same arguments.
        args: the data ``(N, ...)`` and whatever travels with them along the plate, or a few rows of these.
        modules: those that cannot be found from the programs.
        everything: returns all data where ``args`` holds a few rows; asked if the pair draws its own rows.

    Returns:
        The pair's structure.

    Raises:
        ValueError: if the pair breaks the contract; the text says how and what to do.

    """
    found = tuple({id(module): module for module in (*modules, *find_modules(model, guide))}.values())
    with forked_random(0, args[0].device), validation(enabled=True), torch.no_grad():
        traces, used, plates, draws_rows = _first_run(model, guide, args, everything or (lambda: args))
        pair = _read(model, guide, found, *traces, plates=plates, draws_rows=draws_rows)
        rows = torch.arange(pair.num_rows, device=args[0].device) % len(used[0])
        broadcasts = _broadcasts(pair, *pair.bind(used, rows))
    if not broadcasts:
        logger.warning(
            "the pair does not take an axis of particles to the left of its plate; "
            "it is run with its data repeated along the plate instead, which is right but slower"
        )
    return replace(pair, broadcasts=broadcasts)


def run(model: Program, guide: Program) -> tuple[poutine.Trace, poutine.Trace]:
    """Return the guide's trace and that of the model replayed against it."""
    guide_trace = poutine.trace(guide).get_trace()
    return guide_trace, poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace()


def _first_run(
    model: Program, guide: Program, args: tuple[Any, ...], everything: Callable[[], tuple[Any, ...]]
) -> tuple[tuple[poutine.Trace, poutine.Trace], tuple[Any, ...], set[str], bool]:
    """Run on 2 and then on 3 rows; a pair whose plate does not follow draws its own rows and is given all of them.

    Returns:
        The traces, the arguments of that run, names of the plates that may hold the data, whether rows are drawn.

    """
    failure: Exception | None = None
    plates: set[str] | None = None
    for size in (2, 3):
        few = take_rows(args, torch.arange(size, device=args[0].device) % len(args[0]))
        try:
            traces = _checked_run(model, guide, few)
        except Exception as error:  # noqa: BLE001 (a program of the user's may raise anything)
            failure = error
            break
        following = {frame.name for frame in _frames(traces[1]) if frame.size == size}
        plates = following if plates is None else plates & following
        if not plates or _draws_from_many(traces[1], plates):
            break
    else:
        return traces, few, plates or set(), False
    args = everything()
    rows = _EarlyRows(len(args[0]), args[0].device)
    try:
        traces = _checked_run(rows(model), rows(guide), args)
    except Exception as error:  # noqa: BLE001
        raise failure or error from None
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


def _checked_run(model: Program, guide: Program, args: tuple[Any, ...]) -> tuple[poutine.Trace, poutine.Trace]:
    traces = run(functools.partial(model, *args), functools.partial(guide, *args))
    _log_probs(*traces)
    return traces


def _log_probs(*traces: poutine.Trace) -> None:
    """Compute all log-probabilities, which also checks shapes and supports."""
    for trace in traces:
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and isinstance(site["log_prob"], Tensor) and not _draws_rows(site):
                check_site_shape(site, max_plate_nesting=float("inf"))


def _draws_rows(site: Any) -> bool:  # noqa: ANN401 (a message of Pyro's)
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


def _read(
    model: Program,
    guide: Program,
    modules: tuple[nn.Module, ...],
    guide_trace: poutine.Trace,
    model_trace: poutine.Trace,
    *,
    plates: set[str],
    draws_rows: bool,
) -> Pair:
    guide_sites, model_sites = latent_sites(guide_trace), latent_sites(model_trace)
    observed = {
        name: site
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic")
    }
    _check_names(guide_sites, model_sites, observed)
    _check_guide(guide_trace)
    for name, site in guide_sites.items():
        _check_latent(name, site)
    sites = (*guide_sites.values(), *model_sites.values(), *observed.values())
    plate = _data_plate(sites, plates)
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    for frame in frames:
        if frame.name != plate.name and (frame.size != frame.full_size or not frame.vectorized):
            raise ValueError(
                f"the plate {frame.name!r} inside the data plate {plate.name!r} is subsampled or sequential, so that "
                "log p(x, z) cannot be computed; write it as a vectorized plate of full size"
            )
    return Pair(
        model=model,
        guide=guide,
        modules=modules,
        params=_free_params(modules, guide_trace, model_trace),
        plate=plate.name,
        dim=plate.dim,
        num_rows=plate.size,
        plate_size=plate.full_size,
        draws_rows=draws_rows,
        nesting=max(-frame.dim for frame in frames),
        latents={
            name: Latent(
                plate_dims=tuple(sorted(frame.dim for frame in site["cond_indep_stack"])),
                event_dim=site["fn"].event_dim,
                num_elements=site["value"].numel() // plate.size,
            )
            for name, site in guide_sites.items()
        },
        observed=tuple(observed),
        num_elements=sum(site["value"].numel() for site in observed.values()) // plate.size,
        kl={name: _kl_method(name, model_trace, guide_trace) for name in guide_sites},
    )


def _kl_method(name: str, model_trace: poutine.Trace, guide_trace: poutine.Trace) -> str:
    if model_trace.nodes[name]["mask"] is not guide_trace.nodes[name]["mask"]:
        return MASKED_DIFFERENTLY
    return closed_form_kl(name, model_trace, guide_trace)[1]


def _free_params(modules: tuple[nn.Module, ...], *traces: poutine.Trace) -> tuple[str, ...]:
    """Return the names of the stored parameters that a pair uses, but for those of its modules."""
    owned = {id(parameter) for module in modules for parameter in module.parameters()}
    names = {name: None for trace in traces for name, site in trace.nodes.items() if site["type"] == "param"}
    stored = dict(pyro.get_param_store().named_parameters())
    return tuple(name for name in names if name in stored and id(stored[name]) not in owned)


def _check_names(guide_sites: dict[str, Any], model_sites: dict[str, Any], observed: dict[str, Any]) -> None:
    if not observed:
        raise ValueError("the model observes nothing; give one of its sample statements obs=x")
    if not guide_sites:
        raise ValueError("the guide samples nothing; sample the model's latent variables in it, under the same names")
    for name in guide_sites:
        if name not in model_sites:
            raise ValueError(
                f"the guide samples {name!r}, which is not a latent variable of the model "
                f"({', '.join(map(repr, model_sites)) or 'it has none'}); use the same names in both"
            )
    for name in model_sites:
        if name not in guide_sites:
            raise ValueError(
                f"the model's latent variable {name!r} is missing in the guide, so that it would be drawn from the "
                "prior and the weights would be wrong; sample it in the guide too"
            )


def _check_guide(trace: poutine.Trace) -> None:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic"):
            raise ValueError(
                f"the guide's site {name!r} is observed (pyro.factor is, too), so that its draws do not have the "
                "density that the guide states; leave it out, or move it into the model"
            )


def _check_latent(name: str, site: Any) -> None:  # noqa: ANN401 (a message of Pyro's)
    if getattr(site["fn"], "has_enumerate_support", False) or getattr(site["fn"].support, "is_discrete", False):
        raise ValueError(
            f"the latent variable {name!r} is discrete, which neither a reparametrized ELBO nor these estimates "
            "handle; sum it out in the model, or relax it (pyro.distributions.RelaxedBernoulliStraightThrough)"
        )


def _data_plate(sites: tuple[Any, ...], plates: set[str]) -> Any:  # noqa: ANN401 (Pyro's messages and frame)
    """Return the frame of the plate, one of those that may hold the data, that all sites lie in."""
    stacks = [{frame.name: frame for frame in site["cond_indep_stack"]} for site in sites]
    for name, frame in stacks[0].items():
        if name in plates and all(name in stack for stack in stacks):
            dims = {stack[name].dim for stack in stacks}
            if len(dims) > 1:
                raise ValueError(
                    f"the plate {name!r} has dimensions {sorted(dims)} at different sites; write the same dim= in "
                    "model and guide"
                )
            return frame
    outside = [site["name"] for site, stack in zip(sites, stacks, strict=True) if not stack]
    if outside and len(outside) < len(sites):
        raise ValueError(
            f"the site {outside[0]!r} lies outside the data plate, so that there is no log p(x) of one datum; move it "
            'into the plate, or make a global quantity a parameter (pyro.param, or pyro.factor into "data")'
        )
    names = dict.fromkeys(site["name"] for site in sites)
    raise ValueError(
        f"no plate of the length of the data holds all latent and observed sites ({', '.join(map(repr, names))}); "
        "put them all inside: with pyro.plate('data', len(x)): ..."
    )


def _broadcasts(pair: Pair, model: Program, guide: Program) -> bool:
    """Tell whether a particle axis gives, for each particle, what a run without that axis gives."""
    particles = pyro.plate(PARTICLE_PLATE, 2, dim=-1 - pair.nesting)
    try:
        together = run(particles(model), particles(guide))
        _log_probs(*together)
        for k in range(2):
            values = {name: together[0].nodes[name]["value"][k] for name in pair.latents}
            alone = [poutine.trace(poutine.condition(program, data=values)).get_trace() for program in (guide, model)]
            _log_probs(*alone)
            for many, one in zip(together, alone, strict=True):
                for name in (*pair.latents, *pair.observed):
                    if name in many.nodes and not _agree(many.nodes[name], one.nodes[name], k):
                        return False
    except Exception:  # noqa: BLE001 (any failure of a user's program under an extra axis means the same)
        return False
    return True


def _agree(many: Any, one: Any, k: int) -> bool:  # noqa: ANN401 (messages of Pyro's)
    a, b = many["unscaled_log_prob"], one["unscaled_log_prob"]
    return a[k].numel() == b.numel() and torch.allclose(a[k].reshape(b.shape), b, rtol=1e-3, atol=1e-3)


class _EarlyRows(Messenger):
    """Makes plates that draw their own rows take early ones, of which there are so many."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        super().__init__()
        self.num_rows, self.device = num_rows, device

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if _draws_rows(msg) and msg["value"] is None and msg["fn"].subsample_size is not None:
            msg["value"] = torch.arange(msg["fn"].subsample_size, device=self.device) % self.num_rows


class _ChosenRows(Messenger):
    """Makes a plate that draws its own rows take the given ones."""

    def __init__(self, plate: str, rows: Tensor) -> None:
        super().__init__()
        self.plate, self.rows = plate, rows

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if msg["name"] == self.plate and msg["value"] is None:
            msg["value"] = self.rows


__all__ = ["CLOSED_FORM", "Pair", "find_modules", "inspect_pair", "run", "take_rows"]
