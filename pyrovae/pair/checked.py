"""Runs of programs with Pyro's checks on, whose findings are told in one line, and which NaN may pass."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import lazy_property

from pyrovae.sandbox import random_state, set_random_state, validation

T = TypeVar("T")

PACKAGE = Path(__file__).parents[1]
VALUE = "the value"


def run_checked(attempt: Callable[[], T], device: torch.device, *, on_nan: Callable[[str], object] | None = None) -> T:
    """Run programs with Pyro's checks of shapes, parameters and supports on.

    Args:
        attempt: runs them, and computes the log-probabilities; it may be called twice, with the same draws.
        device: on which they draw.
        on_nan: is told what is NaN where nothing else is wrong, and what the programs find is returned, NaN and all; if
            None, NaN are refused as everything else that is wrong.

    Returns:
        What ``attempt`` returns.

    Raises:
        ValueError: if parameters or values lie outside of what a distribution takes; the text names site and parameter.

    """
    before = random_state(device)
    try:
        with validation(enabled=True):
            return attempt()
    except ValueError as error:
        failure = error
    if own := told_by_us(failure):
        raise own
    set_random_state(before, device)
    found: list[T] = []
    with validation(enabled=False), _Noted() as noted:
        try:
            found.append(attempt())
        except Exception as error:  # it may fail later than with checks
            if str(error) == str(failure):  # and then no check has found this
                raise failure from None
    outside, nan = _outside(noted.sites), nan_in(noted.sites)
    if outside is None and nan is None:
        raise failure
    if outside is None and nan is not None and on_nan is not None and found:
        on_nan(nan)
        return found[0]
    raise ValueError(outside or nan) from failure


def told_by_us(error: Exception) -> Exception | None:
    """Return what a part of ours told, without the shapes that Pyro's frames put around it, if one did."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    frames = traceback.extract_tb(first.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
    return first if ours and isinstance(first, Exception) else None


class _Noted(Messenger):
    """Notes the sample sites of all programs that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Any] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        self.sites.append(msg.copy())


def nan_in(sites: list[Any]) -> str | None:
    """Return, in words, the first parameter or value at these sites that holds NaN."""
    for site in sites:
        for what, value, _ in _constrained(site):
            if value.isnan().any():
                return f"{what} at the site {site['name']!r}: {int(value.isnan().sum())} of {value.numel()} are NaN"
    return None


def _outside(sites: list[Any]) -> str | None:
    """Return, in words, the first parameter or value that breaks its constraint by other numbers than NaN."""
    for site in sites:
        for what, value, constraint in _constrained(site):
            fits, lost = constraint.check(value), value.isnan()
            if fits.ndim < lost.ndim:
                lost = lost.flatten(fits.ndim).any(-1)
            bad = ~fits & ~lost
            if bad.any():
                rule = f"lie outside the support {constraint}" if what == VALUE else f"do not satisfy {constraint}"
                one = f" (the first is {value[bad][0].item():.6g})" if bad.shape == value.shape else ""
                return f"{what} at the site {site['name']!r}: {int(bad.sum())} of {bad.numel()} {rule}{one}"
    return None


def _constrained(site: Any) -> Iterator[tuple[str, Tensor, Any]]:
    """Yield what a site holds: in words, its value, and the constraint on each of its elements or events."""
    inside = [site["fn"]]
    while inside:
        fn = inside.pop()
        if not isinstance(fn, Distribution):  # such as what draws the rows of a plate
            continue
        inside.extend(held for held in vars(fn).values() if isinstance(held, Distribution))
        for name, constraint in _own(fn, "arg_constraints", {}).items():
            lazy = name not in vars(fn) and isinstance(getattr(type(fn), name, None), lazy_property)
            if lazy or constraints.is_dependent(constraint):
                continue
            value = getattr(fn, name)
            if isinstance(value, Tensor):
                yield f"{name} of {type(fn).__name__}", value, _of_elements(constraint)
    support = _own(site["fn"], "support", None)
    if isinstance(site["value"], Tensor) and support is not None and not constraints.is_dependent(support):
        yield VALUE, site["value"], _of_elements(support)


def _own(fn: Any, name: str, default: Any) -> Any:
    """Return what a distribution says of itself, if it says anything."""
    try:
        return getattr(fn, name, default)
    except NotImplementedError:
        return default


def _of_elements(constraint: Any) -> Any:
    """Return a constraint without the axes over which it asks whether all elements meet it."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint
