"""Random numbers of a graph, drawn by torch before the compiled part runs.

Inductor draws from streams of its own in an order of its own. Numbers drawn outside the graph equal the
draws of the traced function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# operations that read only shape, dtype and device of a tensor, and the equivalent operation on these
SHAPED: dict[Any, Any] = {
    aten.empty_like.default: aten.empty.memory_format,
    aten.zeros_like.default: aten.zeros.default,
    aten.ones_like.default: aten.ones.default,
    aten.rand_like.default: aten.rand.default,
    aten.randn_like.default: aten.randn.default,
    aten.new_empty.default: aten.empty.memory_format,
    aten.new_zeros.default: aten.zeros.default,
    aten.new_ones.default: aten.ones.default,
}


def split_noise(module: fx.GraphModule) -> tuple[fx.GraphModule | None, fx.GraphModule] | None:
    """Split a graph into one that draws random numbers and one that takes them as its first arguments.

    Returns:
        The two graphs, the first None if nothing is drawn; or None if the distribution of a draw may depend on tensors.

    """
    draws = [node for node in module.graph.nodes if is_random(node)]
    if not draws:
        return None, module
    sources = [node for draw in draws for node in ([] if draw.target in SHAPED else draw.all_input_nodes)]
    if not all(_is_constant(node, draws) for node in sources):
        return None
    noise, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        if node in draws or node in sources:
            shaped = node.target in SHAPED
            copies[node] = _from_shape(noise, node) if shaped else noise.node_copy(node, copies.__getitem__)
    noise.output(tuple(copies[draw] for draw in draws))
    compiled = fx.Graph()
    values = {draw: compiled.placeholder(f"noise_{number}") for number, draw in enumerate(draws)}
    for node in module.graph.nodes:
        if node in draws and node.args and node.args[0] in sources:  # an in-place draw has two names for its result
            values[node.args[0]] = values[node]
        elif node not in values and not (node in sources and all(user in draws for user in node.users)):
            values[node] = compiled.node_copy(node, values.__getitem__)
    return fx.GraphModule(module, noise), fx.GraphModule(module, compiled)


def is_random(node: fx.Node) -> bool:
    """Return whether a node draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def is_mutable(node: fx.Node) -> bool:
    """Return whether a node writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_constant(node: fx.Node, draws: list[fx.Node]) -> bool:
    """Return whether a node creates a tensor from numbers alone, to which nothing but draws is written."""
    created = node.op == "call_function" and (node.target in SHAPED or not node.all_input_nodes)
    return created and not any(is_mutable(user) for user in node.users if user not in draws)


def _from_shape(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Add the equivalent of a node that reads only the shape of a tensor."""
    value = node.meta["val"]
    options = {"dtype": value.dtype, "device": value.device}
    created = graph.call_function(SHAPED[node.target], (list(value.shape),), options)
    created.meta = dict(node.meta)
    return created
