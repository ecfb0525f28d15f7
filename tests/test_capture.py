"""Captured steps: the numbers of eager ones, changes between steps, failures of tracing, and CUDA graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import TwoLayers, make_vae, pair_from, standard_normal
from pyro.infer import JitTrace_ELBO, Trace_ELBO
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils._python_dispatch import _get_current_dispatch_mode

from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.compile import NotRecordableError, Recording, has_compiler, is_recording, trace
from pyrovae.compile.cuda_graph import GraphedFunction
from pyrovae.data import from_arrays, transforms
from pyrovae.objectives import ELBO, IWAE, STL, DReG, Objective, Terms, schedules
from pyrovae.training import Training, capture, fit
from pyrovae.training import step as steps
from pyrovae.training.step import Step

compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler is found")
Programs = tuple[Callable[..., None], Callable[..., None], list[nn.Module]]


@pytest.fixture(autouse=True)
def _uncompiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay graphs as they are, except in tests that are skipped without a compiler or a GPU."""
    if request.node.get_closest_marker("skipif") is None:
        monkeypatch.setattr(steps, "has_compiler", lambda: False)


def of_vae(vae: VAE) -> Programs:
    return vae.model, vae.guide, [vae]


def with_params() -> Programs:
    """Return a pair of ``pyro.param`` values, one of them constrained, and a module."""
    decoder = nn.Linear(2, 64)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        width = pyro.param("width", x.new_full((2,), 0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), width).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x.flatten(1))

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.linspace(-0.1, 0.1, 128, device=x.device).reshape(64, 2))
        scale = pyro.param("scale", x.new_full((), 0.5), constraint=constraints.interval(0.1, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.flatten(1) @ slope, scale).to_event(1))

    return model, guide, [decoder]


def two_layers() -> Programs:
    pair = TwoLayers(bottom_up=True)
    return lambda x: pair.model(x.flatten(1)[:, :4]), lambda x: pair.guide(x.flatten(1)[:, :4]), [pair]


def vamp() -> Programs:
    likelihood, posterior = likelihoods.Bernoulli((1, 8, 8)), posteriors.DiagonalNormal(3)
    encoder = networks.MLPEncoder((1, 8, 8), posterior.param_shape, hidden=(8,))
    prior = priors.Vamp(encoder, posterior, num_components=5)
    decoder = networks.MLPDecoder(3, likelihood.param_shape, hidden=(8,))
    return of_vae(VAE(prior=prior, decoder=decoder, likelihood=likelihood, encoder=encoder, posterior=posterior))


class Normalized(nn.Module):
    """An encoder with dropout and, if wanted, batch normalization."""

    x_shape = (1, 8, 8)

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        first = nn.Linear(64, 8, bias=False)  # a bias here has a gradient of nothing but rounding
        self.net = nn.Sequential(nn.Flatten(), first, between, nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).unflatten(-1, (3, 2))


def with_encoder(encoder: nn.Module) -> Programs:
    vae = make_vae()
    vae.encoder = encoder
    return of_vae(vae)


def normalized(between: nn.Module | None = None) -> Programs:
    return with_encoder(Normalized(between or nn.BatchNorm1d(8)))


def scripted() -> Programs:
    with warnings.catch_warnings(action="ignore"):  # torch recommends its compiler
        return with_encoder(torch.jit.script(Normalized(nn.BatchNorm1d(8))))


def small() -> Programs:
    return of_vae(make_vae())


PAIRS: dict[str, tuple[Callable[[], Programs], Callable[[], Objective]]] = {
    "VAE": (small, ELBO),
    "VAE, annealed": (small, lambda: ELBO(annealing=schedules.Linear(100), free_bits=0.05)),
    "pyro.param": (with_params, ELBO),
    "two layers": (two_layers, ELBO),
    "IWAE": (small, lambda: IWAE(num_particles=4)),
    "DReG": (small, lambda: DReG(num_particles=4)),
    "STL, two layers": (two_layers, lambda: STL(num_particles=1)),
    "Vamp": (vamp, ELBO),
    "BatchNorm": (normalized, ELBO),
    "VAE, dropout": (lambda: normalized(nn.Identity()), ELBO),
    "scripted": (scripted, ELBO),
}

