"""Graphs compiled by Inductor, with the process left as it was."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from pyrovae.compile.rewrites import rewrite_for_cpu

# patterns: one of them would undo what is rewritten here. Contraction: a product and a sum in one instruction.
# Thresholds: what a loop may compute at once before Inductor writes something in between to memory
ON_CPU = {
    "pattern_matcher": False,
    "cpp.enable_floating_point_contract_flag": "fast",
    "realize_reads_threshold": 100,
    "realize_acc_reads_threshold": 100,
    "realize_opcount_threshold": 1000,
}
QUIET = ("torch.utils.cpp_extension", "torch._inductor")


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Return a function that does what a graph of torch's operations does, compiled for inputs like these.

    What was compiled before, in any process, is found in Inductor's cache. That of the stage before is not used: it
    does not tell apart tensors that share their memory and others.
    """
    on_cpu = all(each.device.type == "cpu" for each in inputs)
    if on_cpu:
        rewrite_for_cpu(graph.graph)
        graph.recompile()
    for node in graph.graph.nodes:  # what the tracer noted of values does not hold for what is rewritten
        node.meta = {}
    with _unchanged():
        from torch import _inductor
        from torch._functorch import config
        from torch._guards import TracingContext, tracing
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        known = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # without it the cache is not used
        given: list[Any] = [known.from_tensor(each, static_shapes=True) for each in inputs]
        with tracing(TracingContext(known)), config.patch(enable_autograd_cache=False):
            return _inductor.compile(graph, given, options=ON_CPU if on_cpu else None)


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
