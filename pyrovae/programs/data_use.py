"""Roles of the arguments of a model, and densities that depend on the values that they score."""

from __future__ import annotations

import functools
import inspect
import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.programs.model_guide import ModelGuide, run
from pyrovae.programs.site_checks import unmasked, unwrapped
from pyrovae.runtime.context import forked_random, stream_seed, validation

FEW_ROWS = 8  # of the runs
MOST_ELEMENTS = 8  # of a datum, changed one by one
TOLERANCE = 1e-4  # of log-probabilities, absolute and relative, beyond which they differ
Place = tuple[int, int]  # position of an argument, and of an element in its flattened rows
ADVICE = "if the model needs a statistic of the data, such as a total, pass it as a further argument"
COUPLED = "the density of {!r} of a datum depends on other data of its batch"
COUPLED_VALUE = "the observed value {!r} of a datum depends on other data of its batch; transform the data beforehand"


@dataclass(frozen=True)
class DataUse:
    """How a model uses its arguments.

    Attributes:
        observed: positions of the arguments that the model observes.
        given: names of the arguments, or of the parts of them, that the model is given, with their elements per datum.
        fault: the reason why the estimates are no bounds on log p(x), None if none was found.

    """

    observed: tuple[int, ...] = (0,)
    given: dict[str, int] = field(default_factory=dict)
    fault: str | None = None


def find_data_use(programs: ModelGuide, args: tuple[Tensor, ...], rows: Tensor) -> DataUse:
    """Return the roles of the arguments, and whether densities depend on the values that they score.

    An argument is observed if a change of it changes an observed value, and given if the change alters only the
    log-probability.

    For faults the model is run again on changed data, with the draws of the guide held fixed, and the old values are
    scored under the new densities. If no log-probability changes, the model only observes the data. Otherwise elements
    are changed one by one. The product of the densities has an integral of one only if no element's density depends on
    its own value, no two elements depend on each other, no prior depends on an element that is observed later, and no
    density on other data. Autoregressive models pass. So do programs that fail on changed data, and dependences that do
    not show in a few rows.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first.
        rows: rows of one batch.

    """
    use = _roles(programs, args, rows) if len(args) > 1 else DataUse()
    rows = rows[:FEW_ROWS]
    try:
        with validation(enabled=False), forked_random(stream_seed("data use"), rows.device):
            runs = _Runs(programs, args, rows, use.observed)
            fault, conditions = _find_fault(runs)
    except Exception:  # a program may raise anything on data that do not belong together
        return use
    rest = {}
    if conditions:
        first = use.observed[0]
        name = _argument_names(programs.model, len(args))[first]
        rest = {f"rest of {name}": max(1, args[first][0].numel() - runs.num_observed())}
    return replace(use, given=use.given | rest, fault=fault)


def _roles(programs: ModelGuide, args: tuple[Tensor, ...], rows: Tensor) -> DataUse:
    """Return the arguments that the model observes, and those that it is given.

    Rows are permuted, or values changed where all rows are equal; booleans are masks, which are given. An argument
    whose change makes the programs fail is given.
    """

    def run_model(args: tuple[Tensor, ...], guide_trace: poutine.Trace | None = None) -> tuple[poutine.Trace, ...]:
        with forked_random(stream_seed("observed", 0), rows.device):
            return run(*programs.bind(args, rows), guide_trace)

    guide_trace, trace = run_model(args)
    observed: list[int] = []
    given: dict[str, int] = {}
    for i, (argument, name) in enumerate(zip(args, _argument_names(programs.model, len(args)), strict=True)):
        try:
            _, other = run_model((*args[:i], _changed(argument), *args[i + 1 :]), guide_trace)
            other_log_prob = torch.as_tensor(other.log_prob_sum())
            is_observed = argument.dtype != torch.bool and any(
                not equal(trace.nodes[site]["value"], other.nodes[site]["value"])
                for site in programs.observed
                if site not in programs.factors
            )
            is_given = not is_observed and not equal(torch.as_tensor(trace.log_prob_sum()), other_log_prob)
        except Exception:  # rows that do not belong together may make a program raise anything
            is_observed, is_given = False, True
        if is_observed:
            observed.append(i)
        if is_given:
            given[name] = given.get(name, 0) + argument[0].numel()
    return DataUse(tuple(observed) or (0,), given)


