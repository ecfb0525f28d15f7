"""Noise that processes share: each draws that of the whole minibatch and takes its rows.

So the numbers are those of one process. A draw is of rows if its shape follows the number of rows, which two small runs
show.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyrovae.runtime.context import forked_random, stream_seed, validation
from pyrovae.runtime.distributed import Shard

logger = logging.getLogger("pyrovae")

FEW, MORE = 5, 7  # rows of the two runs; no usual width follows both
OWN = -1  # in place of an axis: a draw that each process makes by itself
RANDOM = torch.Tag.nondeterministic_seeded
FILLS = ("uniform_", "normal_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_", "random_")
MAKES = ("rand", "randn", "rand_like", "randn_like")


class _Listen(TorchDispatchMode):
    """Notes the shape of every draw."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note it if it is random."""
        result = func(*args, **(kwargs or {}))
        if RANDOM in func.tags:
            drawn = next((each for each in tree_leaves(result) if isinstance(each, Tensor)), None)
            shape = torch.Size() if drawn is None else drawn.shape  # dropout on CUDA returns its mask beside its result
            self.draws.append((func._schema.name.removeprefix("aten::"), shape))
        return result


def row_axes(run: Callable[[int], object], device: torch.device) -> list[int | None]:
    """Return the axis of rows of each draw, in their order.

    None stands for a draw that does not grow with the rows, and is the same in all processes; `OWN` for one that does
    but cannot be made whole, because its law depends on the data or its rows are not one axis.

    Args:
        run: does what is to be shared, on so many rows.
        device: whose random stream is left as it was.

    """
    heard = []
    with forked_random(0, device), validation(enabled=False):
        run(FEW)  # what is found out in a first run, such as Pyro's number of plates, may draw too
    for count in (FEW, MORE):
        listen = _Listen()
        with forked_random(0, device), validation(enabled=False), torch.no_grad(), listen:
            run(count)
        heard.append(listen.draws)
    few, more = heard
    if [name for name, _ in few] != [name for name, _ in more]:
        raise ValueError(
            "processes share a minibatch only if its draws are the same for any number of rows, but these are "
            f"{len(few)} for {FEW} rows and {len(more)} for {MORE}; train in one process"
        )
    axes = [_axis(name, a, b) for (name, a), (_, b) in zip(few, more, strict=True)]
    if OWN in axes:
        name, shape = few[axes.index(OWN)]
        logger.warning(
            "each process draws noise of its own for %s of shape %s, so that the numbers are not those of one process",
            name,
            tuple(shape),
        )
    return axes


def _axis(name: str, few: torch.Size, more: torch.Size) -> int | None:
    """Return the axis along which a draw grows with the rows, None if it does not, `OWN` if it cannot be made whole."""
    grown = [axis for axis, (a, b) in enumerate(zip(few, more, strict=True)) if a != b]
    if not grown:
        return None
    plain = len(grown) == 1 and (few[grown[0]], more[grown[0]]) == (FEW, MORE)
    return grown[0] if plain and name in (*FILLS, *MAKES) else OWN


class SharedNoise(TorchDispatchMode):
    """Makes every draw that of the whole minibatch, of which it returns the rows of one process.

    Args:
        axes: of `row_axes`.
        share: the rows of this process.
        rank: its number, for draws that are its own.

    """

    def __init__(self, axes: Sequence[int | None], share: Shard, rank: int) -> None:
        super().__init__()
        self.axes, self.share, self.rank, self.number = axes, share, rank, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; if it is random, for the whole minibatch."""
        kwargs = kwargs or {}
        if RANDOM not in func.tags:
            return func(*args, **kwargs)
        number, self.number = self.number, self.number + 1
        axis = self.axes[number]
        if axis is None:
            return func(*args, **kwargs)
        if axis == OWN:
            return self._own(func, args, kwargs, number)
        if func._schema.name.removeprefix("aten::") in FILLS:
            return args[0].copy_(self._local_shard(func(self._whole(args[0], axis), *args[1:], **kwargs), axis))
        if isinstance(args[0], Tensor):  # of the shape of another
            return self._local_shard(func(self._whole(args[0], axis), **kwargs), axis)
        shape = [*args[0][:axis], self.share.total, *args[0][axis + 1 :]]
        return self._local_shard(func(shape, **kwargs), axis)

    def _whole(self, part: Tensor, axis: int) -> Tensor:
        """Return a tensor for all rows whose axes lie in memory in the order of those of a part, which is filled so."""
        shape = [*part.shape[:axis], self.share.total, *part.shape[axis + 1 :]]
        if part.is_contiguous():
            return part.new_empty(shape)
        strides, step = [0] * part.ndim, 1
        for place in sorted(range(part.ndim), key=part.stride):
            strides[place], step = step, step * shape[place]
        return part.new_empty_strided(shape, strides)

    def _local_shard(self, whole: Tensor, axis: int) -> Tensor:
        return whole.narrow(axis, self.share.start, self.share.count)

    def _own(self, func: Any, args: Any, kwargs: Any, number: int) -> Any:
        """Draw from a stream of this process alone, so that the one that all share goes on alike in all."""
        device = next((each.device for each in args if isinstance(each, Tensor)), torch.device("cpu"))
        shared = torch.randint(2**31, (), device="cpu")
        with forked_random(stream_seed(self.rank, number, int(shared)), device):
            return func(*args, **kwargs)
