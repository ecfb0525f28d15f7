"""Runs of programs with Pyro's checks on, whose findings are told in one line, and which NaN may pass."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import lazy_property

from pyrovae.programs.support import constraint_name, element_constraint, own_attribute, require_supported
from pyrovae.runtime.context import random_state, set_random_state, validation

T = TypeVar("T")

OURS = Path(__file__).parents[1]
CHECKS = [Path(str(package.__file__)).parent for package in (torch.distributions, pyro.distributions)]
VALUE = "the value"


def run_validated(attempt: Callable[[], T], device: torch.device, *, nan_counts: bool) -> T:
    """Run programs with Pyro's checks of shapes, parameters and supports on.

    Args:
        attempt: runs them, and computes the log-probabilities; where a check fails, it is called again without, with
            the same draws, to find out why.
        device: on which they draw.
        nan_counts: whether the checks let NaN pass, because who called counts them.

    Returns:
        What ``attempt`` returns.

    Raises:
        ValueError: if parameters or values are not what a distribution takes; the text names site and parameter. What
            the programs themselves raise is left as it is.

    """
    before = random_state(device)
    try:
        with validation(enabled=True), SampledSites() as sampled:
            result = attempt()
    except ValueError as error:
        failure, root = error, _root(error)
    else:
        for site in sampled.sites:
            require_supported(site)
        return result
    if _raised_in(root, OURS):
        raise root
    if not _raised_in(root, *CHECKS):
        raise failure
    set_random_state(before, device)
    found: list[T] = []
    with (
        validation(enabled=False),
        SampledSites() as noted,
        suppress(Exception),
    ):  # what is wrong may stop it later, too
        found.append(attempt())
    wrong, nan = _wrong(noted.sites), nan_at(noted.sites) or _nan_log_prob(noted.sites)
    if wrong is None and nan is not None and nan_counts and found:
        return found[0]
    if wrong is None and nan is None:
        raise failure
    raise ValueError(wrong or nan) from failure


def unwrap_own_error(error: BaseException) -> BaseException | None:
    """Return what a part of ours told, without the shapes that Pyro's frames put around it, if one did."""
    root = _root(error)
    return root if _raised_in(root, OURS) else None


def nan_at(sites: Iterable[Any]) -> str | None:
    """Return, in words, the first parameter or value at these sites that holds NaN."""
    for site in sites:
        for what, value, _ in _constrained(site):
            if value.isnan().any():
                return _in_words(f"{what} at the site", site, value.isnan(), "are NaN")
    return None


def nan_in(*traces: poutine.Trace) -> str | None:
    """Return, in words, what makes a log-probability of these traces NaN, if any is."""
    sites = [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"]
    nan = _nan_log_prob(sites)
    return nan and (nan_at(sites) or nan)


def _nan_log_prob(sites: Iterable[Any]) -> str | None:
    """Return, in words, the first of these sites whose log-probability holds NaN, which may come from anywhere."""
    for site in sites:
        with suppress(Exception):  # such as that of a distribution that has none
            log_prob = site["log_prob"] if "log_prob" in site else site["fn"].log_prob(site["value"])
            if log_prob.isnan().any():
                return _in_words("the log-probability at the site", site, log_prob.isnan(), "are NaN")
    return None


class SampledSites(Messenger):
    """Collect the sample sites of all programs that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Any] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        self.sites.append(msg.copy())


def _root(error: BaseException) -> BaseException:
    """Return the error around which Pyro put shapes, or the name of a site, with the traceback of its own."""
    while (cause := error.__cause__) is not None and _place(error) is not None and _place(error) is _place(cause):
        error = cause
    return error


def _place(error: BaseException) -> FrameType | None:
    """Return the frame in which an error was raised."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1] if frames else None


def _raised_in(error: BaseException, *folders: Path) -> bool:
    place = _place(error)
    return place is not None and any(Path(place.f_code.co_filename).is_relative_to(folder) for folder in folders)


def _wrong(sites: Iterable[Any]) -> str | None:
    """Return, in words, the first parameter or value that is not what its distribution takes, NaN aside."""
    for site in sites:
        if (misfit := _misfit(site)) is not None:
            return misfit
        for what, value, constraint in _constrained(site):
            fits, lost = constraint.check(value), value.isnan()
            for bound in vars(constraint).values():
                lost = lost | bound.isnan() if isinstance(bound, Tensor) else lost
            if fits.ndim < lost.ndim:  # it judges events
                lost = lost.flatten(fits.ndim).any(-1)
            bad = ~fits & ~lost
            if bad.any():
                rule = "lie outside the support" if what == VALUE else "do not satisfy"
                one = f" (the first is {value[bad][0].item():.6g})" if bad.shape == value.shape else ""
                return _in_words(f"{what} at the site", site, bad, f"{rule} {constraint_name(constraint)}{one}")
    return None


def _misfit(site: Any) -> str | None:
    """Return, in words, how the shape of a value differs from what its distribution scores."""
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


def _constrained(site: Any) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield what a site holds: in words, its value, and the constraint on each of its elements or events."""
    inside = [site["fn"]]
    while inside:
        fn = inside.pop()
        if not isinstance(fn, Distribution):  # such as what draws the rows of a plate
            continue
        inside.extend(held for held in vars(fn).values() if isinstance(held, Distribution))
        for name, constraint in own_attribute(fn, "arg_constraints", {}).items():
            lazy = name not in vars(fn) and isinstance(getattr(type(fn), name, None), lazy_property)
            if lazy or constraints.is_dependent(constraint):
                continue
            value = getattr(fn, name)
            if isinstance(value, Tensor):
                yield f"{name} of {type(fn).__name__}", value, element_constraint(constraint)
    support = own_attribute(site["fn"], "support", None)
    if isinstance(site["value"], Tensor) and support is not None and not constraints.is_dependent(support):
        yield VALUE, site["value"], element_constraint(support)


def _in_words(what: str, site: Any, which: Tensor, how: str) -> str:
    return f"{what} {site['name']!r}: {int(which.sum())} of {which.numel()} {how}"
