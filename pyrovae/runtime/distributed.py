"""The processes that ``torchrun`` starts: who they are, and what they tell each other."""

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

PATIENCE = datetime.timedelta(days=7)  # the first process may have a long evaluation to finish, the others wait for it


@dataclass(frozen=True)
class Shard:
    """The part of a minibatch that one process has: rows start to stop of so many.

    A process for which there are no rows takes the first, with weight 0.
    """

    start: int
    stop: int
    total: int
    weight: float

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Some processes that work together, or one by itself.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.

    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def local_shard(self, count: int) -> Shard:
        """Return this process's part of so many rows, which differ between processes by one at most."""
        start, stop = (number * count // self.size for number in (self.rank, self.rank + 1))
        return Shard(start, stop, count, (stop - start) / count) if stop > start else Shard(0, 1, count, 0.0)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of tensors over the processes, in one exchange for each dtype."""
        if self.size == 1:
            return list(tensors)
        summed = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            together = torch.cat([tensors[place].reshape(-1) for place in places])
            home = together.device
            together = together.cuda() if dist.get_backend() == "nccl" else together  # which knows no other device
            dist.all_reduce(together)
            parts = together.to(home).split([tensors[place].numel() for place in places])
            for place, part in zip(places, parts, strict=True):
                summed[place] = part.view(tensors[place].shape)
        return summed

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have in the first process."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), src=0)

    def from_first(self, work: Callable[[], Result]) -> Result:
        """Let the first process do something; all return what it returned, or raise what it raised."""
        if self.size == 1:
            return work()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = work()
            except Exception as error:  # whatever it is, the others shall not wait
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def main_process_first(self, work: Callable[[], Result]) -> Result:
        """Do something in the first process, then in the others: what is fetched and kept by it is there for them."""
        if self.size == 1:
            return work()
        if self.first:
            done = work()
        dist.barrier()
        return done if self.first else work()

    def all(self, flag: bool) -> bool:  # noqa: FBT001
        """Tell whether something holds in every process."""
        return all(self.gather(flag))

    def gather(self, part: Result) -> list[Result]:
        """Return what each process has, in their order."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts


def group() -> Group:
    """Return the group that this process belongs to: all of ``torch.distributed`` where that was initialized."""
    if dist.is_available() and dist.is_initialized():
        return Group(dist.get_rank(), dist.get_world_size())
    return Group()


def is_main_process() -> bool:
    """Tell whether this process is the one that writes on the screen."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[Group]:
    """Join the processes that ``torchrun`` started beside this one, if it did, and part from them at the end.

    Args:
        device: "auto", "cuda" or "cpu": each process takes the CUDA device of its number on the machine, where there
            are such, and they speak by NCCL; otherwise by gloo.

    Raises:
        ValueError: if there are more processes on this machine than CUDA devices.

    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield group()
        return
    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        number = int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise ValueError(
                f"each process takes a CUDA device of its own, but there are {torch.cuda.device_count()} for "
                f"{os.environ['LOCAL_WORLD_SIZE']} processes; start fewer, or choose the device cpu"
            )
        torch.cuda.set_device(number)
    where = torch.device("cuda", torch.cuda.current_device()) if on_cuda else None
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=PATIENCE, device_id=where)
    try:
        yield group()
        dist.barrier()  # who ends while others still speak may take them down
    finally:
        dist.destroy_process_group()
        gc.collect()  # threads of a group that something still refers to would abort the process at its end