def _changed(argument: Tensor) -> Tensor:
    """Return an argument with its rows permuted, or with other values where all rows are equal."""
    rolled = argument.roll(1, 0)
    if not equal(rolled, argument):
        return rolled
    return ~argument if argument.dtype == torch.bool else argument * 2 + 1


def _argument_names(model: Any, num: int) -> list[str]:
    """Return the names of the first positional arguments of a model, ``c`` for arguments without a name."""
    try:
        while isinstance(model, functools.partial) and model.args and callable(model.args[-1]):  # a handler of Pyro's
            model = model.args[-1]
        model = model.forward if isinstance(model, nn.Module) else model
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):  # a program may be any callable
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*names, *["c"] * num][:num]


def equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and values, NaN being equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _find_fault(runs: _Runs) -> tuple[str | None, bool]:
    """Return a fault, and whether densities depend on elements that are not observed."""
    for score in runs.scores_of_changed_draws():
        if score.other_rows_differ:
            return COUPLED.format(score.name), False
    places, scores = runs.changing_elements(), runs.scores(None)
    moved = next((score for score in scores if score.other_rows_change), None)
    if moved is not None and not runs.draws(moved.name):
        return COUPLED_VALUE.format(moved.name), False
    if not places or not any(score.differs.any() for score in scores):
        return None, False
    effects: list[list[_Score]] = []  # of each changed element
    conditions = False
    for place in places:
        scores = runs.scores(place)
        coupled = next((score for score in scores if score.other_rows_differ), None)
        if coupled is not None:
            return COUPLED.format(coupled.name), False
        if not any(score.changed.any() for score in scores):
            conditions |= any(score.differs.any() for score in scores)
            continue
        own = next((score for score in scores if (score.changed & score.differs).any()), None)
        if own is not None:
            return f"the density of {own.name!r} depends on the value that it scores; {ADVICE}", False
        first = min(number for number, score in enumerate(scores) if score.changed.any())
        prior = next((s for s in scores[:first] if s.is_latent and s.all_differ), None)
        if prior is not None:
            name = scores[first].name
            return f"the prior of {prior.name!r} depends on {name!r}, which is observed after it; {ADVICE}", False
        effects.append(scores)
    for scores, others in itertools.combinations(effects, 2):
        if _alters(scores, others) and _alters(others, scores):
            name = next(score.name for score in scores if score.changed.any())
            return f"elements of {name!r} depend on each other, not each on earlier ones alone", False
    return None, conditions


def _alters(scores: list[_Score], others: list[_Score]) -> bool:
    """Return whether the change of an element alters the density of another, whose change has the other scores."""
    return any((score.differs & other.changed).any() for score, other in zip(scores, others, strict=True))


@dataclass(frozen=True)
class _Score:
    """Effects of a change of the data on one site.

    Attributes:
        name: the site.
        is_latent: whether it is latent.
        changed: where its value changed.
        differs: where the log-probability of the old value changed.
        all_differ: whether it changed everywhere in some row.
        other_rows_differ: whether it changed in rows whose data did not.
        other_rows_change: whether the value changed in rows whose data did not.

    """

    name: str
    is_latent: bool
    changed: Tensor
    differs: Tensor
    all_differ: bool
    other_rows_differ: bool
    other_rows_change: bool


