"""What the importance-weighted objectives have in common: weights of each datum, and where their gradient goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.bounds import log_mean_exp
from pyrovae.importance import per_datum
from pyrovae.importance.sampling import check_num_particles
from pyrovae.objectives.base import Objective, Terms, require_gradient, site_log_prob
from pyrovae.programs import PARTICLE_PLATE, ChosenRows, ModelGuide, Program, find_modules, inspect_programs
from pyrovae.runtime.context import module_mode, own_store


class ImportanceObjective(Objective):
    """Minus the importance-weighted bound of each datum, summed over the data plate.

    ``loss = -sum_b log (1/K) sum_k p(x_b, z_bk) / q(z_bk | x_b)``, ``z_bk ~ q(z | x_b)``

    Weights are those of single data: no plate size or subsampling factor gets into the logarithm. Subclasses differ
    in the estimate of its gradient. They take pairs that keep the contract of `pyrovae.programs`, several latent sites
    included, run the particles as one more batch axis where the pair allows it (the encoder then sees each datum once),
    and one after the other where it does not.

    Args:
        num_particles: K, draws of the guide per datum.

    Raises:
        ValueError: if K is not positive, or, when it is run, the pair breaks the contract or gives its sites different
            `pyro.poutine.scale` factors, which have no place inside a logarithm.

    """

    stops_score: ClassVar[bool]
    """Whether the derivative of log q(z | x) with respect to the guide's parameters at fixed z is left out."""
    reweights_path: ClassVar[bool]
    """Whether what reaches the guide's parameters through a draw is multiplied by the draw's normalized weight."""

    def __init__(self, *, num_particles: int = 5) -> None:
        check_num_particles(num_particles)
        super().__init__(num_particles=num_particles)
        self.num_weighted = num_particles
        self._inspected: tuple[tuple[Program, Program, tuple[str, ...]], ModelGuide] | None = None

    def describe(self) -> dict[str, object]:
        """Return class and options, as a run folder keeps them."""
        return {"class": type(self).__name__, "num_particles": self.num_particles}

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run the pair on ``args`` and return the loss with its terms."""
        programs = self._inspect(model, guide, args, kwargs)
        return self.terms_of(programs, partial(model, *args, **kwargs), partial(guide, *args, **kwargs))

    def terms_of(self, programs: ModelGuide, model: Program, guide: Program) -> Terms:
        """Return the terms of programs without arguments, whose structure is known."""
        runs = list(self._runs(programs, model, guide))
        log_prior, log_likelihood, log_guide = (
            torch.cat(parts) for parts in zip(*(self._score(programs, run) for run in runs), strict=True)
        )  # each (K, B)
        log_weights = log_prior + log_likelihood - log_guide
        if self.reweights_path:
            weights = log_weights.detach().softmax(0)
            for run, part in zip(runs, weights.split([run.count for run in runs]), strict=True):
                run.weights.append(part)
        loss = -(_scale(programs, runs[0]) * log_mean_exp(log_weights)).sum()
        reconstruction = log_likelihood.detach().mean(0).sum()
        return Terms(loss, reconstruction, (log_guide - log_prior).detach().mean(0).sum())

    def _inspect(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModelGuide:
        """Return the structure of a pair, read off its first run."""
        args, names = (*args, *kwargs.values()), tuple(kwargs)
        if not args or not isinstance(args[0], Tensor) or not args[0].ndim:
            received = type(args[0]).__name__ if args else "no argument"
            raise TypeError(
                "an importance-weighted bound is that of each datum, so that model and guide are called with the data, "
                f"a tensor (N, ...), as their first argument, but received {received}"
            )
        key = (model, guide, names)
        if self._inspected is None or self._inspected[0] != key:
            if names:  # tensors given by name have as many rows as the data, too
                model, guide = partial(_call, model, names), partial(_call, guide, names)
            modules = find_modules(model, guide)
            with own_store(modules), module_mode(modules, training=False):
                self._inspected = (key, inspect_programs(model, guide, args, modules=modules))
        return self._inspected[1]

    def _runs(self, programs: ModelGuide, model: Program, guide: Program) -> Iterator[_Run]:
        """Run the pair on all particles at once, or on one after the other."""
        if programs.broadcasts:
            particles = pyro.plate(PARTICLE_PLATE, self.num_particles, dim=-1 - programs.nesting)
            yield self._run(programs, particles(model), particles(guide), self.num_particles, lead=1)
            return
        first = self._run(programs, model, guide, 1, lead=0)
        yield first
        if programs.draws_rows:  # all particles are of the same rows
            rows = ChosenRows(programs.plate, first.guide_trace.nodes[programs.plate]["value"])
            model, guide = rows(model), rows(guide)
        for _ in range(1, self.num_particles):
            yield self._run(programs, model, guide, 1, lead=0)

    def _run(self, programs: ModelGuide, model: Program, guide: Program, count: int, *, lead: int) -> _Run:
        """Draw from the guide and run the model on the draws."""
        guide_trace = poutine.trace(guide).get_trace()
        for name in programs.latents:
            require_gradient(name, guide_trace.nodes[name])
        run = _Run(guide, guide_trace, count, lead)
        values = {name: guide_trace.nodes[name]["value"] for name in programs.latents}
        run.values = {name: self._leave(programs, run, name, z) for name, z in values.items()}
        run.model_trace = poutine.trace(_replay(model, guide_trace, run.values)).get_trace()
        return run

    def _leave(self, programs: ModelGuide, run: _Run, name: str, z: Tensor) -> Tensor:
        """Return a draw as it is scored; what flows back to the guide is multiplied by its weight where that is due."""
        if not (self.reweights_path and z.requires_grad):
            return z
        event_dim = programs.latents[name].event_dim
        row_axis, particle_axis = programs.dim - event_dim, -1 - programs.nesting - event_dim if run.lead else None
        scored = z.view_as(z)
        # what a hook holds lives as long as the graph of the draw: not the run, whose values hold that graph
        scored.register_hook(partial(_multiply, run.weights, row_axis, particle_axis))
        return scored

    def _score(self, programs: ModelGuide, run: _Run) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(z), log p(x | z) and log q(z | x), ``(K, B)`` of the run's particles."""

        def total(trace: poutine.Trace, names: Any) -> Tensor:
            sites = [trace.nodes[name] for name in names]
            terms = [_rows(programs, run, site_log_prob(site), site) for site in sites]
            return sum(terms[1:], terms[0])

        prior, likelihood = total(run.model_trace, programs.latents), total(run.model_trace, programs.observed)
        if not self.stops_score:
            return prior, likelihood, total(run.guide_trace, programs.latents)
        fixed = {name: run.guide_trace.nodes[name]["value"].detach() for name in programs.latents}
        at_scored, at_fixed = (_log_guide_at(programs, run, values) for values in (run.values, fixed))
        return prior, likelihood, at_scored - (at_fixed - at_fixed.detach())


