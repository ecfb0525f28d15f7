"""The step as a CUDA graph: on a device where there is one, and what surrounds the graph by a stand-in elsewhere."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from conftest import make_vae
from test_capture import CHANGES, PAIRS, batches, data, distance, normalized, of_vae
from torch import Tensor

import pyrovae
from pyrovae import Training, fit
from pyrovae.compile import NotRecordableError, Recording
from pyrovae.objectives import ELBO
from pyrovae.training import capture, graphed
from pyrovae.training.adam import Adam
from pyrovae.training.captured_step import CapturedStep
from pyrovae.training.graphed import GraphedStep
from pyrovae.training.held_optimizer import HeldOptimizer
from pyrovae.training.step import CapturableStep, RecordedLoss

gpu = pytest.mark.gpu
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class StandIn:
    """A CUDA graph that is not one: a replay does again what was captured, from the same tensors into the same."""

    def __init__(self) -> None:
        self.step: Any = None

    def replay(self) -> None:
        held, parameters = self.step._gradients, self.step.leaves.trained
        found = [parameter.grad for parameter in parameters]
        self.step._shown.copy_(self.step._body())
        for parameter, place, before in zip(parameters, held, found, strict=True):
            if place is not None:
                place.copy_(parameter.grad)
            parameter.grad = before  # a graph writes to memory, and knows nothing of names


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let steps on the CPU be captured in stand-ins."""
    steps: list[Any] = []

    @contextlib.contextmanager
    def captured(graph: StandIn, **_: Any) -> Iterator[None]:
        graph.step = steps[-1]
        yield

    class Stream:
        def __init__(self, *_: Any) -> None:
            pass

        def wait_stream(self, other: Any) -> None:
            pass

    class OnCPU(GraphedStep):
        def __init__(self, *args: Any, engine: str, **options: Any) -> None:
            super().__init__(*args, **options)
            steps.append(self)

    whole = HeldOptimizer.hold

    def hold(held: HeldOptimizer, device: torch.device) -> None:
        groups = held.optimizer.param_groups
        flags = [group["capturable"] for group in groups if "capturable" in group]
        whole(held, device)
        for group, flag in zip(groups, flags, strict=False):
            group["capturable"] = flag  # or torch's Adam would refuse to be that on a CPU

    monkeypatch.setattr(GraphedStep, "give_up", lambda self, reason: pytest.fail(reason))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "graph", captured)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(HeldOptimizer, "hold", hold)
    capturing = sys.modules["pyrovae.training.captured_step"]  # where the function of that name is
    monkeypatch.setattr(capturing, "make_step", lambda *args, **options: OnCPU(*args, **options))