class _Runs:
    """Runs of the model on changed data, with the guide's draws of one run.

    Even rows take values of the rows after them; a single row takes its own values in another order.
    """

    def __init__(self, programs: ModelGuide, args: tuple[Tensor, ...], rows: Tensor, observed: tuple[int, ...]) -> None:
        self.programs, self.args, self.rows = programs, args, rows
        self.guide_trace, _ = run(*programs.bind(args, rows))
        self.trace = self._run(args, self.guide_trace)
        self.changed_rows = rows[0::2][: max(1, len(rows) // 2)]
        self.new: dict[int, Tensor] = {}
        for position in observed:
            x = args[position].reshape(len(args[position]), -1)
            self.new[position] = x[rows[1::2]] if len(rows) > 1 else x[rows].roll(1, 1)

    def _run(self, args: tuple[Tensor, ...], guide_trace: poutine.Trace, *, stream: int = 1) -> poutine.Trace:
        """Return the model's run, with the same random numbers each time."""
        with forked_random(stream_seed("data use", stream), self.rows.device):
            return run(*self.programs.bind(args, self.rows), guide_trace)[1]

    def draws(self, name: str) -> bool:
        """Return whether the model draws the value of an observed site itself."""
        trace = self._run(self.args, self.guide_trace, stream=2)
        return not equal(trace.nodes[name]["value"], self.trace.nodes[name]["value"])

    def num_observed(self) -> int:
        """Return the number of observed elements of a datum."""
        sites = (name for name in self.programs.observed if name not in self.programs.factors)
        return sum(self.trace.nodes[name]["value"].numel() for name in sites) // len(self.rows)

    def changing_elements(self) -> list[Place]:
        """Return elements that a change alters in some row, a few from all parts of a datum."""
        places = []
        for position, new in self.new.items():
            differs = (new != self.args[position][self.changed_rows].reshape(new.shape)).any(0)
            places += [(position, element) for element in differs.nonzero()[:, 0].tolist()]
        step = max(1, len(places) // MOST_ELEMENTS)
        return places[::step][:MOST_ELEMENTS]

    def scores(self, place: Place | None) -> list[_Score]:
        """Return the effects on each site of a change of one element; of all elements for None."""
        args = list(self.args)
        for position, new in self.new.items():
            if place is None or place[0] == position:
                x = args[position].reshape(len(args[position]), -1).clone()
                values, element = x[self.changed_rows], slice(None) if place is None else place[1]
                values[:, element] = new[:, element]
                x[self.changed_rows] = values
                args[position] = x.reshape(args[position].shape)
        return self._scores(self._run(tuple(args), self.guide_trace))

    def scores_of_changed_draws(self) -> list[_Score]:
        """Return the effects on each site of a change of the draws of the changed rows."""
        taken = torch.arange(len(self.rows), device=self.rows.device)
        taken[: 2 * (len(taken) // 2) : 2] += 1
        trace = self.guide_trace.copy()
        for name in self.programs.latents:
            site = trace.nodes[name]
            axis = site["value"].ndim - len(site["fn"].event_shape) + self.programs.dim
            trace.nodes[name] = {**site, "value": site["value"].index_select(axis, taken)}
        return self._scores(self._run(self.args, trace))

    def _scores(self, trace: poutine.Trace) -> list[_Score]:
        names = [name for name in trace.nodes if name in (*self.programs.latents, *self.programs.observed)]
        return [self._score(name, trace) for name in names if name not in self.programs.factors]

    def _score(self, name: str, trace: poutine.Trace) -> _Score:
        before, after = self.trace.nodes[name], trace.nodes[name]
        a, b = (unwrapped(site["fn"]) for site in (before, after))
        value, event_dim = before["value"], len(b.event_shape)
        log_probs = torch.broadcast_tensors(a.log_prob(value), b.log_prob(value))
        shape = torch.broadcast_shapes(value.shape, log_probs[0].shape + b.event_shape)
        visible = unmasked(before, shape) & unmasked(after, shape)
        changed = (after["value"] != value).expand(shape) & visible
        axes = tuple(range(-event_dim, 0))
        changed, visible = (part.any(axes) if axes else part for part in (changed, visible))
        old, new = log_probs
        differs = ((new - old).abs() > TOLERANCE * (1 + old.abs())) & visible
        axis = differs.ndim - len(before["fn"].event_shape) + event_dim + self.programs.dim
        by_row, changed_by_row = (part.movedim(axis, 0).reshape(len(self.rows), -1) for part in (differs, changed))
        held = ~torch.isin(self.rows, self.changed_rows)
        return _Score(
            name,
            name in self.programs.latents,
            changed,
            differs,
            bool(by_row.all(1).any()),
            bool(by_row[held].any()),
            bool(changed_by_row[held].any()),
        )
