"""Graphs compiled by Inductor, with the process left as it was."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

QUIET = ("torch.utils.cpp_extension", "torch._inductor")


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Return a function that does what a graph of torch's operations does, compiled for inputs like these."""
    from torch import _inductor

    with _unchanged():
        return _inductor.compile(graph, list(inputs))


def has_compiler() -> bool:
    """Tell whether the C++ compiler is there that Inductor needs on a CPU."""
    from torch._inductor import cpp_builder, exc

    try:
        with _unchanged():
            cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        return False
    return True


@contextmanager
def _unchanged() -> Iterator[None]:
    """Put back the validation switch, which importing Dynamo's parts moves, and keep their remarks off the screen."""
    checks = torch.distributions.Distribution._validate_args
    levels = {name: logging.getLogger(name).level for name in QUIET}
    try:
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        torch.distributions.Distribution.set_default_validate_args(checks)
