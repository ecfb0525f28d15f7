"""The recording of a function: its graph, the tensors it reads, and its replay."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from pyrovae.compile.inductor import compile_graph
from pyrovae.compile.noise import split_noise
from pyrovae.runtime.context import forked_random, interrupts_wait, is_expanded, validation, values_kept

# relative distance between what is compiled and what is not: float32 sums differ by 1e-6 or so, and Inductor leaves out
# roundings to bfloat16, of 4e-3 each
AGREEMENT, HALF_AGREEMENT = 1e-3, 0.05

aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten._unsafe_index.Tensor, aten._unsafe_index_put.default)

OWN_GENERATOR = "it draws from a generator of its own, not from torch's default stream"
MOVED = 2.0**-6  # relative change of leaves that shows what is made of their values outside torch

Function = Callable[..., Sequence[Tensor]]


_of_thread = threading.local()
_one_compiles = threading.Lock()  # at a time: Inductor, and the switches that are set meanwhile, are of the process


def is_recording() -> bool:
    """Tell whether a function is being recorded in this thread, so that it must not ask tensors for values, nor write
    to a result.
    """
    return getattr(_of_thread, "recordings", 0) > 0


class NotRecordableError(ValueError):
    """A function cannot be recorded, or what was recorded is not what it does; the text is the reason in a clause."""


class Recording:
    """A function as a graph, replayed with the values that its tensors have then.

    Random numbers come from torch's default streams, in the order in which the function draws them, so that a replay
    gives what a call would give.

    Args:
        graph: its placeholders are the leaves, then the inputs.
        leaves: tensors that the function reads or writes without being given them.
        num_inputs: how many tensors it is given.

    """

    def __init__(self, graph: fx.GraphModule, leaves: Sequence[Tensor], num_inputs: int) -> None:
        self.graph, self.leaves, self.num_inputs = graph, list(leaves), num_inputs
        self._run: Callable[..., Any] = graph.forward
        self._noise: Callable[..., Any] | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Return what the function returns for inputs like those it was recorded with, without gradients."""
        with torch.no_grad():
            noise = () if self._noise is None else self._noise()
            return self._run(*noise, *self.leaves, *inputs)

    def reads(self, leaf: Tensor) -> bool:
        """Return whether the graph uses a leaf."""
        places = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        return any(each is leaf and node.users for node, each in zip(places, self.leaves, strict=False))

    def compile(self, inputs: Sequence[Tensor]) -> None:
        """Let Inductor compile the graph; its random numbers are still drawn by torch, before it runs.

        Args:
            inputs: like those it will be given.

        Raises:
            NotRecordableError: if the graph draws random numbers whose law depends on tensors, or Inductor fails.

        """
        split = split_noise(self.graph)
        if split is None:
            raise NotRecordableError("it draws random numbers whose distribution depends on data")
        noise, graph = split[0], copy.deepcopy(split[1])
        with (
            _one_compiles,
            torch.no_grad(),
            forked_random(0, _device((*inputs, *self.leaves))),
            values_kept(self.leaves),
            interrupts_wait(),
        ):
            drawn = () if noise is None else noise()
            given = [*drawn, *self.leaves, *inputs]
            expected = graph(*[each.clone() for each in given])
            try:
                compiled = compile_graph(graph, given)
                found = compiled(*given)
            except Exception as error:  # Inductor may raise anything
                raise NotRecordableError(f"Inductor does not compile it ({first_line(error)})") from error
        bound = HALF_AGREEMENT if _is_half(self.graph) else AGREEMENT
        if not all(_close(a, b, bound) for a, b in zip(found, expected, strict=True)):
            raise NotRecordableError("what Inductor makes of it gives other numbers")
        self._noise, self._run = noise, compiled


def record(function: Function, inputs: Sequence[Tensor], *, leaves: Sequence[Tensor]) -> Recording:
    """Run a function under torch's tracer and return its graph.

    It is run twice, the second time on other values: what differs between the two graphs is decided in Python, or has
    left torch on its way, through NumPy for instance, and cannot be recorded. Random streams and the values of the
    leaves are afterwards as before.

    Args:
        function: of the inputs; it returns tensors. Gradients that it computes are part of the graph.
        inputs: that it is given; a replay takes others of the same shapes, strides and dtypes.
        leaves: tensors that it may read or write without being given them, each once. Those that it reads beside
            these are found, but must not be written.

    Raises:
        NotRecordableError: with the reason, if the function asks a tensor for its value, or has more than one course.

    """
    inputs = [each.detach() for each in inputs]  # told apart where one tensor is given twice, or read by another name
    device = _device((*inputs, *leaves))
    graphs = []
    one_thread = torch.autograd.set_multithreading_enabled(False)  # on CUDA gradients would be those of another
    with values_kept(leaves), validation(enabled=False), one_thread, _marked(), interrupts_wait():
        for given, values in ((inputs, nullcontext()), ([_flipped(each) for each in inputs], _moved(leaves))):
            with forked_random(0, device), values:
                try:
                    with_guard = make_fx(lambda *_, given=given: _guarded(function, given))
                    graphs.append(with_guard(*leaves, *given))
                except Exception as error:  # programs of the user's, and the tracer, may raise anything
                    raise NotRecordableError(_why(error)) from error
                _require_own_state(graphs[-1])
    first, second = graphs
    if not _same(first, second):
        raise NotRecordableError("it does not do the same operations, with the same numbers, each time it is run")
    found = _lift_constants(second)
    bring_indices(second, device)
    return Recording(second, [*found, *leaves], len(inputs))


