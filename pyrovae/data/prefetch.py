"""Rows of data gathered by a thread, a few minibatches ahead of their use: for data that the device does not hold."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Generator, Sequence
from queue import SimpleQueue

import torch
from torch import Tensor

AHEAD = 4  # minibatches that may wait for their use
IN_USE = 4  # steps that may be launched and not done: with fewer the device would wait for the host


class Room:
    """Room for one minibatch, filled by the thread that gathers and emptied by the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._gathered: tuple[Tensor, ...] = ()

    def fill(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        """Gather some rows ``(B,)``."""
        self._gathered = tuple(tensor[rows] for tensor in tensors)

    def send(self) -> tuple[Tensor, ...]:
        """Hand over what was gathered, ``(B, ...)`` each, on the device."""
        sent = tuple(tensor.to(self.device) for tensor in self._gathered)
        self._gathered = ()
        return sent

    def release(self) -> None:
        """Note that whatever reads what was sent has been launched."""

    def wait(self) -> None:
        """Wait until nothing reads what was sent any more, so that it may be overwritten."""


class PinnedRoom(Room):
    """Room in pinned memory, and as much on a CUDA device, to which it is copied beside the work of other streams.

    `fill` does not call CUDA, which would break the capture of a graph in another thread.

    Args:
        tensors: of which rows are gathered, ``(N, ...)`` each.
        num_rows: the most that it takes.
        device: the CUDA device.
        stream: of that device, on which copies are made.

    """

    def __init__(
        self, tensors: Sequence[Tensor], num_rows: int, device: torch.device, stream: torch.cuda.Stream
    ) -> None:
        super().__init__(device)
        shapes = [(num_rows, *tensor.shape[1:]) for tensor in tensors]
        dtypes = [tensor.dtype for tensor in tensors]
        self._here = [torch.empty(s, dtype=d, pin_memory=True) for s, d in zip(shapes, dtypes, strict=True)]
        self._there = [torch.empty(s, dtype=d, device=device) for s, d in zip(shapes, dtypes, strict=True)]
        self._stream, self._done, self._count = stream, torch.cuda.Event(), 0

    def fill(self, tensors: Sequence[Tensor], rows: Tensor) -> None:
        """Gather some rows ``(B,)``."""
        self._count = len(rows)
        for tensor, here in zip(tensors, self._here, strict=True):
            torch.index_select(tensor, 0, rows, out=here[: len(rows)])

    def send(self) -> tuple[Tensor, ...]:
        """Start the copy, and let the current stream wait for it."""
        sent = tuple(there[: self._count] for there in self._there)
        with torch.cuda.stream(self._stream):
            for here, there in zip(self._here, sent, strict=True):
                there.copy_(here[: self._count], non_blocking=True)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return sent

    def release(self) -> None:
        """Mark the place in the current stream behind which nothing reads what was sent."""
        self._done.record(torch.cuda.current_stream(self.device))

    def wait(self) -> None:
        """Wait until the device has come to that place, and so has made the copy too."""
        self._done.synchronize()


class Prefetcher:
    """Minibatches of rows of tensors, gathered a few ahead.

    What it gives holds until the next minibatch is asked for: then the work that reads it has to be launched, though
    not done.

    Args:
        tensors: ``(N, ...)`` each, on the CPU; they may be memory-mapped.
        batch_size: the most rows of a minibatch.
        device: where minibatches are wanted.

    """

    def __init__(self, tensors: Sequence[Tensor], batch_size: int, device: torch.device) -> None:
        self._tensors = [tensor.detach() for tensor in tensors]
        number = AHEAD + IN_USE
        self._rooms: list[Room]
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)
            self._rooms = [PinnedRoom(self._tensors, batch_size, device, stream) for _ in range(number)]
            stream.wait_stream(torch.cuda.current_stream(device))  # on which the rooms' memory may still be in use
        else:
            self._rooms = [Room(device) for _ in range(number)]

    def __call__(self, batches: Sequence[Tensor]) -> Generator[tuple[Tensor, ...], None, None]:
        """Yield the rows of each minibatch, ``(B, ...)`` each, on the device.

        The thread ends with the generator, also where that is closed early. An error in the thread is raised here.

        Args:
            batches: row numbers ``(B,)``, on the CPU.

        """
        free: SimpleQueue[Room] = SimpleQueue()
        filled: SimpleQueue[Room | BaseException] = SimpleQueue()
        for room in self._rooms:
            room.wait()
            free.put(room)
        with _thread(self._tensors, batches, free, filled):
            used: deque[Room] = deque()
            for _ in batches:
                found = filled.get()
                if isinstance(found, BaseException):
                    raise found
                yield found.send()
                found.release()
                used.append(found)
                if len(used) == IN_USE:
                    used[0].wait()
                    free.put(used.popleft())


@contextlib.contextmanager
def _thread(
    tensors: Sequence[Tensor],
    batches: Sequence[Tensor],
    free: SimpleQueue[Room],
    filled: SimpleQueue[Room | BaseException],
) -> Generator[None, None, None]:
    """Gather minibatches in a thread inside the block; it ends with the block, after the one that it is at."""
    stopped = threading.Event()

    def gather() -> None:
        try:
            for rows in batches:
                room = free.get()
                if stopped.is_set():
                    return
                room.fill(tensors, rows)
                filled.put(room)
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            filled.put(error)

    thread = threading.Thread(target=gather, name="pyrovae prefetch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        free.put(Room(torch.device("cpu")))  # wakes the thread where it waits for room
        thread.join()
