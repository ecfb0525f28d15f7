"""Which step runs: eager, recorded, or a CUDA graph; decided by the number of steps, never by timings."""

from __future__ import annotations

import torch

from pyrovae.compile import has_compiler
from pyrovae.training.graphed import GraphedStep
from pyrovae.training.leaves import Leaves
from pyrovae.training.loss import StepLoss
from pyrovae.training.recorded import RecordedStep
from pyrovae.training.step import EagerStep, Step

# a recording takes about a second, compilation by Inductor about half a minute, a CUDA graph a few seconds
RECORDED_FROM, COMPILED_FROM, GRAPHED_FROM = 2_000, 20_000, 500


def make_step(
    loss: StepLoss,
    leaves: Leaves,
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float | None = None,
    engine: str = "captured",
    num_steps: int = 0,
) -> Step:
    """Return the step of an engine.

    Args:
        loss: of a minibatch.
        leaves: tensors of the pair.
        optimizer: of those that are trained.
        clip_norm: largest norm of the gradient of the loss per datum, or None.
        engine: "captured" for one CUDA graph, on the CPU for a graph of operations, both of what Inductor compiles
            where there is a compiler; "eager"; or "auto" for what pays in so many steps.
        num_steps: that are ahead.

    """
    kind = leaves.trained[0].device.type
    if engine == "eager" or kind not in ("cpu", "cuda"):
        return EagerStep(loss, leaves, optimizer, clip_norm=clip_norm)
    compiled = engine == "captured" or num_steps >= COMPILED_FROM
    if kind == "cuda":
        if engine == "auto" and num_steps < GRAPHED_FROM:
            return EagerStep(loss, leaves, optimizer, clip_norm=clip_norm)
        return GraphedStep(loss, leaves, optimizer, clip_norm=clip_norm, compiled=compiled)
    if engine == "auto" and num_steps < RECORDED_FROM:
        return EagerStep(loss, leaves, optimizer, clip_norm=clip_norm)
    if engine == "auto" and compiled and not has_compiler():
        compiled = False
    return RecordedStep(loss, leaves, optimizer, clip_norm=clip_norm, compiled=compiled)
