"""Runs a network written for ``(N, ...)`` on any batch axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fold(net: Callable[..., Tensor], inputs: Sequence[Tensor], event_dims: Sequence[int]) -> Tensor:
    """Join the batch axes of the inputs into one for a network, and part them again afterwards.

    Batch axes are broadcast against each other. One along which every input is merely repeated, such as the axis of
    particles of ``x.expand(K, B, ...)``, is run once and its output expanded, so that the work is not done K times and
    batch normalization sees each datum once. The output shares memory along such an axis: do not write into it.

    Args:
        net: maps ``(N, *event)`` of each input to ``(N, *out)``.
        inputs: ``(*batch, *event)`` each, the batch axes being those that broadcast.
        event_dims: number of event axes of each input.

    Returns:
        ``(*batch, *out)``

    """
    if len(inputs) == 1 and inputs[0].ndim == event_dims[0] + 1 and inputs[0].stride(0):  # the usual case, at no cost
        return net(inputs[0])
    events = [x.shape[x.ndim - dims :] for x, dims in zip(inputs, event_dims, strict=True)]
    batch = torch.broadcast_shapes(*(x.shape[: x.ndim - dims] for x, dims in zip(inputs, event_dims, strict=True)))
    full = [x.expand(*batch, *event) for x, event in zip(inputs, events, strict=True)]
    repeated = [n > 1 and all(x.stride(axis) == 0 for x in full) for axis, n in enumerate(batch)]
    own = torch.Size(1 if once else n for once, n in zip(repeated, batch, strict=True))
    rows = []
    for x, event in zip(full, events, strict=True):
        for axis in (axis for axis, once in enumerate(repeated) if once):
            x = x.narrow(axis, 0, 1)
        rows.append(x.reshape(own.numel(), *event))
    out = net(*rows)  # (N, *out)
    out = out.reshape(*own, *out.shape[1:])
    return out.expand(*batch, *out.shape[len(batch) :]) if any(repeated) else out