QUICK = ("VAE, annealed", "pyro.param", "DReG", "STL, two layers", "BatchNorm", "scripted")


def batches(number: int = 24, *, size: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.rand(size, 1, 8, 8, generator=generator) < 0.3).to(torch.get_default_dtype()) for _ in range(number)]


def train(
    make: Callable[[], Programs], how: str, inputs: Any, *given: Any, **options: Any
) -> tuple[Tensor, Tensor, Any]:
    """Return the terms of steps on inputs, then all parameters and buffers as one vector, and the step."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    model, guide, modules = make()
    step = capture(model, guide, *(given or inputs[:1]), engine=how, **options)
    torch.manual_seed(2)
    terms = torch.stack([torch.stack(step(*x) if isinstance(x, tuple) else step(x)) for x in inputs])
    values = [value for module in modules for value in (*module.parameters(), *module.buffers())]
    values += [value for _, value in sorted(pyro.get_param_store().named_parameters()) if value.requires_grad]
    assert all(value == len(inputs) for value in values if not value.is_floating_point()), "batches are counted"
    return terms, torch.cat([value.detach().flatten() for value in values if value.is_floating_point()]), step


def trained(name: str, how: str, data: list[Tensor]) -> tuple[Tensor, Tensor, Any]:
    make, objective = PAIRS[name]
    return train(make, how, data, objective=objective(), clip_norm=50.0)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PAIRS]
)
def test_recorded_steps_are_eager_steps(name: str) -> None:
    losses, values, _ = trained(name, "eager", batches())
    found, reached, step = trained(name, "captured", batches())
    assert step._traces
    assert distance(found, losses) < 1e-10
    assert distance(reached, values) < 1e-10


@compiler
@pytest.mark.parametrize(
    "name",
    [
        "VAE, annealed",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("pyro.param", "IWAE", "BatchNorm")),
    ],
)
def test_compiled_steps_are_eager_steps(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.set_default_dtype(torch.float32)
    losses, values, _ = trained(name, "eager", batches())
    found, reached, step = trained(name, "captured", batches())
    assert "not compiled" not in caplog.text
    assert step._traces
    assert distance(found, losses) < 1e-5
    assert distance(reached, values) < 1e-5


@torch.no_grad()
def change_values(step: Any, vae: VAE, x: Tensor) -> None:
    for parameter in vae.parameters():
        parameter.mul_(0.5)


CHANGES: list[Callable[[Any, VAE, Tensor], Any]] = [
    lambda step, vae, x: setattr(step.objective, "beta", 7.0),
    lambda step, vae, x: step.optimizer.param_groups[0].update(lr=0.3),
    lambda step, vae, x: x.mul_(0.0),
    change_values,
    lambda step, vae, x: setattr(step.objective, "free_bits", 0.5),
    lambda step, vae, x: setattr(vae.prior, "scale", vae.prior.scale * 0.7),
    lambda step, vae, x: vae.decoder.requires_grad_(requires_grad=False),
    lambda step, vae, x: vae.eval(),
]


def test_changes_between_steps_are_followed() -> None:
    results = []
    for how in ("eager", "captured"):
        torch.manual_seed(1)
        model, guide, (vae,) = normalized()
        (x,) = batches(1)
        step = capture(model, guide, x, engine=how)
        assert step.optimizer.defaults["fused"]
        torch.manual_seed(2)
        losses = [step(x), step(x)]
        for change in CHANGES:
            change(step, vae, x)
            losses += [step(x), step(x)]
        results.append([torch.stack(terms) for terms in losses])
        results[-1] += [parameter.detach().clone() for parameter in vae.parameters()]
    assert step.traced
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


REPLACED: dict[str, Callable[[VAE], Any]] = {
    "parameter": lambda vae: setattr(vae.encoder.net[1], "weight", nn.Parameter(vae.encoder.net[1].weight * 2.0)),
    "module": lambda vae: setattr(vae, "decoder", make_vae().decoder),
    "new layer": lambda vae: vae.encoder.net.append(nn.Tanh()),
    "new parameter": lambda vae: setattr(vae, "extra", nn.Parameter(torch.zeros(1))),
    "thawed": lambda vae: vae.decoder.layers[0].bias.requires_grad_(),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_parameter_or_module_is_an_error(name: str) -> None:
    model, guide, (vae,) = normalized()
    vae.decoder.layers[0].bias.requires_grad_(requires_grad=False)
    (x,) = batches(1)
    step = capture(model, guide, x, engine="eager")
    step(x)
    REPLACED[name](vae)
    with pytest.raises(ValueError, match="capture the step again"):
        step(x)
    capture(model, guide, x, engine="eager")(x)


class Stepped(ELBO):
    """An objective of the user's, whose loss has a factor that changes from step to step."""

    def __init__(self, factor: Callable[[Any], Any]) -> None:
        super().__init__(annealing=schedules.Linear(6))
        self.factor = factor

    def terms(self, *args: Any, **kwargs: Any) -> Terms:
        terms = super().terms(*args, **kwargs)
        return dataclasses.replace(terms, loss=self.factor(self) * terms.loss)


