"""Networks that return probabilities where logits belong, or scales where their logarithms belong."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Distribution

from pyrovae.programs.model_guide import ModelGuide
from pyrovae.runtime.context import forked_random, frozen_unremarked, module_mode, validation

logger = logging.getLogger("pyrovae")

PROBABILITY = ("Sigmoid", "Hardsigmoid", "Softmax")
POSITIVE = ("Softplus", "Exp", "Sigmoid", "Relu", "Abs", "Sqrt")
OUTPUTS = {  # attributes of distributions that networks fill, with what not to fill them with
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
FLOOR = "Asinh"  # the operation before the exponential of `likelihoods.floor`
ENDS = 0.01, 0.99  # that values between 0 and 1 reach if they are probabilities of something learned
MANY = 100  # values of which all but probabilities leave [0, 1]


def warn_of_links(programs: ModelGuide, args: tuple[Any, ...]) -> None:
    """Warn of logits and logarithms that a network returns as probabilities, rates or scales.

    The autograd graph of one run shows logits that come out of a sigmoid or softmax, logarithms that come out of a
    softplus or exponential, and standard deviations of a guide that are the exponential of a positive function, so
    that all are above 1. Logits without a graph are judged by their values.

    Args:
        programs: from `inspect_programs`.
        args: the data ``(N, ...)`` and whatever travels with them, or a few rows of these.

    """
    if programs.draws_rows:
        return  # which takes all data, and many rows
    rows = torch.arange(min(programs.num_rows, len(args[0])), device=args[0].device)
    with (
        forked_random(0, args[0].device),
        module_mode(programs.all_modules, training=False),
        validation(enabled=False),
        frozen_unremarked(),
        torch.enable_grad(),
    ):
        try:
            found = list(_doubts(programs, args, rows))
        except Exception:  # a program that ran without gradients need not run with them
            return
    for doubt in found:
        logger.warning("%s", doubt)


def _doubts(programs: ModelGuide, args: tuple[Any, ...], rows: Tensor) -> Iterator[str]:
    """Yield, in words, each doubtful parameter."""
    model, guide = programs.bind(args, rows)
    drawn = poutine.trace(guide).get_trace()
    for name in programs.latents:
        for fn in _distributions(drawn.nodes[name]["fn"]):
            scale = vars(fn).get("scale")
            if isinstance(scale, Tensor) and (source := _scale_source(scale)):
                yield (
                    f"the standard deviations of the guide at {name!r} are exponentials of {source}(...) and all above "
                    "1: the encoder seems to return standard deviations where log-variances belong"
                )
        value = drawn.nodes[name]["value"]
        drawn.nodes[name]["value"] = value.detach().requires_grad_(value.is_floating_point())
    trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace()
    for name in programs.observed:
        for fn in _distributions(trace.nodes[name]["fn"]):
            for parameter, (words, wanted) in OUTPUTS.items():
                value = vars(fn).get(parameter)
                if not isinstance(value, Tensor):
                    continue
                if source := _source(value, wanted):
                    yield (
                        f"the {words} of {name!r} come out of {source}(...), but the distribution takes them without "
                        "it; leave it out of the decoder"
                    )
                elif parameter == "logits" and _like_probabilities(value):
                    yield (
                        f"the logits of {name!r} all lie between 0 and 1 and reach both ends, as probabilities do; let "
                        "the decoder return logits, without a sigmoid at its end"
                    )


def _distributions(fn: Any) -> Iterator[Distribution]:
    """Yield a distribution and those that it is made of, one inside the other."""
    while isinstance(fn, Distribution):
        yield fn
        fn = vars(fn).get("base_dist")


def _scale_source(scale: Tensor) -> str | None:
    """Return the positive operation that a scale is the exponential of, if all scales are above 1."""
    operations = [name for name in _operations(scale) if name not in SHAPE]
    if operations[:1] != ["Exp"] or not (scale >= 1).all():
        return None
    return _first(operations[1:], POSITIVE)


def _source(value: Tensor, wanted: tuple[str, ...]) -> str | None:
    """Return which of the wanted operations a value comes out of; None if some of it lies outside their range."""
    if not ((value >= 0) & (value <= (1.0 if wanted is PROBABILITY else math.inf))).all():
        return None
    operations = [name for name in _operations(value) if name not in SHAPE]
    return _first(operations[operations.index(FLOOR) + 1 if FLOOR in operations else 0 :], wanted)


def _first(operations: list[str], wanted: tuple[str, ...]) -> str | None:
    """Return the first operation that does not only scale or move a value, if it is wanted."""
    name = next((name for name in operations if name not in ARITHMETIC), None)
    return name.lower() if name in wanted else None


def _operations(value: Tensor) -> Iterator[str]:
    """Yield the operations that a value is the result of, from the last one back to where several inputs meet.

    Of what a stack joined and an unbind took apart, it is followed to the same part.
    """
    node, position, part = value.grad_fn, value.output_nr, 0
    while node is not None:
        name = type(node).__name__.partition("Backward")[0]
        inputs = [programs for programs in node.next_functions if programs[0] is not None]
        if name in ("Unbind", "Split", "SplitWithSizes", "UnsafeSplit"):
            part = position
        elif name == "Select":
            part = node._saved_index  # type: ignore[attr-defined]
        if name in ("Stack", "Cat") and len(node.next_functions) > 1:
            node, position = node.next_functions[part] if part < len(node.next_functions) else (None, 0)
            continue
        yield name
        node, position = inputs[0] if len(inputs) == 1 else (None, 0)


def _like_probabilities(values: Tensor) -> bool:
    """Tell whether values without a graph are probabilities: all inside [0, 1], near both ends, and many."""
    if values.grad_fn is not None or values.numel() < MANY:
        return False
    low, high = (bound.item() for bound in values.aminmax())
    return 0 <= low < ENDS[0] and ENDS[1] < high <= 1
