"""The contract with a Pyro model/guide pair: what is read off one run of it, and what is refused.

One plate must hold all latent and observed sites; a datum is one row of it. Its length is that of the data that the
pair is called with (``plate("data", len(x))``, with or without a larger full size), or the pair draws its own rows from
the whole data (``plate("data", N, subsample_size=B) as i: x[i]``), and then the rows are chosen for it. Plates inside
the data plate are summed over.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.util import check_site_shape
from torch import Tensor, nn

from pyrovae.kl import CLOSED_FORM, closed_form_kl, latent_sites
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
                functools.partial(_ChosenRows(self.plate, rows)(program), *args)
                for program in (self.model, self.guide)
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
    found = {id(module): module for program in programs for module in _referred(program, depth=3)}
    inner = {id(part) for module in found.values() for part in module.modules() if part is not module}
    return tuple(module for key, module in found.items() if key not in inner)


def _referred(thing: object, depth: int) -> Iterator[nn.Module]:
    if isinstance(thing, nn.Module):
        yield thing
    elif depth == 0:
        return
    elif isinstance(thing, functools.partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _referred(part, depth)
    elif inspect.ismethod(thing):
        owner = thing.__self__
        yield from _referred(owner if isinstance(owner, nn.Module) else list(vars(owner).values()), depth)
    elif inspect.isfunction(thing):
        names = inspect.getclosurevars(inspect.unwrap(thing))
        for value in (*names.nonlocals.values(), *names.globals.values()):
            yield from _referred(value, depth - 1)
    elif isinstance(thing, (list, tuple, dict)):
        for value in thing.values() if isinstance(thing, dict) else thing:
            yield from _referred(value, depth - 1)


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
        traces, used, draws_rows = _first_run(model, guide, args, everything or (lambda: args))
        pair = _read(model, guide, found, *traces, num_rows=len(used[0]), draws_rows=draws_rows)
        broadcasts = _broadcasts(pair, *pair.bind(used, torch.arange(pair.num_rows, device=args[0].device)))
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
) -> tuple[tuple[poutine.Trace, poutine.Trace], tuple[Any, ...], bool]:
    """Run on 2 and then on 3 rows; a pair whose plate does not follow draws its own rows and is given all of them."""
    failure: Exception | None = None
    for size in (2, 3):
        few = take_rows(args, torch.arange(size, device=args[0].device) % len(args[0]))
        try:
            traces = _checked_run(model, guide, few)
        except Exception as error:  # noqa: BLE001 (a program of the user's may raise anything)
            failure = error
            break
        if not any(frame.size == size for frame in _frames(traces[1])):
            break
    else:
        return traces, few, False
    args = everything()
    try:
        traces = _checked_run(model, guide, args)
    except Exception as error:  # noqa: BLE001
        raise failure or error from None
    fixed = [frame for frame in _frames(traces[1]) if frame.size == frame.full_size == len(args[0])]
    if failure is not None and fixed:
        raise ValueError(
            f"the plate {fixed[0].name!r} has {fixed[0].size} rows whatever data it is given, so that the pair cannot "
            f"be run on some of them; write pyro.plate({fixed[0].name!r}, len(x))"
        ) from failure
    return traces, args, True


def _checked_run(model: Program, guide: Program, args: tuple[Any, ...]) -> tuple[poutine.Trace, poutine.Trace]:
    traces = run(functools.partial(model, *args), functools.partial(guide, *args))
    _log_probs(*traces)
    return traces


def _log_probs(*traces: poutine.Trace) -> None:
    """Compute all log-probabilities, which also checks shapes and supports."""
    for trace in traces:
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and isinstance(site["log_prob"], Tensor) and type(site["fn"]).__name__ != "_Subsample":
                check_site_shape(site, max_plate_nesting=float("inf"))


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
    num_rows: int,
    draws_rows: bool,
) -> Pair:
    guide_sites, model_sites = latent_sites(guide_trace), latent_sites(model_trace)
    observed = {
        name: site
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("_deterministic")
    }
    _check_names(guide_sites, model_sites, observed)
    for name, site in guide_sites.items():
        _check_latent(name, site)
    plate = _data_plate({**guide_sites, **observed}, num_rows=num_rows, draws_rows=draws_rows)
    sites = (*guide_sites.values(), *model_sites.values(), *observed.values())
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
        kl={name: closed_form_kl(name, model_trace, guide_trace)[1] for name in guide_sites},
    )


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


def _check_latent(name: str, site: Any) -> None:  # noqa: ANN401 (a message of Pyro's)
    if getattr(site["fn"], "has_enumerate_support", False) or getattr(site["fn"].support, "is_discrete", False):
        raise ValueError(
            f"the latent variable {name!r} is discrete, which neither a reparametrized ELBO nor these estimates "
            "handle; sum it out in the model, or relax it (pyro.distributions.RelaxedBernoulliStraightThrough)"
        )


def _data_plate(sites: dict[str, Any], *, num_rows: int, draws_rows: bool) -> Any:  # noqa: ANN401 (Pyro's frame)
    shared = [
        frame
        for frame in next(iter(sites.values()))["cond_indep_stack"]
        if all(frame.name in [other.name for other in site["cond_indep_stack"]] for site in sites.values())
    ]
    for frame in shared:
        if frame.vectorized and (frame.full_size if draws_rows else frame.size) == num_rows:
            return frame
    outside = [name for name, site in sites.items() if not site["cond_indep_stack"]]
    if outside and len(outside) < len(sites):
        raise ValueError(
            f"the site {outside[0]!r} lies outside the data plate, so that there is no log p(x) of one datum; move it "
            'into the plate, or make a global quantity a parameter (pyro.param, or pyro.factor into "data")'
        )
    raise ValueError(
        f"no plate of the length of the data ({num_rows} rows) holds all latent and observed sites "
        f"({', '.join(map(repr, sites))}); put them all inside: with pyro.plate('data', len(x)): ..."
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


class _ChosenRows(Messenger):
    """Makes a plate that draws its own rows take the given ones."""

    def __init__(self, plate: str, rows: Tensor) -> None:
        super().__init__()
        self.plate, self.rows = plate, rows

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401
        if msg["name"] == self.plate and msg["value"] is None:
            msg["value"] = self.rows


__all__ = ["CLOSED_FORM", "Pair", "find_modules", "inspect_pair", "run", "take_rows"]
