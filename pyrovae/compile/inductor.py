"""Compilation of FX graphs by Inductor without side effects on the process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

# contraction: one instruction for a product and a sum; thresholds: size of a loop before Inductor writes intermediate
# values to memory
ON_CPU = {
    "cpp.enable_floating_point_contract_flag": "fast",
    "realize_reads_threshold": 100,
    "realize_acc_reads_threshold": 100,
    "realize_opcount_threshold": 1000,
}
QUIET = ("torch.utils.cpp_extension", "torch._inductor")  # loggers silenced during compilation


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a graph for inputs with the shapes, dtypes and devices of these.

    Graphs compiled before, in any process, are found in Inductor's cache. The cache of AOTAutograd is off: its keys do
    not distinguish tensors that share memory from others.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs)
    for node in graph.graph.nodes:  # metadata of the tracer is invalid after noise was split off
        node.meta = {}
    with _process_unchanged():
        from torch import _inductor
        from torch._functorch import config
        from torch._guards import TracingContext, tracing
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        fake_mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)  # required by Inductor's cache
        fakes: list[Any] = [fake_mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
        with tracing(TracingContext(fake_mode)), config.patch(enable_autograd_cache=False):
            return _inductor.compile(graph, fakes, options=ON_CPU if on_cpu else None)


def has_compiler() -> bool:
    """Return whether the C++ compiler that Inductor needs on a CPU is installed."""
    from torch._inductor import cpp_builder, exc

    try:
        with _process_unchanged():
            cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        return False
    return True


@contextmanager
def _process_unchanged() -> Iterator[None]:
    """Restore the validation switch, which importing Dynamo changes, and silence warnings and loggers of Inductor."""
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