def set_beta(objective: Any) -> float:
    objective.beta = 1 + 0.1 * objective.step  # of the next step
    return 1.0


FACTORS = {
    "arithmetic": (lambda objective: 1 + 0.1 * objective.step, ""),
    "a branch": (lambda objective: 2.0 if objective.step > 4 else 1.0, "it asks a tensor for its value, as .item()"),
    "NumPy": (lambda objective: float(np.interp(objective.step, [4, 8], [1, 2])), "it does not do the same operations"),
    "an attribute": (set_beta, "the objective changes its beta as it computes the loss"),
}


@pytest.mark.parametrize("name", FACTORS)
def test_an_objective_that_reads_the_step_is_followed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    factor, reason = FACTORS[name]
    expected, _, _ = train(small, "eager", batches(9), objective=Stepped(factor))
    found, _, step = train(small, "captured", batches(9), objective=Stepped(factor))
    assert step.objective.step == 9
    assert "kl_weight" not in vars(step.objective)
    assert distance(found, expected) < 1e-12
    assert step.traced == (not reason)
    assert (f"the step is run eagerly: {reason}" in caplog.text) == bool(reason)


def data(num_data: int = 83) -> Any:
    generator = torch.Generator().manual_seed(6)
    x = torch.randint(256, (num_data, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return from_arrays(x, validation=16, test=16).with_transform(transforms.DynamicBinarization())


def fitted(how: str, **options: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(1)
    vae = make_vae()
    extra = {name: options.pop(name) for name in ("folder", "resume", "on_epoch") if name in options}
    training = Training(**({"epochs": 6, "batch_size": 16, "device": "cpu", "engine": how} | options))
    history = fit(vae.model, vae.guide, data(), training=training, show_progress=False, **extra)
    metrics = [(e.elbo, e.reconstruction, e.kl, e.objective, *e.validation.values()) for e in history.epochs]
    values = torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])
    return torch.tensor(metrics), values


def test_a_captured_run_has_the_numbers_of_an_eager_one_and_is_resumed_to_the_bit(tmp_path: Any) -> None:
    """51 data: three full minibatches and a short one."""
    expected, reached = fitted("eager", clip_norm=3.0)
    metrics, values = fitted("captured", clip_norm=3.0)
    assert distance(metrics, expected) < 1e-12
    assert distance(values, reached) < 1e-12
    fitted("captured", clip_norm=3.0, folder=tmp_path, on_epoch=lambda epoch: epoch.epoch == 3)
    again, resumed = fitted("captured", clip_norm=3.0, folder=tmp_path, resume=True)
    assert torch.equal(again, metrics)
    assert torch.equal(resumed, values)


def test_rows_of_a_split_are_gathered_and_binarized_inside(caplog: pytest.LogCaptureFixture) -> None:
    split = data().train
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(3)).split(17)
    found = [train(small, how, rows * 4, split)[0][:, 0] for how in ("eager", "captured")]
    assert distance(found[1], found[0]) < 1e-12
    assert found[0].unique().numel() == found[0].numel(), "each minibatch is binarized afresh"
    assert caplog.messages == ["the recorded step is not compiled: no C++ compiler is found"]


