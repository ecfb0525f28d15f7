"""The random numbers of a graph, drawn by torch before the rest runs.

Inductor draws from streams of its own and in an order of its own. What is drawn outside is what the function would
have drawn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# operations that read only shape, dtype and device of a tensor, and what makes the same of these
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
    """Split a graph into one that draws its random numbers and one without any, given these as first arguments.

    Returns:
        The two, the first None where nothing is drawn; or None where the law of a draw may depend on tensors.

    """
    draws = [node for node in module.graph.nodes if is_random(node)]
    if not draws:
        return None, module
    made = [each for draw in draws for each in ([] if draw.target in SHAPED else draw.all_input_nodes)]
    if not all(_is_constant(each, draws) for each in made):
        return None
    noise, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        if node in draws or node in made:
            shaped = node.target in SHAPED
            copies[node] = _of_its_shape(noise, node) if shaped else noise.node_copy(node, copies.__getitem__)
    noise.output(tuple(copies[draw] for draw in draws))
    rest = fx.Graph()
    values = {draw: rest.placeholder(f"noise_{number}") for number, draw in enumerate(draws)}
    for node in module.graph.nodes:
        if node in draws and node.args and node.args[0] in made:  # a draw in place, whose place has a name of its own
            values[node.args[0]] = values[node]
        elif node not in values and not (node in made and all(user in draws for user in node.users)):
            values[node] = rest.node_copy(node, values.__getitem__)
    return fx.GraphModule(module, noise), fx.GraphModule(module, rest)


def is_random(node: fx.Node) -> bool:
    """Tell whether a node draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _is_constant(node: fx.Node, draws: list[fx.Node]) -> bool:
    """Tell whether a node makes a tensor out of numbers alone, into which nothing but draws are written."""
    made = node.op == "call_function" and (node.target in SHAPED or not node.all_input_nodes)
    return made and not any(_writes(user) for user in node.users if user not in draws)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _of_its_shape(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Add what makes the same as a node that takes the shape of a tensor."""
    value = node.meta["val"]
    made = graph.call_function(
        SHAPED[node.target], (list(value.shape),), {"dtype": value.dtype, "device": value.device}
    )
    made.meta = dict(node.meta)
    return made