def steps(name: str, make: Callable[..., CapturedStep], device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the losses of steps, and the parameters afterwards."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    model_of, objective = PAIRS[name]
    with torch.device(device):
        model, guide, modules = model_of()
    for module in modules:
        module.to(device)
    given = [x.to(device) for x in (*batches(20), *batches(2, size=5), *batches(20))]
    step = make(model, guide, given[0], objective=objective())
    torch.manual_seed(2)
    losses = torch.stack([torch.stack(step(x)) for x in given])
    values = [value.detach().flatten() for module in modules for value in module.parameters()]
    values += [value.detach().flatten() for _, value in sorted(pyro.get_param_store().named_parameters())]
    return losses.cpu(), torch.cat(values).cpu()


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("name", PAIRS)
def test_around_the_graph_everything_is_as_in_eager_steps(name: str) -> None:
    """Warming up leaves no trace; short batches run eagerly; annealing and learning rate are followed."""
    found = steps(name, capture)
    expected = steps(name, lambda *args, **options: eager(*args, **options))
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-7  # the learning rate is a float32 tensor


def eager(model: Any, guide: Any, x: Tensor, **options: Any) -> Any:
    """Return the step that the stand-in does not stand in for."""
    step = capture(model, guide, x, **options)
    step._step = step._eager
    return step


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_is_followed_by_the_graph(change: Callable[..., None]) -> None:
    results = []
    for make in (capture, eager):
        torch.manual_seed(1)
        model, guide, (vae,) = normalized()
        (x,) = batches(1)
        step = make(model, guide, x)
        torch.manual_seed(2)
        for _ in range(5):
            step(x)
        change(step, vae, x)
        show_progress = [torch.stack(step(x)) for _ in range(5)]
        results.append(torch.cat([*show_progress, *(parameter.detach().flatten() for parameter in vae.parameters())]))
    assert distance(*results) < 1e-7


@pytest.mark.usefixtures("_stand_in")
def test_a_graph_is_captured_once_and_again_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = []
    whole = GraphedStep._capture
    monkeypatch.setattr(GraphedStep, "_capture", lambda self, inputs: (captures.append(1), whole(self, inputs)))
    model, guide, (vae,) = of_vae(make_vae())
    x = batches(1)[0]
    step = capture(model, guide, x, objective=ELBO())
    for number in range(8):
        step.objective.beta = 1.0 + number
        step.optimizer.param_groups[0]["lr"] = 1e-3 / (1 + number)
        step(x)
    assert len(captures) == 1
    assert isinstance(step.optimizer.param_groups[0]["lr"], Tensor)
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 8)
    vae.encoder.layers[0].weight.data = vae.encoder.layers[0].weight.data.clone()  # lies elsewhere
    for _ in range(3):
        step(x)  # the first of these eagerly
    assert len(captures) == 2
    step.optimizer.load_state_dict(step.optimizer.state_dict())  # other tensors than those that the graph writes to
    for _ in range(3):
        step(x)
    assert len(captures) == 3


@pytest.mark.usefixtures("_stand_in")
def test_an_optimizer_that_cannot_be_captured_runs_after_the_graph() -> None:
    """It finds the graph's gradients, also after a short minibatch that was run eagerly, or where they were dropped."""
    results = []
    for make in (capture, eager):
        torch.manual_seed(1)
        model, guide, (vae,) = of_vae(make_vae())
        step = make(model, guide, batches(1)[0], optimizer=lambda parameters: torch.optim.Adagrad(parameters, lr=0.01))
        torch.manual_seed(2)
        for x in (*batches(4), *batches(2, size=5), *batches(4)):
            step(x)
            step.optimizer.zero_grad()
        results.append(torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
    assert distance(*results) < 1e-12


def decay(step: CapturedStep, schedule: Any) -> None:
    schedule.step()


def load(step: CapturedStep, schedule: Any) -> None:
    step.optimizer.load_state_dict(step.optimizer.state_dict())


def other_betas(step: CapturedStep, schedule: Any) -> None:
    step.optimizer.param_groups[0]["betas"] = (0.5, 0.9)


def hook(step: CapturedStep, schedule: Any) -> None:
    step.optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.param_groups[0]["params"][0].data.mul_(0.5))


def thaw(step: CapturedStep, schedule: Any) -> None:
    for parameter in step.optimizer.param_groups[0]["params"]:
        parameter.requires_grad_()


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((Adam, change) for change in (decay, load, other_betas, hook, thaw)),
        (torch.optim.AdamW, other_betas),
        (torch.optim.NAdam, decay),
    ],
    ids=lambda part: part.__name__,
)
def test_what_changes_of_an_optimizer_is_followed(kind: Any, change: Callable[..., None]) -> None:
    results = []
    for make in (capture, eager):
        torch.manual_seed(1)
        model, guide, (vae,) = of_vae(make_vae())
        x = batches(1)[0]
        step = make(model, guide, x, optimizer=lambda parameters: kind(parameters, lr=0.02))
        schedule = torch.optim.lr_scheduler.ExponentialLR(step.optimizer, 0.5)
        if change is thaw:
            vae.encoder.requires_grad_(requires_grad=False)
        torch.manual_seed(2)
        for number in range(12):
            if number in (5, 8):
                change(step, schedule)
            if number == 10:
                vae.eval()  # recorded anew
            step(x)
        assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0.005 if change is decay else 0.02)
        results.append(torch.cat([parameter.detach().flatten() for parameter in vae.parameters()]))
    assert distance(*results) < 1e-7


