"""Checks of sample sites (parameters, shapes, supports, masks, NaN), and runs of programs under these checks."""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

from pyrovae.runtime.context import random_state, set_random_state, validation

T = TypeVar("T")
Site = Mapping[str, Any]

UNNORMALIZED = "unnormalized"  # key of a site's `infer` that allows values outside the support
LOWER_DIMENSIONAL = tuple(  # supports that a value meets up to rounding only
    type(constraint)
    for constraint in (
        constraints.simplex,
        constraints.sphere,
        constraints.corr_cholesky,
        constraints.corr_matrix,
        constraints.lower_cholesky,
        constraints.lower_triangular,
        constraints.positive_definite,
    )
)
PERIOD = constraints.interval(-math.pi, math.pi)  # of angles; their density is normalized over it, not over R
_PERIODIC = (torch.distributions.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)
_WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
_COMPONENTS = ("base_dist", "_component_distribution", "component0", "component1")


class Unnormalized(Messenger):
    """Let a program score values outside the support of its distributions.

    The results are not log-probabilities, and are marked accordingly: ``evaluate(..., unnormalized=True)`` is
    ``evaluate(Unnormalized()(model), ...)``.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = {**(msg["infer"] or {}), UNNORMALIZED: True}
        msg["fn"] = _unchecked(msg["fn"])


def find_nan(sites: Iterable[Site]) -> str | None:
    """Return a description of the first parameter or value that contains NaN."""
    for site in sites:
        values = [(name, value) for name, value, _ in _parameters(site["fn"])]
        values += [("the value", site["value"])] if isinstance(site["value"], Tensor) else []
        for name, value in values:
            if value.isnan().any():
                return _describe(name, site, value.isnan(), "are NaN")
    return None


def find_nan_log_prob(sites: Iterable[Site]) -> str | None:
    """Return a description of the first log-probability that contains NaN."""
    for site in sites:
        with suppress(Exception):  # a distribution may have no log_prob
            log_prob = site["log_prob"] if "log_prob" in site else site["fn"].log_prob(site["value"])
            if log_prob.isnan().any():
                return _describe("the log-probability", site, log_prob.isnan(), "are NaN")
    return None


def unmasked(site: Site, shape: Sequence[int]) -> Tensor:
    """Return a boolean tensor of a shape to which the site's value expands, False where any mask hides an element."""
    value, fn = site["value"], site["fn"]
    masks = [] if site["mask"] is None else [(site["mask"], fn.event_dim)]
    masks += [(part._mask, part.event_dim) for part in components(fn) if isinstance(part, dist.MaskedDistribution)]
    visible = torch.ones(torch.Size(shape), dtype=torch.bool, device=value.device)
    for mask, event_dim in masks:
        mask = torch.as_tensor(mask, device=value.device).bool()
        visible = visible & mask.reshape((*mask.shape, *[1] * event_dim)).expand(visible.shape)
    return visible


def support_of(fn: Any) -> Any:
    """Return the constraint on single elements of a distribution's values, None if it does not declare one.

    Of a distribution over angles it is the period from -pi to pi.
    """
    constraint = PERIOD if is_periodic(fn) else _own_attribute(fn, "support")
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return None if constraints.is_dependent(constraint) else constraint


def is_discrete(fn: Any) -> bool | None:
    """Return whether a distribution has a discrete support, None if it does not declare its support."""
    return getattr(support_of(fn), "is_discrete", None)


def constraint_name(constraint: Any) -> str:
    """Return the name of a constraint, without bounds that are large tensors."""
    many = any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in vars(constraint).values())
    return f"{type(constraint).__name__.removeprefix('_')}(...)" if many else str(constraint)


