"""Simulation of data from a model, together with their latent variables."""

from __future__ import annotations

import functools
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyrovae.programs import ModelGuide, Program, find_nan, take_rows, unwrap_own_error
from pyrovae.programs.layout import from_pyro, log_probs
from pyrovae.programs.site_checks import unmasked

RELATIVE, ABSOLUTE = 1e-5, 1e-3  # tolerances of the comparison of two log-probabilities, the second in nats


def simulate(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    """Draw z from the prior and x from the likelihood, in one run of the model, and replace the data by x.

    An argument that the model observes, whole or in part, is replaced by a copy that contains the draws; covariates are
    unchanged. The model then runs on the new arguments, and must observe the draws with the same probabilities.

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, the data first; a template.
        rows: ``(B,)``, rows whose covariates the simulated data have; a row may occur more than once.

    Returns:
        Arguments that hold B data, and z ``(1, B, ...)`` of each latent site.

    Raises:
        ValueError: if the observed values are no argument, cannot be drawn, or enter the model in another way too.

    """
    args = take_rows(args, rows)
    drawn = _trace(args, _Drawn(programs.observed)(programs.model))
    simulated = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)
    for name in programs.observed:
        site = drawn.nodes[name]
        target = _target(name, site["infer"]["obs"], args, simulated)
        if target.shape != site["value"].shape:
            raise ValueError(
                f"{name!r} observes values of shape {tuple(target.shape)} but draws {tuple(site['value'].shape)}; "
                "give its distribution the shape of what it observes"
            )
        target.copy_(
            torch.where(unmasked(site, target.shape), site["value"], target)
        )  # a guide may read what is masked
    z = {name: drawn.nodes[name]["value"] for name in programs.latents}
    _check(programs, drawn, _trace(simulated, poutine.condition(programs.model, data=z)))
    return simulated, {name: from_pyro(programs, name, value) for name, value in z.items()}


class _Drawn(UnconditionMessenger):
    """Sample the named observed sites instead of conditioning on data."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            if nan := find_nan([msg]):  # a draw from NaN ends the process on CUDA
                raise ValueError(f"{nan}, so that no data can be simulated")
            super()._pyro_sample(msg)


def _trace(args: tuple[Any, ...], model: Program) -> poutine.Trace:
    """Run a model on all rows of its arguments."""
    try:
        with torch.no_grad():
            return poutine.trace(functools.partial(model, *args)).get_trace()
    except NotImplementedError as error:
        raise ValueError(
            f"one of the model's distributions cannot be drawn from ({error!r}), so that no data can be simulated; "
            "give it a method sample"
        ) from error
    except ValueError as error:
        cause = unwrap_own_error(error) or error
        raise cause from cause.__cause__


def _target(name: str, observed: Tensor, args: tuple[Any, ...], copies: tuple[Any, ...]) -> Tensor:
    """Return the part of an argument's copy that corresponds to the observed part of the argument."""
    equal = []
    for argument, copy in zip(args, copies, strict=True):
        if not isinstance(argument, Tensor) or argument.dtype != observed.dtype:
            continue
        if _is_part(observed, argument) and copy.stride() == argument.stride():
            offset = observed.storage_offset() - argument.storage_offset()
            return copy.as_strided(observed.shape, observed.stride(), offset)
        if argument.numel() == observed.numel() and torch.equal(argument.reshape(observed.shape), observed):
            equal.append(copy.view(observed.shape))
    if len(equal) == 1:  # a copy, as ``x[i]`` is
        return equal[0]
    raise ValueError(
        f"what {name!r} observes is not an argument of the model or a part of one, so that simulated data cannot be "
        "put in its place; write obs=x and transform the data before the call"
    )


def _is_part(observed: Tensor, argument: Tensor) -> bool:
    """Return whether a tensor is another one, or a view of part of it without repeated elements."""
    first = observed.storage_offset() - argument.storage_offset()
    last = first + sum((size - 1) * stride for size, stride in zip(observed.shape, observed.stride(), strict=True))
    repeated = any(size > 1 and stride == 0 for size, stride in zip(observed.shape, observed.stride(), strict=True))
    shared = observed.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr() != 0
    inside = observed.numel() > 0 and first >= 0 and last < argument.numel()
    return bool(shared and inside and not repeated)


def _check(programs: ModelGuide, drawn: poutine.Trace, again: poutine.Trace) -> None:
    """Check that the model observes the draws, and that their probabilities are unchanged."""
    for name in programs.observed:
        a, b = drawn.nodes[name], again.nodes[name]
        visible = unmasked(b, b["value"].shape)
        if a["value"].shape != b["value"].shape or not _same(a["value"][visible], b["value"][visible], 0.0, 0.0):
            raise ValueError(
                f"{name!r} does not observe the simulated data that the model was given, but something made of them; "
                "write obs=x and transform the data before the call"
            )
    names = (*programs.latents, *programs.observed)
    before, after = (log_probs(programs, trace, names) for trace in (drawn, again))
    for name in names:
        if not _same(before[name], after[name], RELATIVE, ABSOLUTE):
            raise ValueError(
                f"the probability of {name!r} changes when simulated data take the place of the given ones: the model "
                "uses the data in another way than by observing them; pass what it uses as a covariate"
            )


def _same(a: Tensor, b: Tensor, relative: float, absolute: float) -> bool:
    return bool(torch.allclose(a.double(), b.double(), rtol=relative, atol=absolute, equal_nan=True))