@compiler
def test_a_trace_of_many_operations_is_replayed_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace, "MOST_COMPILED", 20)
    monkeypatch.setattr(trace, "compile_graph", lambda *args: pytest.fail("the trace is compiled"))
    found = [train(small, how, batches(5))[0] for how in ("eager", "captured")]
    assert distance(found[1], found[0]) < 1e-12
    (message,) = caplog.messages
    assert re.fullmatch(
        r"the recorded step is not compiled: compiling its \d+ operations would take 0\.\d minutes", message
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_switches_are_left_as_they_were(enabled: bool) -> None:  # noqa: FBT001
    before = (torch.distributions.Distribution._validate_args, pyro.poutine.runtime.am_i_wrapped())
    model, guide, (vae,) = of_vae(make_vae())
    x = batches(1)[0]
    with pyro.validation_enabled(enabled):
        step = capture(model, guide, x)
        with pytest.raises(ValueError, match="binarize them"):
            step(x + 0.5)
        for _ in range(3):
            step(x)
        assert torch.distributions.Distribution._validate_args is enabled
        assert pyro.infer.util.is_validation_enabled() is enabled
    assert (torch.distributions.Distribution._validate_args, pyro.poutine.runtime.am_i_wrapped()) == before
    assert vae.training
    assert not list(pyro.get_param_store())


def test_the_first_epoch_is_checked_before_anything_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "trace", lambda *_, **__: pytest.fail("recorded unchecked data"))
    vae = make_vae()
    grey = from_arrays(torch.rand(40, 1, 8, 8), validation=4, test=4)
    training = Training(epochs=2, device="cpu", engine="captured")
    with pytest.raises(ValueError, match="binarize them"):
        fit(vae.model, vae.guide, grey, training=training, show_progress=False)


class Failing(nn.Module):
    """A pair whose model fails in a way of its own, once it is told to."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.way, self.net, self.fails = way, nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5)), False
        self.net[1].eval()

    def model(self, x: Tensor) -> None:
        pyro.module("failing", self)
        offset = pyro.param("offset", torch.zeros(4))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.net(z) + offset
            logits = self.way(self, logits) if self.fails else logits
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), torch.ones(2)).to_event(1))


def no_compiler(graph: Any, inputs: Any) -> Any:
    raise OSError("no compiler today")


def interrupted(pair: Any, logits: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGINT)
    return logits


FAILURES: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a branch": (lambda pair, logits: logits if logits.sum() > 0 else -logits, "asks a tensor for its value"),
    "Ctrl-C": (interrupted, ""),
    "the compiler": (lambda pair, logits: logits, "no compiler today"),
}


def state_of(pair: Failing) -> list[object]:
    """Return what a capture may touch of modules, torch, Pyro and the process."""
    everywhere = torch.nn.modules.module
    return [
        [part.training for part in pair.modules()],
        [value.tolist() for value in pair.state_dict().values()],
        (pyro.infer.util.is_validation_enabled(), torch.distributions.Distribution._validate_args),
        (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state().tolist()),
        {name: value.tolist() for name, value in pyro.get_param_store().items()},
        (len(everywhere._global_forward_hooks), len(everywhere._global_forward_pre_hooks), list(_PYRO_STACK)),
        signal.getsignal(signal.SIGINT),
        (is_recording(), _get_current_dispatch_mode()),
    ]


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.filterwarnings("ignore")  # what tracers say as they fail
def test_a_failed_capture_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    way, reason = FAILURES[name]
    pair, x = Failing(way), (torch.rand(6, 4) < 0.5).double()
    step: Any = capture(pair.model, pair.guide, x)
    step(x)
    before, pair.fails = state_of(pair), True
    monkeypatch.setattr("pyrovae.compile.trace.compile_graph", no_compiler)
    with pytest.raises(KeyboardInterrupt if name == "Ctrl-C" else NotRecordableError, match=reason):
        step.trace((x,)).compile((x,))
    assert state_of(pair) == before


def test_objectives_of_pyro_run_eagerly() -> None:
    vae, (x, *_) = make_vae(), batches(1)
    step = capture(vae.model, vae.guide, x, objective=Trace_ELBO())
    assert all(step(x).loss.isfinite() for _ in range(3))


def test_objectives_that_pyro_compiles_are_refused() -> None:
    vae, (x, *_) = make_vae(), batches(1)
    with pytest.raises(TypeError, match="JitTrace_ELBO"):
        capture(vae.model, vae.guide, x, objective=JitTrace_ELBO())


def test_the_number_of_steps_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide, _ = of_vae(make_vae())
    step = capture(model, guide, batches(1)[0])

    def chosen(num_steps: int, *, compiler: bool = True) -> Any:
        monkeypatch.setattr(steps, "has_compiler", lambda: compiler)
        given = (step.programs, step.arguments, step.objective, steps.fused_adam)
        return Step(*given, clip_norm=None, engine="auto", num_steps=num_steps)

    assert not chosen(steps.TRACED_FROM - 1).traced
    assert chosen(steps.TRACED_FROM).traced
    assert not chosen(steps.COMPILED_FROM - 1).compiled
    assert chosen(steps.COMPILED_FROM).compiled
    assert not chosen(steps.COMPILED_FROM, compiler=False).compiled


# corners


class Einsum(nn.Module):
    """A pair whose gradients lie in memory otherwise than its parameters, or are one tensor for two of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight, self.a, self.b = (nn.Parameter(0.1 * torch.randn(s)) for s in ((64, 3), (64,), (64,)))
        self.net = nn.Linear(64, 6)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            logits = torch.einsum("xd,...d->...x", self.weight, z) + (self.a + self.b)
            logits = logits + self.weight.sum() if self.kind == "expanded" else logits
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        pyro.module("einsum", self)
        with pyro.plate("data", len(x)):
            mean, log_scale = self.net(x.flatten(1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def fused_adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def test_module_that_cannot_be_found_is_named_in_the_error_and_may_be_passed() -> None:
    encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
    deep = [[[[[[encoder]]]]]]

    def guide(x: Tensor) -> None:
        network = pyro.module("encoder", deep[0][0][0][0][0][0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x), 1.0).to_event(1))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="cannot be found from the model and the guide; pass it with modules="):
        capture(model, guide, x)
    assert capture(model, guide, x, engine="eager", modules=[encoder])(x).loss.isfinite()


