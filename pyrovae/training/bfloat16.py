"""Networks in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.distributions.conditional import ConditionalPart
from pyrovae.priors import Prior


@contextmanager
def bfloat16_networks(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules under torch's autocast to bfloat16 inside the block, and convert their results to float32.

    Matrix products, convolutions and activations inside a call of a module are rounded to eight bits. Log-probabilities
    and other operations of a program on the results are not. Parameters, gradients and the optimizer stay in float32.

    Args:
        modules: modules whose calls, and calls of their submodules, are rounded. Parts that return distributions are
            not.

    """
    depth = 0
    region = torch.autocast("cpu")

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth, region
        if not depth:
            device = next((parameter.device.type for parameter in module.parameters()), "cpu")
            region = torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
            region.__enter__()
        depth += 1

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal depth
        depth -= 1
        if depth:
            return output
        region.__exit__(None, None, None)
        return _to_float32(output)

    parts = {id(part): part for module in modules for part in module.modules()}.values()
    networks = [part for part in parts if not isinstance(part, (ConditionalPart, Prior))]
    hooks = [part.register_forward_pre_hook(enter) for part in networks]
    hooks += [part.register_forward_hook(leave, always_call=True) for part in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _to_float32(output: Any) -> Any:
    """Convert bfloat16 tensors, in a tuple or list or alone, to float32."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype == torch.bfloat16 else output
    if type(output) in (tuple, list):
        return type(output)(_to_float32(value) for value in output)
    return output
