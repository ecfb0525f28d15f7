"""Networks that compute in bfloat16, between tensors of full precision."""

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
    """Let modules compute under torch's autocast to bfloat16 inside the block, and return float32.

    What is inside a call of one of them, the matrix products and convolutions of a network and the activations between
    them, is rounded to eight bits; what a program does with their outputs, log-probabilities above all, is not.
    Parameters, gradients and the optimizer stay in float32.

    Args:
        modules: whose calls, and those of the modules inside them, are meant.

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
        return _widened(output)

    inside = {id(part): part for module in modules for part in module.modules()}.values()
    networks = [part for part in inside if not isinstance(part, (ConditionalPart, Prior))]  # those make distributions
    hooks = [part.register_forward_pre_hook(enter) for part in networks]
    hooks += [part.register_forward_hook(leave, always_call=True) for part in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widened(output: Any) -> Any:
    """Return tensors, or a tuple of them, in float32 where they were bfloat16."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype == torch.bfloat16 else output
    if type(output) in (tuple, list):
        return type(output)(_widened(each) for each in output)
    return output
