"""Runs with Pyro's checks on, whose failures are described in one line."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from pyro.poutine.messenger import Messenger

from pyrovae.programs.site_checks import UNNORMALIZED, find_fault, find_nan, find_nan_log_prob, support_fault
from pyrovae.runtime.context import random_state, set_random_state, validation

T = TypeVar("T")


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
    fault = next(filter(None, map(find_fault, sampled.sites)), None)
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