@pytest.mark.usefixtures("_stand_in")
def test_data_are_read_anew_however_they_were_written() -> None:
    """One tensor for all minibatches, written to in ways that its version does not tell."""
    results = []
    for make in (capture, eager):
        torch.manual_seed(1)
        model, guide, _ = of_vae(make_vae())
        place = batches(1)[0]
        step = make(model, guide, place)
        torch.manual_seed(2)
        losses = []
        for x in batches(6):
            place.data.copy_(x)
            losses.append(torch.stack(step(place)))
        results.append(torch.stack(losses))
    assert distance(*results) < 1e-7


@pytest.mark.usefixtures("_stand_in")
def test_a_graph_is_let_go_of_where_training_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by an error whose traceback is kept: NCCL waits for graphs that hold collectives of its own."""
    alive: list[Any] = []
    made = StandIn.__init__
    monkeypatch.setattr(StandIn, "__init__", lambda self: (alive.append(weakref.ref(self)), made(self))[1])
    loop = sys.modules["pyrovae.training.loop"]
    capturing = sys.modules["pyrovae.training.captured_step"]
    monkeypatch.setattr(loop, "make_step", lambda *args, num_steps, **options: capturing.make_step(*args, **options))
    vae = make_vae()

    def stop(epoch: Any) -> None:
        if epoch.epoch == 3:
            assert alive[-1]() is not None
            raise KeyboardInterrupt

    training = Training(epochs=4, batch_size=16, device="cpu")
    with pytest.raises(KeyboardInterrupt) as kept:
        fit(vae.model, vae.guide, data(), training=training, on_epoch=stop, show_progress=False)
    assert kept.value.__traceback__ is not None
    assert [graph() for graph in alive] == [None]
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("where", ["compile", "capture"])
def test_what_cannot_be_compiled_is_captured_with_the_kernels_of_torch(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiled: list[Recording] = []

    def compile_in_name(recording: Recording, inputs: Any) -> None:
        compiled.append(recording)
        if where == "compile":
            raise NotRecordableError("it cannot be")

    whole = GraphedStep.take_from

    def take_from(step: GraphedStep, recorded: RecordedLoss, inputs: Any) -> Tensor:
        if where == "capture" and recorded.recording in compiled:
            raise RuntimeError("no kernel image")
        return whole(step, recorded, inputs)

    monkeypatch.setattr(Recording, "compile", compile_in_name)
    monkeypatch.setattr(GraphedStep, "take_from", take_from)
    monkeypatch.setattr(graphed, "_mend_generator", lambda device: None)
    made = GraphedStep.__init__
    monkeypatch.setattr(
        GraphedStep, "__init__", lambda self, *args, **options: made(self, *args, compiled=True, **options)
    )
    found = steps("VAE", capture)
    expected = steps("VAE", lambda *args, **options: eager(*args, **options))
    assert len(compiled) == 1
    reason = {"compile": "it cannot be", "capture": "RuntimeError: no kernel image"}[where]
    assert [record.getMessage() for record in caplog.records] == [
        f"the kernels of the captured step are not compiled: {reason}"
    ]
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-7


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("where", ["record", "take_from"])
def test_what_cannot_be_captured_runs_eagerly_and_leaves_no_trace(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise NotRecordableError("it cannot be") if where == "record" else RuntimeError("out of luck")

    monkeypatch.setattr(GraphedStep, where, fail)
    monkeypatch.setattr(GraphedStep, "give_up", CapturableStep.give_up)
    mended: list[torch.device] = []
    monkeypatch.setattr(graphed, "_mend_generator", mended.append)
    found = steps("VAE", capture)
    expected = steps("VAE", lambda *args, **options: eager(*args, **options))
    reason = {"record": "it cannot be", "take_from": "RuntimeError: out of luck"}[where]
    assert [record.getMessage() for record in caplog.records] == [f"the step is run eagerly: {reason}"]
    assert len(mended) == (where == "take_from")
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-7


# on a device


@gpu
@cuda
@pytest.mark.parametrize("name", PAIRS)
def test_graphs_are_eager_steps(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.set_default_dtype(torch.float32)
    found = steps(name, capture, "cuda")
    expected = steps(name, lambda *args, **options: capture(*args, engine="eager", **options), "cuda")
    assert "eagerly" not in caplog.text
    assert "not compiled" not in caplog.text
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-5


@gpu
@cuda
@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_graphs_with_any_optimizer(kind: type[torch.optim.Optimizer], caplog: pytest.LogCaptureFixture) -> None:
    torch.set_default_dtype(torch.float32)
    options = {"optimizer": lambda parameters: kind(parameters, lr=1e-3)}
    found = steps("VAE", lambda *args, **more: capture(*args, **options, **more), "cuda")
    expected = steps("VAE", lambda *args, **more: capture(*args, engine="eager", **options, **more), "cuda")
    assert "eagerly" not in caplog.text
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-5


@gpu
@cuda
def test_fit_replays_graphs_to_the_same_numbers(tmp_path: Any) -> None:
    torch.set_default_dtype(torch.float32)
    found = []
    for how in ("eager", "captured", "auto"):  # the last in a graph of torch's own kernels
        torch.manual_seed(1)
        vae = make_vae().float()
        training = Training(epochs=130, batch_size=16, device="cuda", engine=how)
        history = fit(vae.model, vae.guide, data(), training=training, folder=tmp_path / how, show_progress=False)
        found.append(torch.tensor([[e.elbo, e.validation["elbo"]] for e in history.epochs]))
    for other in found[1:]:
        assert distance(other[:50], found[0][:50]) < 1e-5  # 200 steps, after which rounding has grown
    for epochs, device in ((132, "cuda"), (134, "cpu")):
        resumed = Training(epochs=epochs, batch_size=16, device=device, engine="captured")
        fit(
            vae.model,
            vae.guide,
            data(),
            training=resumed,
            folder=tmp_path / "captured",
            resume=True,
            show_progress=False,
        )


@gpu
@cuda
def test_a_capture_that_fails_leaves_the_device_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_default_dtype(torch.float32)
    whole = GraphedStep._body

    def body(step: GraphedStep) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # which no capture allows
        return whole(step)

    monkeypatch.setattr(GraphedStep, "_body", body)
    stream = torch.cuda.current_stream()
    found = steps("VAE", capture, "cuda")
    assert torch.cuda.current_stream() == stream
    assert "the step is run eagerly" in caplog.text
    expected = steps("VAE", lambda *args, **options: capture(*args, engine="eager", **options), "cuda")
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-5


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_graphs_of_another_device_than_the_current_one() -> None:
    torch.set_default_dtype(torch.float32)
    found = steps("VAE", capture, "cuda:1")
    expected = steps("VAE", lambda *args, **options: capture(*args, engine="eager", **options), "cuda:1")
    for a, b in zip(found, expected, strict=True):
        assert distance(a, b) < 1e-5


@gpu
@cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_steps_do_not_wait_for_the_device() -> None:
    torch.set_default_dtype(torch.float32)
    for engine in ("eager", "captured"):
        vae = make_vae().cuda()
        x = batches(1)[0].cuda()
        step = pyrovae.training.capture(vae.model, vae.guide, x, engine=engine)
        for _ in range(3):
            step(x)
        try:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(5):
                step(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