@dataclass
class _Run:
    """One run of the pair: some particles, as one more axis (``lead`` 1) or a single one (``lead`` 0)."""

    guide: Program
    guide_trace: poutine.Trace
    count: int
    lead: int
    values: dict[str, Tensor] = field(default_factory=dict)
    model_trace: poutine.Trace = field(default_factory=poutine.Trace)
    weights: list[Tensor] = field(default_factory=list)


def _log_guide_at(programs: ModelGuide, run: _Run, values: dict[str, Tensor]) -> Tensor:
    """Return log q(z | x) at given values, ``(K, B)``.

    With a single site its distribution is at hand. With several, that of one may depend on the value of another, so
    that the guide is run again.
    """
    trace = run.guide_trace
    if len(values) > 1 and any(values[name] is not trace.nodes[name]["value"] for name in values):
        trace = poutine.trace(_replay(run.guide, trace, values)).get_trace()
    sites = {name: trace.nodes[name] for name in values}
    terms = [_rows(programs, run, site["fn"].log_prob(values[name]), site) for name, site in sites.items()]
    return sum(terms[1:], terms[0])


def _replay(program: Program, trace: poutine.Trace, values: dict[str, Tensor]) -> Callable[..., Any]:
    """Return a program whose draws are those of a trace, with other values of the latent sites."""
    changed = trace.copy()
    for name, value in values.items():
        changed.nodes[name] = {**trace.nodes[name], "value": value}
    return poutine.replay(program, trace=changed)


def _rows(programs: ModelGuide, run: _Run, log_prob: Tensor, site: Any) -> Tensor:
    """Return a log-probability over particles and data, ``(K, B)``."""
    value = per_datum(programs, log_prob, site, has_particles=bool(run.lead))
    return value if run.lead else value.unsqueeze(0)


def _multiply(weights: list[Tensor], row_axis: int, particle_axis: int | None, gradient: Tensor) -> Tensor:
    """Multiply the gradient of a draw, in Pyro's layout, by the normalized weights ``(K, B)``."""
    (normalized,) = weights
    shape = [1] * gradient.ndim
    shape[row_axis] = normalized.shape[1]
    if particle_axis is not None:
        shape[particle_axis] = normalized.shape[0]
    return gradient * normalized.reshape(shape).to(gradient.dtype)


def _call(program: Program, names: tuple[str, ...], *args: Any) -> Any:
    """Call a program whose last arguments are given by name."""
    split = len(args) - len(names)
    return program(*args[:split], **dict(zip(names, args[split:], strict=True)))


def _scale(programs: ModelGuide, run: _Run) -> float:
    """Return the factor by which Pyro multiplies all log-probabilities of the pair: full size over rows drawn."""
    sites = [run.guide_trace.nodes[name] for name in programs.latents]
    sites += [run.model_trace.nodes[name] for name in (*programs.latents, *programs.observed)]
    scales = [site["scale"] for site in sites]
    if any(isinstance(scale, Tensor) or not math.isclose(scale, scales[0]) for scale in scales):
        raise ValueError(
            "an importance-weighted bound has one scale for all sites, the size of the data plate over its rows, but "
            "pyro.poutine.scale changes it for some; leave the factor out, or weigh the KL with ELBO(beta=...)"
        )
    return scales[0]