def unwrapped(fn: Any) -> Any:
    """Return a distribution without the wrappers of independence, masks and expansion."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def components(fn: Any) -> Iterator[Any]:
    """Yield a distribution and the distributions of its draws, without the choice of a mixture component."""
    yield fn
    for name in _COMPONENTS:
        if isinstance(inner := vars(fn).get(name), Distribution):
            yield from components(inner)


def is_periodic(fn: Any) -> bool:
    """Return whether a distribution is over angles, with a density that is normalized over one period of 2 pi."""
    fn = unwrapped(fn)
    component = vars(fn).get("_component_distribution")
    return isinstance(fn, _PERIODIC) or (component is not None and is_periodic(component))


def _unchecked(fn: Any) -> Any:
    """Return a copy of a distribution that does not check its values at any level."""
    if not isinstance(fn, Distribution):
        return fn
    fn = copy.copy(fn)
    fn._validate_args = False
    for name in _COMPONENTS:
        if name in vars(fn):
            setattr(fn, name, _unchecked(getattr(fn, name)))
    return fn


def support_fault(site: Site, *, strict: bool) -> str | None:
    """Return a description of the values outside the support of their distribution.

    Args:
        site: a sample site.
        strict: whether masked values, values with log-probability -inf, and supports that are met up to rounding
            count too.

    """
    fn, value, support = site["fn"], site["value"], support_of(site["fn"])
    if support is None or not isinstance(value, Tensor) or (isinstance(support, LOWER_DIMENSIONAL) and not strict):
        return None
    inside = support.check(value)
    if is_discrete(fn):  # torch checks only the sum of a multinomial
        whole = value == value.round()
        inside = inside & (whole if inside.ndim == value.ndim else whole.all(-1))
    outside = _outside(inside, value, support)
    by_event = inside.ndim < value.ndim
    if outside.any() and not strict:
        if not by_event:
            shape = torch.broadcast_shapes(outside.shape, (*fn.batch_shape, *fn.event_shape))
            outside = outside & unmasked(site, shape)
        with suppress(Exception):  # a distribution may fail outside its support
            log_prob = _unchecked(unwrapped(fn)).log_prob(value)
            outside = outside & (log_prob != -math.inf) if log_prob.shape == outside.shape else outside
    if not outside.any():
        return None
    first = "" if by_event else f" (the first is {value.expand(outside.shape)[outside][0].item():.6g})"
    hint = (
        "bring angles into this range, as torch.atan2(x.sin(), x.cos()) does"
        if is_periodic(fn)
        else "their score is not a log-probability, whatever validate_args says; binarize or rescale the data, choose "
        "a distribution for them, or pass unnormalized=True to fit, capture or evaluate for numbers that are not "
        "log-probabilities"
        if site["is_observed"]
        else "give model and guide the same support"
    )
    name = f"{constraint_name(support)} of {type(unwrapped(fn)).__name__}"
    return f"{_describe('the value', site, outside, f'lie outside the support {name}')}{first}; {hint}"


def _parameter_fault(site: Site) -> str | None:
    """Return a description of the first parameter that does not satisfy its constraint, NaN aside."""
    for name, value, constraint in _parameters(site["fn"]):
        bad = _outside(constraint.check(value), value, constraint)
        if bad.any():
            first = f" (the first is {value[bad][0].item():.6g})" if bad.shape == value.shape else ""
            return _describe(name, site, bad, f"do not satisfy {constraint_name(constraint)}{first}")
    return None


def _outside(inside: Tensor, value: Tensor, constraint: Any) -> Tensor:
    """Return where a value is not inside its constraint although neither the value nor a bound is NaN."""
    nan = value.isnan()
    nan = nan.flatten(inside.ndim).any(-1) if inside.ndim < nan.ndim else nan
    for bound in vars(constraint).values():
        nan = nan | bound.isnan() if isinstance(bound, Tensor) else nan
    return ~inside & ~nan


def _shape_fault(site: Site) -> str | None:
    """Return a description of a value whose shape its distribution cannot score."""
    fn, value = site["fn"], site["value"]
    if not isinstance(fn, Distribution) or not isinstance(value, Tensor):
        return None
    shape = fn.batch_shape + fn.event_shape
    events = value.ndim >= len(fn.event_shape) and value.shape[value.ndim - len(fn.event_shape) :] == fn.event_shape
    alike = all(1 in sizes or len(set(sizes)) == 1 for sizes in zip(value.shape[::-1], shape[::-1], strict=False))
    if events and alike:
        return None
    return (
        f"the value at the site {site['name']!r} has the shape {tuple(value.shape)}, but its distribution has batches "
        f"{tuple(fn.batch_shape)} of events {tuple(fn.event_shape)}"
    )


def _parameters(fn: Any) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield description, value and constraint of each parameter of a distribution and of its base distributions."""
    if not isinstance(fn, Distribution):  # the draw of a plate's rows
        return
    for name, constraint in _own_attribute(fn, "arg_constraints", {}).items():
        lazy = name not in vars(fn) and isinstance(getattr(type(fn), name, None), lazy_property)
        if not lazy and not constraints.is_dependent(constraint) and isinstance(value := getattr(fn, name), Tensor):
            while isinstance(constraint, constraints.independent):
                constraint = constraint.base_constraint
            yield f"{name} of {type(fn).__name__}", value, constraint
    for inner in vars(fn).values():
        yield from _parameters(inner)


