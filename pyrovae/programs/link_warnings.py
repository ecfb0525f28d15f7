"""Warnings of networks that return probabilities where logits belong, or scales where their logarithms belong."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

from pyro import poutine
from torch import Tensor

from pyrovae.programs.analytic_kl import latent_sites
from pyrovae.programs.model_guide import ModelGuide
from pyrovae.programs.site_checks import components

logger = logging.getLogger("pyrovae")

PROBABILITY = ("Sigmoid", "Hardsigmoid", "Softmax")
POSITIVE = ("Softplus", "Exp", "Sigmoid", "Relu", "Abs", "Sqrt")
OUTPUTS = {  # parameters of distributions: their description, and the functions they must not come out of
    "logits": ("logits", PROBABILITY),
    "log_rate": ("logarithms of rates", POSITIVE[:2]),
    "log_mean": ("logarithms of means", POSITIVE[:2]),
    "log_scale": ("logarithms of scales", POSITIVE[:2]),
}
SHAPE = (
    *("Alias", "Clamp", "Clone", "Expand", "Permute", "ReshapeAlias", "Select", "Slice", "Split", "SplitWithSizes"),
    *("Squeeze", "T", "ToCopy", "Transpose", "Unbind", "UnsafeSplit", "UnsafeView", "Unsqueeze", "View"),
)
ARITHMETIC = ("Add", "Div", "Mul", "Sub")
FLOOR = "Asinh"  # the operation before the exponential of `likelihoods.parametrization.floored`


def warn_of_links(programs: ModelGuide) -> None:
    """Warn of networks that end in a link function (sigmoid, exp) that the distribution applies again."""
    for warning in programs.link_warnings:
        logger.warning("%s", warning)


def find_link_warnings(guide_trace: poutine.Trace, model_trace: poutine.Trace) -> tuple[str, ...]:
    """Describe logits and logarithms that a network returns as probabilities, rates or scales.

    The autograd graph shows logits that come out of a sigmoid or softmax, logarithms that come out of a softplus or
    exponential, and standard deviations of a guide that are the exponential of a positive function, so that all are
    above 1. Values without a graph give no warning.

    Args:
        guide_trace: a run of the guide with gradients.
        model_trace: the model replayed against the same draws, as leaves of the graph.

    """
    try:
        return (*_scale_warnings(guide_trace), *_output_warnings(model_trace))
    except Exception:  # a program may return anything
        return ()


def leaves_of_draws(guide_trace: poutine.Trace) -> dict[str, Tensor]:
    """Return the guide's draws by site, as leaves of the autograd graph."""
    values = {name: site["value"].detach() for name, site in latent_sites(guide_trace).items()}
    return {name: value.requires_grad_(value.is_floating_point()) for name, value in values.items()}


def _scale_warnings(guide_trace: poutine.Trace) -> Iterator[str]:
    """Yield a warning for each latent site whose standard deviation is exp(f), f > 0."""
    for name, site in latent_sites(guide_trace).items():
        for fn in components(site["fn"]):
            scale = vars(fn).get("scale")
            if isinstance(scale, Tensor) and (scale >= 1).all():
                operations = _operations(scale)
                source = _first(operations[1:], POSITIVE) if operations[:1] == ["Exp"] else None
                if source:
                    yield (
                        f"the standard deviations of the guide at {name!r} are exponentials of {source}(...) and all "
                        "above 1: the encoder seems to return standard deviations where log-variances belong"
                    )


def _output_warnings(model_trace: poutine.Trace) -> Iterator[str]:
    """Yield a warning for each parameter of an observed site that comes out of a link function."""
    sites = [site for site in model_trace.nodes.values() if site["type"] == "sample" and site["is_observed"]]
    for name, fn in [(site["name"], fn) for site in sites for fn in components(site["fn"])]:
        for parameter, (description, wanted) in OUTPUTS.items():
            value = vars(fn).get(parameter)
            largest = 1.0 if wanted is PROBABILITY else math.inf
            if not isinstance(value, Tensor) or not ((value >= 0) & (value <= largest)).all():
                continue
            operations = _operations(value)
            start = operations.index(FLOOR) + 1 if FLOOR in operations else 0
            if source := _first(operations[start:], wanted):
                yield (
                    f"the {description} of {name!r} come out of {source}(...), but the distribution takes them without "
                    "it; leave it out of the decoder"
                )


def _first(operations: list[str], wanted: tuple[str, ...]) -> str | None:
    """Return the first operation that does not only scale or move a value, if it is wanted."""
    name = next((name for name in operations if name not in ARITHMETIC), None)
    return name.lower() if name in wanted else None


def _operations(value: Tensor) -> list[str]:
    """Return the chain of operations before a value, last first, up to the first one with several inputs.

    Operations that only change the shape are left out. A part that an unbind takes of a stack is followed to the same
    part of the stack.
    """
    names: list[str] = []
    node, position, part = value.grad_fn, value.output_nr, 0
    while node is not None:
        name = type(node).__name__.partition("Backward")[0]
        inputs = [source for source in node.next_functions if source[0] is not None]
        if name in ("Unbind", "Split", "SplitWithSizes", "UnsafeSplit"):
            part = position
        elif name == "Select":
            part = node._saved_index  # type: ignore[attr-defined]
        if name in ("Stack", "Cat") and len(node.next_functions) > 1:
            node, position = node.next_functions[part] if part < len(node.next_functions) else (None, 0)
            continue
        if name not in SHAPE:
            names.append(name)
        node, position = inputs[0] if len(inputs) == 1 else (None, 0)
    return names
