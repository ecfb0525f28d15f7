"""Minibatches gathered by a thread ahead of their use, for data that the device does not hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD = 4  # minibatches gathered before their use
IN_USE = 4  # steps of a CUDA device that may be launched but unfinished


def gather_ahead(
    tensors: Sequence[Tensor], batches: Sequence[Tensor], device: torch.device
) -> Generator[tuple[Tensor, ...], None, None]:
    """Yield rows of tensors on a device, gathered by a thread.

    On a CUDA device the copy does not make the host wait. The thread ends with the generator, also if that is closed
    early; an error in the thread is raised here.

    Args:
        tensors: ``(N, ...)`` each, on the CPU; they may be memory-mapped.
        batches: row numbers ``(B,)`` of each minibatch, on the CPU.
        device: destination of the rows ``(B, ...)``.

    """
    tensors, on_cuda = [tensor.detach() for tensor in tensors], device.type == "cuda"

    def gather(rows: Tensor) -> list[Tensor]:
        gathered = [tensor[rows] for tensor in tensors]
        return [tensor.pin_memory() for tensor in gathered] if on_cuda else gathered

    remaining = iter(batches)
    launched: deque[torch.cuda.Event] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="pyrovae prefetch") as pool:
        waiting: deque[Future[list[Tensor]]] = deque()
        try:
            for _ in batches:
                while len(waiting) < AHEAD and (rows := next(remaining, None)) is not None:
                    waiting.append(pool.submit(gather, rows))
                yield tuple(tensor.to(device, non_blocking=True) for tensor in waiting.popleft().result())
                if on_cuda:  # bound the memory of minibatches that the device has not reached
                    launched.append(torch.cuda.Event())
                    launched[-1].record(torch.cuda.current_stream(device))
                    if len(launched) > IN_USE:
                        launched.popleft().synchronize()
        finally:
            for future in waiting:
                future.cancel()