class _NoTracer(TorchFunctionMode):
    """Refuses calls inside `torch.jit.trace`, before they reach its tracer, which does not get over a failure there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.jit.is_tracing():
            raise NotRecordableError("it is traced by torch.jit, which cannot run inside a recording")
        return func(*args, **(kwargs or {}))


def _guarded(function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    with _NoTracer():
        return function(*inputs)


def _device(tensors: Sequence[Tensor]) -> torch.device:
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def _marked() -> Iterator[None]:
    """Let `is_recording` be true inside the block."""
    _of_thread.recordings = getattr(_of_thread, "recordings", 0) + 1
    try:
        yield
    finally:
        _of_thread.recordings -= 1


def layout_of(inputs: Sequence[Tensor]) -> tuple[object, ...]:
    """Return what inputs of a replay must have in common with those that were recorded."""
    return tuple((each.shape, each.stride(), each.dtype, each.device) for each in inputs)


def _flipped(value: Tensor) -> Tensor:
    """Return a tensor of the same shape and strides, with the same values in another order, and a little nearer to zero
    where they are not whole.
    """
    own = value
    for dim, stride in enumerate(value.stride()):
        own = own.narrow(dim, 0, 1) if stride == 0 and value.shape[dim] > 1 else own  # one of those that are repeated
    new = torch.empty_strided(own.shape, own.stride(), dtype=own.dtype, device=own.device)
    new.copy_(own.flip(tuple(range(own.ndim))))
    return (new.mul_(1 - MOVED) if new.is_floating_point() else new).expand(value.shape)


@contextmanager
def _moved(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Let leaves have slightly other values inside the block, whole ones in another order."""
    leaves = [leaf for leaf in leaves if not is_expanded(leaf)]
    before = [leaf.detach().clone() for leaf in leaves]
    try:
        for leaf, value in zip(leaves, before, strict=True):
            if leaf.is_floating_point():
                leaf.detach().mul_(1 + MOVED).add_(MOVED**2)  # zeros too
            elif leaf.ndim:
                leaf.detach().copy_(value.flip(tuple(range(leaf.ndim))))
            elif leaf.dtype != torch.bool:
                leaf.detach().add_(1)
        yield
    finally:
        for leaf, value in zip(leaves, before, strict=True):
            leaf.detach().copy_(value)


def _lift_constants(module: fx.GraphModule) -> list[Tensor]:
    """Turn tensors that the graph holds into placeholders, so that changes of their values take effect; return them."""
    found: dict[int, tuple[fx.Node, Tensor]] = {}
    first = next(iter(module.graph.nodes))
    for node in [node for node in module.graph.nodes if node.op == "get_attr"]:
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            continue
        if id(tensor) not in found:
            with module.graph.inserting_before(first):
                found[id(tensor)] = module.graph.placeholder(f"held_{len(found)}"), tensor
        node.replace_all_uses_with(found[id(tensor)][0])
        module.graph.erase_node(node)
    module.recompile()
    return [tensor for _, tensor in found.values()]


def bring_indices(module: fx.GraphModule, device: torch.device) -> None:
    """Let row numbers that a plate makes on the host be made where they index, which torch does by itself otherwise: no
    graph of a device can be captured that brings them there.
    """
    for node in module.graph.nodes:
        on_host = node.kwargs.get("device") == torch.device("cpu") and not node.all_input_nodes
        if on_host and node.users and all(user.target in INDEXING for user in node.users):
            node.update_kwarg("device", device)
    module.recompile()


def _same(first: fx.GraphModule, second: fx.GraphModule) -> bool:
    """Tell whether two recordings are of the same operations, numbers and tensors, or tensors of the same values."""
    held = [
        [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
        for module in (first, second)
    ]
    return first.code == second.code and all(
        a is b or (isinstance(a, Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
        for a, b in zip(*held, strict=True)
    )


def _require_own_state(module: fx.GraphModule) -> None:
    """Refuse a graph that writes to tensors which it holds, or draws from a generator that it was handed."""
    for node in module.graph.nodes:
        held = [getattr(module, node.target)] if node.op == "get_attr" else []
        values = [*held, *node.args, *node.kwargs.values()]
        if any(isinstance(value, torch.Generator) for value in values):
            raise NotRecordableError(OWN_GENERATOR)
        writes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        target = node.args[0] if writes and node.args else None
        while isinstance(target, fx.Node) and _is_view(target):
            target = target.args[0]
        if isinstance(target, fx.Node) and target.op == "get_attr":
            raise NotRecordableError(
                "it writes to a tensor that belongs to none of its modules; make it a buffer of one"
            )


def _is_view(node: fx.Node) -> bool:
    """Tell whether a node is a part of its first argument, in the same memory."""
    returns: Sequence[Any] = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else ()
    return bool(returns) and returns[0].alias_info is not None and bool(node.args)


def _close(a: Tensor, b: Tensor, bound: float) -> bool:
    """Tell whether two computations of one thing agree up to what rounding may do, taken as a whole.

    NaN and infinite ones agree with the same, each in its place.
    """
    a, b = a.double(), b.double()
    apart = (a - b).masked_fill((a == b) | (a.isnan() & b.isnan()), 0.0)
    return bool(apart.norm() <= bound * b.nan_to_num(0.0, 0.0, 0.0).norm() + bound**2)


def _is_half(module: fx.GraphModule) -> bool:
    """Tell whether a graph computes anything in half precision."""
    values = [node.meta.get("val") for node in module.graph.nodes]
    return any(isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) for value in values)


def _why(error: BaseException) -> str:
    """Return the reason of the tracer's refusal, or of ours, as a clause."""
    if isinstance(error, NotRecordableError):
        return str(error)
    if "torch._C.Generator" in str(error):  # what the tracer of torch 2.11 says
        return OWN_GENERATOR
    asked = "get value out of a tracing tensor" in str(error)
    return "it asks a tensor for its value, as .item() or `if tensor` do" if asked else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