@pytest.mark.parametrize("kind", ["transposed", "expanded"])
def test_steps_are_those_of_backward_whatever_the_layout_of_gradients(kind: str) -> None:
    found = []
    for how in ("by hand", "eager", "captured"):
        torch.manual_seed(1)
        pair, objective = Einsum(kind), ELBO()
        parameters = list(pair.parameters())
        optimizer = fused_adam(parameters)
        step: Any = None
        if how != "by hand":
            step = capture(pair.model, pair.guide, batches(1)[0], engine=how, clip_norm=0.5, optimizer=fused_adam)
        torch.manual_seed(2)
        for x in batches(12):
            if step is not None:
                step(x)
                continue
            optimizer.zero_grad()
            (objective.differentiable_loss(pair.model, pair.guide, x) / len(x)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert distance(found[1], found[0]) < 1e-12
    assert distance(found[2], found[0]) < 1e-12


def test_frozen_parameters_pass_in_silence_however_they_are_registered() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net[0].requires_grad_(requires_grad=False)
    before = [parameter.clone() for parameter in net.parameters()]

    def posterior(x: Tensor) -> dist.TorchDistribution:
        pyro.module("net", net)
        return dist.Normal(net(x), 1.0).to_event(1)

    pair = pair_from(standard_normal(2), lambda z, x: dist.Normal(torch.cat([z, z], -1), 1.0).to_event(1), posterior)
    capture(*pair, torch.randn(6, 4), engine="eager")(torch.randn(6, 4))  # warnings are errors
    same = [torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert same == [True, True, False, False]


def test_one_tensor_given_twice_is_two_inputs() -> None:
    def make() -> Programs:
        vae = make_vae()
        return lambda x, target: vae.model(target), lambda x, target: vae.guide(x), [vae]

    x, other = batches(2)
    inputs = [(x, x), (x, x), (x, other), (other, x)]
    assert torch.equal(*(train(make, how, inputs, x, x)[0] for how in ("eager", "captured")))


BATCH = batches(1)[0].double()
REFUSALS: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "share their first axis, but received shapes []"),
    ((data(),), {}, "Data; give one split, data.train"),
    ((BATCH,), {"engine": "fast"}, "`engine` of capture must be one of 'auto', 'eager', 'captured', got 'fast'"),
    ((BATCH,), {"clip_norm": -1.0}, "`clip_norm` of capture must be a finite number > 0 or None, got -1.0"),
    ((BATCH,), {"objective": ELBO}, "got the class ELBO; give an object, ELBO(...)"),
    ((BATCH,), {"optimizer": pyro.optim.Adam({"lr": 1e-3})}, "optimizer makes one of torch's optimizers"),
]


