"""CUDA graphs: all kernels of a function launched at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyrovae.runtime.context import forked_random, values_kept

WARM_UPS = 3  # runs on a side stream before the capture, as torch's notes on CUDA graphs require


class GraphedFunction:
    """A function whose kernels are captured once and replayed.

    A replay copies its inputs to fixed memory and reads all other tensors at the addresses of the capture; the function
    is captured again if one of these has moved. Random numbers continue the default stream of the device. The next
    replay overwrites the outputs.

    Args:
        function: called with the inputs, without synchronization with the host.
        inputs: tensors with the shapes and dtypes of all later inputs.
        leaves: tensors that the function reads or writes beside its inputs. Their values are unchanged by the capture.

    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], leaves: Sequence[Tensor]
    ) -> None:
        self._function, self._leaves = function, leaves
        self._inputs = [tensor.detach().clone() for tensor in inputs]
        self._capture()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Return the outputs for these inputs."""
        if self._addresses != [leaf.data_ptr() for leaf in self._leaves]:
            self._capture()
        for fixed, value in zip(self._inputs, inputs, strict=True):
            fixed.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _capture(self) -> None:
        device = self._inputs[0].device
        self._addresses = [leaf.data_ptr() for leaf in self._leaves]
        self._graph = torch.cuda.CUDAGraph()
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        with torch.no_grad(), torch.cuda.device(device), forked_random(0, device), values_kept(self._leaves):
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    for _ in range(WARM_UPS):
                        self._function(*self._inputs)
                    # thread_local: NCCL may call CUDA from other threads meanwhile
                    with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                        self._outputs = self._function(*self._inputs)
            except BaseException:
                _reset_generator(device)
                raise
            finally:
                current.wait_stream(side)


def _reset_generator(device: torch.device) -> None:
    """End the capture mode of the default generator, which a failed capture leaves on in some versions of torch."""
    probe = torch.zeros(1, device=device)
    try:
        probe.uniform_()
    except RuntimeError:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(device)):
            probe.fill_(0.0)