def _own_attribute(fn: Any, name: str, default: Any = None) -> Any:
    """Return an attribute of a distribution, or the default if it is not implemented."""
    try:
        return getattr(fn, name, default)
    except NotImplementedError:
        return default


def _describe(name: str, site: Site, which: Tensor, fault: str) -> str:
    return f"{name} at the site {site['name']!r}: {int(which.sum())} of {which.numel()} {fault}"


def run_validated(attempt: Callable[[], T], device: torch.device, *, nan_counts: bool) -> T:
    """Run programs with Pyro's checks of shapes, parameters and supports on.

    Values are checked against the support of their distribution whatever its ``validate_args`` is. Values with
    log-probability -inf and supports that are met up to rounding, such as a simplex, pass there.

    Args:
        attempt: runs the programs and computes log-probabilities. If a check fails, it runs again without checks, on
            the same draws, to find the reason.
        device: of the draws.
        nan_counts: whether NaN passes the checks, because the caller counts it.

    Returns:
        The result of ``attempt``.

    Raises:
        ValueError: if a distribution does not accept a parameter or a value; the text names both. Errors of the
            programs themselves are passed on.

    """
    before = random_state(device)
    try:
        with validation(enabled=True), _SampledSites() as sampled:
            result = attempt()
    except ValueError as error:
        failure, root = error, _root(error)
    else:
        for site in sampled.sites:
            if not site["infer"].get(UNNORMALIZED) and (fault := support_fault(site, strict=False)):
                raise ValueError(fault)
        return result
    if _raised_in(root, "pyrovae"):
        raise root
    if not _raised_in(root, "torch.distributions", "pyro.distributions"):
        raise failure
    set_random_state(before, device)
    results = []
    with validation(enabled=False), _SampledSites() as sampled, suppress(Exception):  # the fault may stop it again
        results.append(attempt())
    faults = (_shape_fault(s) or _parameter_fault(s) or support_fault(s, strict=True) for s in sampled.sites)
    fault = next(filter(None, faults), None)
    nan = find_nan(sampled.sites) or find_nan_log_prob(sampled.sites)
    if fault is None and nan is not None and nan_counts and results:
        return results[0]
    if fault is None and nan is None:
        raise failure
    raise ValueError(fault or nan) from failure


def unwrap_own_error(error: BaseException) -> BaseException | None:
    """Return the error of this package inside an error to which Pyro added shapes, None if there is none."""
    root = _root(error)
    return root if _raised_in(root, "pyrovae") else None


class _SampledSites(Messenger):
    """Collect the sample sites of all programs that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Any] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        self.sites.append(msg.copy())


def _root(error: BaseException) -> BaseException:
    """Return the original error, before Pyro raised it again with shapes or the name of a site in its text."""
    while error.__cause__ is not None and str(error.__cause__) in str(error):
        error = error.__cause__
    return error


def _raised_in(error: BaseException, *packages: str) -> bool:
    """Return whether an error was raised by a module of one of the packages."""
    module = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
    return f"{module}.".startswith(tuple(f"{package}." for package in packages))