@pytest.mark.parametrize(("given", "options", "text"), REFUSALS)
def test_wrong_arguments_of_capture_are_refused(given: Any, options: Any, text: str) -> None:
    vae = make_vae()
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        capture(vae.model, vae.guide, *given, **options)


def test_wrong_inputs_of_a_step_are_refused() -> None:
    vae, x, split = make_vae(), batches(1)[0], data().train
    step, of_rows = capture(vae.model, vae.guide, x), capture(vae.model, vae.guide, split)
    with pytest.raises(ValueError, match="received an empty minibatch"):
        step(x[:0])
    for rows in (torch.ones(len(split), dtype=torch.bool), torch.ones(3), x):
        with pytest.raises(TypeError, match="takes the numbers of its rows"):
            of_rows(rows)


class BySize(nn.Module):
    """An encoder with a part for whole minibatches alone, as batch normalization that skips a last datum."""

    x_shape = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(64, 64), nn.Linear(64, 6)
        self.register_buffer("shift", torch.zeros(1).expand(64))  # which cannot be written to

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.rest(self.first(x) if len(x) > 3 else x + self.shift).unflatten(-1, (3, 2))


def test_each_shape_has_gradients_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "REPEATS", 3)
    given = [x for pair in zip(batches(12), batches(12, size=2), strict=True) for x in pair]
    found = []
    for how in ("eager", "captured"):
        terms, values, step = train(
            lambda: with_encoder(BySize()), how, given, optimizer=lambda p: torch.optim.Adam(p, lr=0.01)
        )
        assert how == "eager" or len(step._traces) == 2
        found.append(torch.cat([terms.flatten(), values]))
    assert distance(*found) < 1e-10


# CUDA graphs


class StandIn:
    """In place of a CUDA graph: it runs the captured function again and writes to the same results."""

    captures: ClassVar[list[Any]] = []

    def replay(self) -> None:
        function, inputs, outputs = self.captured
        with torch.no_grad():
            for output, value in zip(outputs, function(*inputs), strict=True):
                output.copy_(value)


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture kernels on the CPU by stand-ins."""
    StandIn.captures.clear()
    made = GraphedFunction._capture

    def capture_on_cpu(function: GraphedFunction) -> None:
        made(function)
        function._graph.captured = (function._function, function._inputs, function._outputs)
        StandIn.captures.append(function)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", StandIn)
    monkeypatch.setattr(GraphedFunction, "_capture", capture_on_cpu)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    for name in ("graph", "stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Recording, "capture_kernels", capture_kernels_anywhere)


def capture_kernels_anywhere(recording: Recording, inputs: Any) -> None:
    recording._replay = GraphedFunction(recording._replay, inputs, recording.leaves)


@pytest.mark.usefixtures("_stand_in")
def test_steps_captured_in_a_graph_are_eager_steps() -> None:
    losses, values, _ = trained("BatchNorm", "eager", batches(12))
    found, reached, step = trained("BatchNorm", "captured", batches(12))
    assert len(StandIn.captures) == 1
    assert distance(found, losses) < 1e-10
    assert distance(reached, values) < 1e-10
    moved = step.tensors.trained[0]
    moved.data = moved.data.clone()
    step(*batches(1))
    assert len(StandIn.captures) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", PAIRS)
def test_steps_on_a_gpu_are_eager_steps(name: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.set_default_dtype(torch.float32)
    results = []
    for how in ("eager", "captured"):
        pyro.clear_param_store()
        torch.manual_seed(1)
        make, objective = PAIRS[name]
        with torch.device("cuda"):
            model, guide, modules = make()
        given = [x.cuda() for x in (*batches(20), *batches(2, size=5), *batches(20))]
        step = capture(model, guide, given[0], objective=objective(), engine=how)
        torch.manual_seed(2)
        losses = torch.stack([torch.stack(step(x)) for x in given])
        values = [value.detach().flatten() for module in modules for value in module.parameters()]
        results.append(torch.cat([losses.flatten(), *values]).cpu())
    assert distance(*results) < 1e-5
    assert not any(word in caplog.text for word in ("eagerly", "not compiled", "not captured"))
