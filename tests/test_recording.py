"""Recordings: a replay gives the results of a call, and functions that cannot be traced are refused with the reason."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrovae.compile import NotRecordableError, has_compiler, record, trace

compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler is found")


class Noisy(nn.Module):
    """A function with everything that a step may hold: noise of several kinds, buffers, constants, gradients."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.net = nn.Sequential(*layers)
        self.factor, self.shift = torch.tensor(2.0), torch.arange(12.0).reshape(6, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        mean = self.net(x)
        z = mean + torch.empty_like(mean).normal_()
        coins = (torch.rand(z.shape) < 0.5) + torch.rand_like(z) + torch.randn(6, 2)
        loss = (z * self.factor * coins * torch.tensor(3.0) + self.shift).square().mean()
        return [loss.detach(), z.detach(), *torch.autograd.grad(loss, list(self.net.parameters()))]

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.net.parameters(), *self.net.buffers(), self.factor]


def agree(called: Any, replayed: Any, module: nn.Module) -> None:
    """Compare a call with a replay, from the same random state and the same buffers, results and buffers."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for seed in range(3):
        x, found = torch.randn(6, 4), []
        for function in (called, replayed):
            module.load_state_dict(before)
            torch.manual_seed(seed)
            found.append([*function(x), *(buffer.clone() for buffer in module.buffers()), torch.rand(1)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    module.load_state_dict(before)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=compiler)])
def test_a_replay_is_a_call(compiled: bool) -> None:  # noqa: FBT001
    function = Noisy()
    before = {name: value.clone() for name, value in function.state_dict().items()}
    stream = torch.get_rng_state()
    recording = record(function, [torch.randn(6, 4)], leaves=function.leaves)
    if compiled:
        recording.compile([torch.randn(6, 4)])
        torch.set_rng_state(stream)
    assert all(torch.equal(value, before[name]) for name, value in function.state_dict().items())
    agree(function, recording, function)
    with torch.no_grad():
        function.factor.fill_(5.0)
        function.shift.mul_(-2.0)  # which is not among the leaves
        for parameter in function.net.parameters():
            parameter.mul_(1.1)
    agree(function, recording, function)


def test_row_numbers_of_a_plate_are_made_where_they_index() -> None:
    """``x[i]`` with the i of a plate: on a GPU no graph could be captured that brings i there."""
    w = torch.randn(6, requires_grad=True)

    def indexed(x: Tensor) -> list[Tensor]:
        i, others = torch.arange(6), torch.arange(6)
        loss = (x[i] * w[i].unsqueeze(-1)).sum() + others.sum()
        return [loss.detach(), *torch.autograd.grad(loss, [w])]

    recording = record(indexed, [torch.randn(6, 2)], leaves=[w])
    trace.move_indices(recording.graph, torch.device("meta"))
    ranges = [node for node in recording.graph.graph.nodes if node.target is torch.ops.aten.arange.default]
    assert [node.kwargs["device"].type for node in ranges] == ["meta", "cpu"]
    assert "arange.default(6, device = device(type='meta')" in recording.graph.code


numbers = itertools.count()
held, own = torch.zeros(3, 4), torch.Generator()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: [x * x.sum().item()], "asks a tensor for its value"),
        (lambda x: [x.sin() if next(numbers) % 2 else x.cos()], "the same operations"),
        (lambda x: [x + torch.full((50, 4), float(next(numbers))).clone().numpy().sum()], "the same operations"),
        (lambda x: [x + held.add_(1.0)], "writes to a tensor that belongs to none of its modules"),
        (lambda x: [x + held[..., :1].add_(1.0)], "writes to a tensor that belongs to none of its modules"),
        (lambda x: [x + torch.rand(3, 4, generator=own)], "a generator of its own"),
    ],
)
def test_what_cannot_be_recorded_is_told(function: Any, reason: str) -> None:
    with pytest.raises(NotRecordableError, match=reason):
        record(function, [torch.ones(3, 4)], leaves=[])


@pytest.mark.parametrize("value", [torch.zeros(2), torch.tensor(3), torch.arange(4)], ids=str)
def test_values_that_leave_torch_are_noticed(value: Tensor) -> None:
    """Of what is given, statistics that do not depend on an order; and of leaves that are zero or whole numbers."""
    given = torch.ones(3, 4)
    for statistic in ("sum", "max"):
        with pytest.raises(NotRecordableError, match="the same operations"):
            record(lambda x, name=statistic: [x * float(getattr(x.numpy(), name)())], [given], leaves=[])
    before = value.clone()
    with pytest.raises(NotRecordableError, match="the same operations"):
        record(lambda x: [x * float(value.numpy().reshape(-1)[0])], [given], leaves=[value])
    assert torch.equal(value, before)


def test_noise_whose_law_depends_on_data_is_recorded_but_not_compiled() -> None:
    recording = record(lambda x: [torch.poisson(x), torch.bernoulli(x)], [torch.full((4,), 0.5)], leaves=[])
    with pytest.raises(NotRecordableError, match="distribution depends on data"):
        recording.compile([torch.full((4,), 0.5)])
    torch.manual_seed(0)
    expected = [torch.poisson(torch.ones(4)), torch.bernoulli(torch.ones(4))]
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(recording(torch.ones(4)), expected, strict=True))


@pytest.mark.parametrize("wrong", [lambda *given: [given[-1] * 1.01], lambda *given: 1 / 0])
def test_a_compiler_that_goes_wrong_is_not_used(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "compile_graph", lambda graph, inputs: wrong)
    recording = record(lambda x: [x * 1.0], [torch.ones(3)], leaves=[])
    with pytest.raises(NotRecordableError, match="Inductor"):
        recording.compile([torch.ones(3)])
    assert torch.equal(recording(torch.full((3,), 2.0))[0], torch.full((3,), 2.0))


@compiler
@pytest.mark.slow
def test_what_shares_memory_is_not_taken_for_what_does_not() -> None:
    def counted(*, shared: bool) -> tuple[Tensor, Tensor]:
        whole = torch.zeros(64, 2)
        first, second = whole.unbind(1) if shared else (torch.zeros(128)[::2], torch.zeros(128)[::2])

        def function(x: Tensor) -> list[Tensor]:
            first.add_(x)
            second.add_(x * 2)
            return [x.cos()]

        x = torch.ones(64)
        recording = record(function, [x], leaves=[first, second])
        recording.compile([x])
        recording(x)
        return first, second

    for shared in (True, False, True):
        first, second = counted(shared=shared)
        assert (first == 1).all()
        assert (second == 2).all()
