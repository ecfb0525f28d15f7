"""Ranks that ``torchrun`` starts, and communication between them."""

from __future__ import annotations

import datetime
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")

TIMEOUT = datetime.timedelta(days=7)  # other ranks wait while the main process finishes a long evaluation


@dataclass(frozen=True)
class Group:
    """A group of processes, or a single one.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.

    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the main process, which prints and writes files."""
        return self.rank == 0

    def local_shard(self, count: int) -> tuple[slice, float]:
        """Return the rows of this rank in a minibatch, and their share of it.

        The numbers of rows of two ranks differ by one at most. A rank without rows has the first row, with share 0.
        """
        start, stop = (number * count // self.size for number in (self.rank, self.rank + 1))
        return (slice(start, stop), (stop - start) / count) if stop > start else (slice(0, 1), 0.0)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of tensors over the ranks, with one reduction per dtype."""
        if self.size == 1:
            return list(tensors)
        summed = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            indices = [index for index, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[index].reshape(-1) for index in indices])
            reduced = flat.cuda() if dist.get_backend() == "nccl" else flat  # NCCL has no other device
            dist.all_reduce(reduced)
            parts = reduced.to(flat.device).split([tensors[index].numel() for index in indices])
            for index, part in zip(indices, parts, strict=True):
                summed[index] = part.view(tensors[index].shape)
        return summed

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Copy the values of tensors from the main process to the other ranks, in place."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), src=0)

    def from_first(self, work: Callable[[], Result]) -> Result:
        """Run a function on the main process; every rank returns its result, or raises its error."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]  # result, error
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:  # of any type, so that the other ranks do not wait
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def main_process_first(self, work: Callable[[], Result]) -> Result:
        """Run a function on the main process, then on the other ranks, which find the files it has downloaded."""
        if self.size == 1:
            return work()
        if self.first:
            result = work()
        dist.barrier()
        return result if self.first else work()

    def gather(self, part: Result) -> list[Result]:
        """Return the value of each rank, in their order."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts


def group() -> Group:
    """Return the group of this process: all ranks of ``torch.distributed`` if it is initialized, else one process."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group()


def is_main_process() -> bool:
    """Return whether this is the main process, which prints; also before ``torch.distributed`` is initialized."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[Group]:
    """Initialize ``torch.distributed`` inside the block, if ``torchrun`` started this process.

    Args:
        device: "auto", "cuda" or "cpu"; each rank has a CUDA device of its own and NCCL as backend if the device is
            CUDA, otherwise the backend is gloo.

    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield group()
        return
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    where = torch.device("cuda", torch.cuda.current_device()) if on_cuda else None
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=TIMEOUT, device_id=where)
    try:
        yield group()
        dist.barrier()  # a rank that ends early could abort the others
    finally:
        dist.destroy_process_group()
        gc.collect()  # else threads of a group with a reference left abort the process at exit
