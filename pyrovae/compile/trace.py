"""Tracing of functions: the graph, the tensors that it reads, and its replay."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae.compile.cuda_graph import GraphedFunction
from pyrovae.compile.inductor import compile_graph
from pyrovae.compile.noise import is_mutable, split_noise
from pyrovae.runtime.context import forked_random, is_expanded, validation, values_kept
from pyrovae.runtime.errors import first_line

AGREEMENT = 1e-3  # largest relative distance between compiled and traced results: float32 sums differ by 1e-6
PERTURBATION = 2.0**-6  # relative change of leaves in the second trace
FAR = 1_000_003  # change of a number of steps in the second trace, beyond the flat start of a ramp
# Operations of the largest trace that Inductor compiles, and seconds for each. A chain of T latent sites with a network
# at each has about 120 T; tracing it takes 4, 13 and 43 s of CPU time for T = 10, 30, 100, and pays from 1,400 steps.
MOST_COMPILED, SECONDS_EACH = 3_000, 0.03

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten._unsafe_index.Tensor, aten._unsafe_index_put.default)
OWN_GENERATOR = "it draws from a generator of its own, not from torch's default stream"

Function = Callable[..., Sequence[Any]]  # of tensors; None in place of a tensor is a constant

_of_thread = threading.local()
_compiler_lock = threading.Lock()  # Inductor and the switches set around it belong to the process


def is_recording() -> bool:
    """Return whether this thread is tracing a function, which must not read values of tensors or write to results."""
    return getattr(_of_thread, "recordings", 0) > 0


class NotRecordableError(ValueError):
    """A function cannot be traced or compiled; the text is the reason as a clause."""


class Recording:
    """A traced function, replayed with the present values of the tensors that it reads.

    Random numbers come from torch's default streams in the order in which the function draws them, so that a replay and
    a call agree.

    Args:
        graph: its placeholders are the leaves, then the inputs.
        leaves: tensors that the function reads or writes beside its inputs.

    """

    def __init__(self, graph: fx.GraphModule, leaves: Sequence[Tensor]) -> None:
        self.graph, self.leaves = graph, list(leaves)
        self._replay: Function = functools.partial(graph.forward, *leaves)

    def __call__(self, *inputs: Tensor) -> Sequence[Any]:
        """Return the results for inputs with the layout of the traced ones, without gradients.

        On a CUDA device the next replay overwrites them.
        """
        with torch.no_grad():
            return self._replay(*inputs)

    def compile(self, inputs: Sequence[Tensor]) -> None:
        """Compile the graph by Inductor; torch still draws the random numbers, before the compiled part runs.

        Args:
            inputs: an example, with the layout of all later inputs.

        Raises:
            NotRecordableError: if there are too many operations, the distribution of a random number depends on
                tensors, or Inductor fails.

        """
        if (num_operations := len(self.graph.graph.nodes)) > MOST_COMPILED:
            minutes = num_operations * SECONDS_EACH / 60
            raise NotRecordableError(f"compiling its {num_operations:,} operations would take {minutes:.1f} minutes")
        split = split_noise(self.graph)
        if split is None:
            raise NotRecordableError("it draws random numbers whose distribution depends on data")
        noise, graph = split[0] or tuple, copy.deepcopy(split[1])
        with (
            _compiler_lock,
            torch.no_grad(),
            forked_random(0, _device((*inputs, *self.leaves))),
            values_kept(self.leaves),
        ):
            given = [*noise(), *self.leaves, *inputs]
            expected = graph(*[tensor.clone() for tensor in given])
            try:
                compiled = compile_graph(graph, given)
                results = compiled(*given)
            except Exception as error:  # Inductor may raise anything
                raise NotRecordableError(f"Inductor does not compile it ({first_line(error)})") from error
        if not all(a is b or _close(a, b) for a, b in zip(results, expected, strict=True)):
            raise NotRecordableError("the code that Inductor generates gives other numbers")
        self._replay = functools.partial(_run, noise, compiled, self.leaves)

    def capture_kernels(self, inputs: Sequence[Tensor]) -> None:
        """Capture the kernels of a replay in a CUDA graph; do nothing on other devices.

        Args:
            inputs: an example, with the layout of all later inputs.

        Raises:
            NotRecordableError: if CUDA cannot capture them.

        """
        if inputs[0].device.type == "cuda":
            try:
                self._replay = GraphedFunction(self._replay, inputs, self.leaves)
            except Exception as error:  # kernels may raise anything; the error itself would keep the graph alive
                reason = first_line(error)
            else:
                return
            raise NotRecordableError(reason)


def _run(
    noise: Callable[[], Sequence[Tensor]], compiled: Callable[..., Any], leaves: Sequence[Tensor], *inputs: Tensor
) -> Sequence[Tensor]:
    return compiled(*noise(), *leaves, *inputs)


def record(function: Function, inputs: Sequence[Tensor], *, leaves: Sequence[Tensor]) -> Recording:
    """Trace a function.

    It runs twice, the second time on perturbed values. A difference between the two graphs is a decision in Python, or
    a value computed outside torch, by NumPy for instance: the function cannot be traced. Random streams and values of
    the leaves are restored afterwards.

    Args:
        function: returns tensors; gradients that it computes are part of the graph.
        inputs: an example; replays take tensors of the same shapes, strides and dtypes.
        leaves: tensors that the function may read or write beside its inputs, each once. Other tensors that it reads
            are found, but must not be written.

    Raises:
        NotRecordableError: with the reason, if the function reads the value of a tensor or takes different courses.

    """
    inputs = [tensor.detach() for tensor in inputs]  # distinct objects if one tensor is given twice
    device = _device((*inputs, *leaves))
    graphs = []
    one_thread = torch.autograd.set_multithreading_enabled(False)  # on CUDA, backward would run in another thread
    with values_kept(leaves), validation(enabled=False), one_thread, _marked():
        for example, values in ((inputs, nullcontext()), ([_flipped(x) for x in inputs], _perturbed(leaves))):
            with forked_random(0, device), values:
                try:
                    trace = make_fx(lambda *_, example=example: function(*example))
                    graphs.append(trace(*leaves, *example))
                except Exception as error:  # user programs and the tracer may raise anything
                    raise NotRecordableError(_reason(error)) from error
                _check_own_state(graphs[-1])
    first, second = graphs
    if not _same(first, second):
        raise NotRecordableError("it does not do the same operations, with the same numbers, each time it is run")
    constants = _lift_constants(second)
    move_indices(second, device)
    return Recording(second, [*constants, *leaves])


def _device(tensors: Sequence[Tensor]) -> torch.device:
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def _marked() -> Iterator[None]:
    """Make `is_recording` true inside the block."""
    _of_thread.recordings = getattr(_of_thread, "recordings", 0) + 1
    try:
        yield
    finally:
        _of_thread.recordings -= 1


def layout_of(inputs: Sequence[Tensor]) -> tuple[object, ...]:
    """Return the properties in which inputs of a replay must agree with the traced ones."""
    return tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in inputs)


def _flipped(value: Tensor) -> Tensor:
    """Return the values in reverse order, in the same shape and strides, and slightly smaller if floating point."""
    own = value
    for dim, stride in enumerate(value.stride()):
        own = own.narrow(dim, 0, 1) if stride == 0 and value.shape[dim] > 1 else own  # one copy of expanded elements
    new = torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device=own.device)
    new.copy_(own.flip(tuple(range(own.ndim))))
    return (new.mul_(1 - PERTURBATION) if new.is_floating_point() else new).expand(value.shape)


@contextmanager
def _perturbed(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Give leaves slightly other values inside the block, integers in reverse order."""
    leaves = [leaf for leaf in leaves if not is_expanded(leaf)]
    before = [leaf.detach().clone() for leaf in leaves]
    try:
        for leaf, value in zip(leaves, before, strict=True):
            if leaf.is_floating_point():
                leaf.detach().mul_(1 + PERTURBATION).add_(PERTURBATION**2)  # zeros change too
            elif leaf.ndim:
                leaf.detach().copy_(value.flip(tuple(range(leaf.ndim))))
            elif leaf.dtype != torch.bool:
                leaf.detach().add_(min(FAR, torch.iinfo(leaf.dtype).max // 2))
        yield
    finally:
        for leaf, value in zip(leaves, before, strict=True):
            leaf.detach().copy_(value)


def _lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn tensors held by the graph into placeholders, so that replays read their present values; return them."""
    lifted: dict[int, tuple[fx.Node, Tensor]] = {}
    first = next(iter(module.graph.nodes))
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            continue
        if id(tensor) not in lifted:
            with module.graph.inserting_before(first):
                lifted[id(tensor)] = module.graph.placeholder(f"held_{len(lifted)}"), tensor
        node.replace_all_uses_with(lifted[id(tensor)][0])
        module.graph.erase_node(node)
    module.recompile()
    return [tensor for _, tensor in lifted.values()]


def move_indices(module: fx.GraphModule, device: torch.device) -> None:
    """Create row numbers of plates on the device that they index: a CUDA graph cannot capture copies from the host."""
    for node in module.graph.nodes:
        on_host = node.kwargs.get("device") == torch.device("cpu") and not node.all_input_nodes
        if on_host and node.users and all(user.target in INDEXING for user in node.users):
            node.update_kwarg("device", device)
    module.recompile()


def _same(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    """Return whether two graphs have the same operations and numbers, and the same tensors or equal ones."""
    constants = [
        [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
        for module in (first, second)
    ]
    return first.code == second.code and all(
        a is b or (isinstance(a, Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(*constants, strict=True)
    )


def _check_own_state(module: fx.GraphModule) -> None:
    """Reject a graph that writes to tensors which it holds, or draws from a given generator."""
    for node in module.graph.nodes:
        constant = [getattr(module, node.target)] if node.op == "get_attr" else []
        if any(isinstance(value, torch.Generator) for value in [*constant, *node.args, *node.kwargs.values()]):
            raise NotRecordableError(OWN_GENERATOR)
        target = node.args[0] if is_mutable(node) and node.args else None
        while isinstance(target, fx.Node) and _is_view(target):
            target = target.args[0]
        if isinstance(target, fx.Node) and target.op == "get_attr":
            raise NotRecordableError(
                "it writes to a tensor that belongs to none of its modules; make it a buffer of one"
            )


def _is_view(node: fx.Node) -> bool:
    """Return whether the result of a node shares the memory of its first argument."""
    returns: Sequence[Any] = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
    return bool(returns) and returns[0].alias_info is not None and bool(node.args)


def _close(a: Tensor, b: Tensor) -> bool:
    """Return whether two results agree up to rounding in the Euclidean norm; NaN and infinity agree with themselves."""
    a, b = a.double(), b.double()
    difference = (a - b).masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0)
    return bool(difference.norm() <= AGREEMENT * b.nan_to_num(0.0, 0.0, 0.0).norm() + AGREEMENT**2)


def _reason(error: BaseException) -> str:
    """Return the reason why tracing failed, as a clause."""
    if isinstance(error, NotRecordableError):
        return str(error)
    if "torch._C.Generator" in str(error):  # torch 2.11
        return OWN_GENERATOR
    asked = "get value out of a tracing tensor" in str(error)
    return "it asks a tensor for its value, as .item() or `if tensor` do" if asked else first_line(error)
