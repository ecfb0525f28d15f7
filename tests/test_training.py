"""Training: accuracy, resuming to the last bit, run folders, divergence and refusals."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ModelGuide, linear_gaussian, make_vae, numbers, pair_from, pair_of, standard_normal
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae import likelihoods, networks
from pyrovae.bounds import log_mean_exp
from pyrovae.data import Data, Split, from_arrays, transforms
from pyrovae.evaluation import evaluate
from pyrovae.objectives import ELBO, IWAE, DReG, ImportanceWeighted, schedules
from pyrovae.results import History
from pyrovae.training import DivergenceError, FitOptions, Training, fit, load, load_weights
from pyrovae.training.run_folder import RunFolder
from pyrovae.vae import VAE

TRUTH = linear_gaussian()
FILES = {"config.json", "model.json", "model.safetensors", "trainer.pt", "metrics.jsonl"}


def vae(seed: int = 0, **parts: Any) -> VAE:
    torch.manual_seed(seed)
    return VAE(**make_vae(2, parts.get("likelihood") or likelihoods.Bernoulli((4,))).init_arguments | parts)


def binary(num_data: int = 60) -> Tensor:
    """Return two kinds of data, all on and all off, with a little noise."""
    generator = torch.Generator().manual_seed(5)
    kind = torch.rand(num_data, 1, generator=generator, dtype=torch.float64) < 0.5
    noise = torch.rand(num_data, 4, generator=generator, dtype=torch.float64) < 0.05
    return (kind ^ noise).double()


def grey(num_data: int = 80, *, transform: transforms.Transform | None = None) -> Data:
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(num_data, 4, generator=generator, dtype=torch.float64)
    return from_arrays(x, validation=16, test=16).with_transform(transform or transforms.DynamicBinarization())


def quiet_fit(model: Any, guide: Any, data: Any, **options: Any) -> History:
    return fit(model, guide, data, **({"show_progress": False} | options))


def train(v: VAE, data: Any, **options: Any) -> History:
    return quiet_fit(v.model, v.guide, data, **options)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def quick(**options: Any) -> Training:
    return Training(**({"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "device": "cpu"} | options))


def stop_after(number: int) -> Callable[[Any], bool]:
    return lambda epoch: epoch.epoch == number


def test_running_statistics_are_those_of_the_trained_weights() -> None:
    (model, guide), (_, encoder) = pair_with_everything()
    encoder[2].eval()
    x, unused = binary(40), nn.BatchNorm1d(4, momentum=0.5)
    unused.running_mean.fill_(7.0)
    quiet_fit(model, guide, x, training=quick(epochs=3, batch_size=20), options=FitOptions(modules=[unused]))
    _, normalization, *_ = encoder
    hidden = encoder[0](x)
    torch.testing.assert_close(normalization.running_mean, hidden.mean(0))  # of two minibatches of 20 data
    assert ((normalization.running_var / hidden.var(0) - 1).abs() < 0.1).all()  # within the minibatches
    assert (normalization.num_batches_tracked, normalization.momentum) == (6, 0.1)
    assert (unused.running_mean == 7.0).all()
    assert [part.training for part in encoder.modules()] == [True, True, True, False, True]


@pytest.mark.parametrize("momentum", [0.1, 0.0])
def test_running_statistics_leave_out_a_small_last_minibatch_and_frozen_layers(momentum: float) -> None:
    (model, guide), (_, encoder) = pair_with_everything()
    encoder[1].momentum = momentum
    encoder[1].running_var.fill_(3.0)
    before = encoder[1].running_mean.clone()
    quiet_fit(model, guide, x := binary(130), training=quick(epochs=1, batch_size=128))
    hidden = encoder[0](x)
    if not momentum:
        assert torch.equal(encoder[1].running_mean, before)
        assert (encoder[1].running_var == 3.0).all()
    else:  # of 128 of the 130 data
        assert ((encoder[1].running_var / hidden.var(0) - 1).abs() < 0.04).all()


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


# values that are learned


class LinearGuide(nn.Module):
    """The family of the exact posterior of the linear-Gaussian model."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(5, 3)
        self.log_scale = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.mean(x), self.log_scale.exp()).to_event(1)


def hand_written(plate: Callable[[Tensor], Any]) -> tuple[ModelGuide, LinearGuide]:
    posterior = LinearGuide()

    def model(x: Tensor) -> None:
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            mean = z @ TRUTH.weight.T + TRUTH.bias
            pyro.sample("x", dist.Normal(mean, TRUTH.scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x):
            pyro.sample("z", posterior(x))

    return (model, guide), posterior


PLATES: dict[str, Callable[[Tensor], Any]] = {
    "plate(len(x))": lambda x: pyro.plate("data", len(x)),
    "plate(N, subsample_size=len(x))": lambda x: pyro.plate("data", 200, subsample_size=len(x)),
}


def test_training_reaches_the_exact_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.training.step.has_compiler", lambda: False)
    x = TRUTH.sample(200)
    (model, guide), posterior = hand_written(PLATES["plate(N, subsample_size=len(x))"])
    training = quick(epochs=60, batch_size=30, learning_rate=0.05, final_learning_rate=1e-4, engine="captured")
    history = quiet_fit(model, guide, x, training=training)
    exact = TRUTH.posterior(x)
    assert torch.allclose(posterior.log_scale.exp() ** 2, exact.variance, rtol=0.1)
    evaluation = evaluate(model, guide, x, ks=(1, 100))
    truth = TRUTH.log_prob(x).mean().item()
    assert evaluation.iwae[1].value == pytest.approx(truth, abs=5e-3)
    assert evaluation.elbo.value == pytest.approx(truth, abs=0.05)
    assert history.epochs[-1].elbo == pytest.approx(truth, abs=0.5)
    assert history.epochs[-1].steps == 60 * 7


def test_gradient_is_per_datum_whatever_the_plate() -> None:
    x, moved = TRUTH.sample(200), []
    for plate in PLATES.values():
        torch.manual_seed(1)
        (model, guide), posterior = hand_written(plate)
        before = posterior.mean.bias.clone()
        training = quick(epochs=5, batch_size=50, learning_rate=1e-6)
        quiet_fit(model, guide, x, training=training, optimizer=sgd)
        moved.append((posterior.mean.bias - before) / (5 * 4 * 1e-6))
    assert all((value - moved[0]).norm() < 0.2 * moved[0].norm() for value in moved)
    assert 0.5 < moved[0].norm() < 50  # a sum over 200 data would be two orders of magnitude larger


def test_tensors_along_the_plate_are_trained_with_the_data() -> None:
    net = nn.Linear(2, 5)

    def posterior(x: Tensor, c: Tensor) -> dist.TorchDistribution:
        exact = TRUTH.posterior(x - net(c).detach() + TRUTH.bias)
        return dist.Normal(exact.mean, exact.variance.sqrt()).to_event(1)

    model, guide = pair_from(
        standard_normal(3),
        lambda z, x, c: dist.Normal(z @ TRUTH.weight.T + net(c), TRUTH.scale).to_event(1),
        posterior,
    )
    c = torch.randn(200, 2)
    effect = torch.randn(5, 2)
    x = TRUTH.sample(200) + c @ effect.T
    quiet_fit(model, guide, (x, c), training=quick(epochs=40))
    assert (net.weight - effect).abs().max() < 0.4
    evaluation = evaluate(model, guide, (x, c), ks=(1, 2))
    truth = TRUTH.log_prob(x - c @ effect.T).mean().item()
    assert evaluation.iwae[1].value == pytest.approx(truth, abs=0.2)


def pair_of_params() -> ModelGuide:
    def likelihood(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        bias = pyro.param("bias", lambda: torch.zeros(5))
        return dist.Normal(z @ TRUTH.weight.T + bias, scale).to_event(1)

    return pair_from(standard_normal(3), likelihood, None)[0], pair_of(TRUTH)[1]


def test_values_of_pyro_param_come_back_trained() -> None:
    x = TRUTH.sample(500)
    model, guide = pair_of_params()
    pyro.param("another", torch.tensor(3.0))
    net = nn.Linear(1, 1)
    quiet_fit(model, guide, x, training=quick(epochs=30, batch_size=50), modules=[net])
    store = pyro.get_param_store()
    assert set(store.keys()) == {"another", "scale", "bias"}
    assert store["another"].item() == 3.0
    assert pyro.param("scale").item() == pytest.approx(TRUTH.scale, abs=0.1)
    assert (pyro.param("bias") - TRUTH.bias).abs().max() < 0.3
    assert store.get_state()["constraints"]["scale"] is constraints.positive
    assert evaluate(model, guide, x, ks=(1,)).elbo.value == pytest.approx(TRUTH.log_prob(x).mean().item(), abs=0.2)


class Scaled(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.tensor(3.0), constraint=constraints.positive)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ TRUTH.weight.T + TRUTH.bias, self.scale).to_event(1), obs=x)


def test_a_pyro_module_is_trained_in_place() -> None:
    first, second = Scaled(), Scaled()
    x = TRUTH.sample(500)
    _, guide = pair_of(TRUTH)
    poutine.trace(first.model).get_trace(x)  # its tensor is now in the caller's store
    quiet_fit(second.model, guide, x, training=quick(epochs=20, batch_size=50))
    assert second.scale.item() == pytest.approx(TRUTH.scale, abs=0.1)
    assert first.scale.item() == pytest.approx(3.0)
    assert list(pyro.get_param_store().keys()) == ["scale"]


def test_what_the_loss_depends_on_and_nobody_trains_is_named(caplog: pytest.LogCaptureFixture) -> None:
    net, loose, frozen = nn.Linear(4, 4), torch.zeros(4, requires_grad=True), nn.Linear(4, 4)
    frozen.requires_grad_(requires_grad=False)
    scale = torch.ones(2, 1, requires_grad=True)
    held = [[[[[[net]]]]]]

    def posterior(x: Tensor) -> dist.TorchDistribution:
        mean, log_scale = held[0][0][0][0][0][0](frozen(x)).chunk(2, -1)
        return dist.Normal(mean * scale[:, 0], log_scale.exp()).to_event(1)

    def likelihood(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=torch.cat([z, -z], -1) + loose).to_event(1)

    before = state(frozen), state(net)
    quiet_fit(*pair_from(standard_normal(2), likelihood, posterior), binary(), training=quick(epochs=1))
    assert equal(state(frozen), before[0])
    assert not equal(state(net), before[1])
    assert not loose.any()
    assert (scale == 1).all()
    told = [record.message for record in caplog.records if "depends on" in record.message]
    assert told == [
        "the loss depends on 2 tensors that training does not move, of shape (4,), (2, 1); register each with "
        "pyro.param, or its module with pyro.module, in the model or guide"
    ]


# where training starts


def real_vae(**options: Any) -> VAE:
    return vae(likelihood=likelihoods.Gaussian((4,), **options))


START = "the output at the mean of the training data"


def test_training_starts_at_the_data_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = grey(transform=transforms.Identity())
    x = data.train.fixed()
    by_hand, started = (real_vae(learn_scale=True) for _ in range(2))
    with torch.no_grad():
        by_hand.decoder.layers[-1].bias.copy_(x.mean(0))
        by_hand.likelihood.log_scale.copy_((x - x.mean(0)).square().mean().sqrt().log())
    expected = numbers(train(by_hand, data, training=quick(epochs=2, start_at_data=False)))
    found = numbers(fit(started.model, started.guide, data, training=quick(epochs=2), folder=tmp_path))
    for a, b in zip(expected, found, strict=True):
        assert a["elbo"] == pytest.approx(b["elbo"], abs=1e-6)  # the mean of a split is float32
    words = f"{START} and learned scales at their spread"
    assert caplog.messages == [f"training 137 parameters; it starts with {words}"]
    assert json.loads((tmp_path / "config.json").read_text())["start"] == words


def test_what_was_trained_or_set_is_where_training_starts(caplog: pytest.LogCaptureFixture) -> None:
    v = real_vae(learn_scale=True)
    x = grey(transform=transforms.Identity()).train.fixed()
    fit(v.model, v.guide, x, training=quick(epochs=1))
    before = state(v)
    fit(v.model, v.guide, x + 3, training=quick(epochs=0))
    assert equal(state(v), before)
    given = real_vae(scale=0.5, learn_scale=True)
    fit(given.model, given.guide, x, training=quick(epochs=0))
    assert given.likelihood.scale.item() == 0.5
    assert torch.allclose(given.decoder.layers[-1].bias, x.mean(0))
    assert [START in record.message for record in caplog.records] == [True, False, True]


def test_a_likelihood_without_a_start_is_trained_from_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Own(likelihoods.Gaussian):
        def initial_params(self, mean: Tensor) -> Tensor:
            raise NotImplementedError

    v = real_vae()
    v.likelihood = Own((4,))
    train(v, torch.randn(40, 4), training=quick(epochs=1))
    assert "does not start at the mean of the training data: NotImplementedError" in caplog.text


# the same numbers


def test_a_seed_fixes_the_numbers() -> None:
    runs = []
    for seed in (0, 0, 1):
        v = vae().double()
        torch.manual_seed(len(runs))  # the caller's stream does not matter
        runs.append((numbers(train(v, grey(), training=quick(seed=seed))), state(v)))
    assert runs[0][0] == runs[1][0]
    assert equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def pair_with_everything() -> tuple[ModelGuide, list[nn.Module]]:
    """Return a pair of a module with dropout and running statistics, and a ``pyro.param``."""
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 4))
    decoder = nn.Linear(2, 4)

    def likelihood(z: Tensor, x: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=decoder(z) + pyro.param("bias", torch.zeros(4))).to_event(1)

    def posterior(x: Tensor) -> dist.TorchDistribution:
        mean, log_scale = encoder(x).chunk(2, -1)
        return dist.Normal(mean, log_scale.exp()).to_event(1)

    return pair_from(standard_normal(2), likelihood, posterior), [decoder, encoder]


RESUMED: list[tuple[dict[str, Any], Callable[[], ELBO | DReG]]] = [
    ({"clip_norm": 0.1}, ELBO),
    ({"patience": 3}, lambda: DReG(num_particles=5)),
    ({"final_learning_rate": 1e-4}, lambda: ELBO(annealing=schedules.Cyclical(9), free_bits=0.2)),
]


@pytest.mark.parametrize(("options", "objective"), RESUMED, ids=["clipped", "DReG", "annealed"])
def test_resuming_gives_the_numbers_of_an_uninterrupted_run(tmp_path: Path, options: Any, objective: Any) -> None:
    training = quick(epochs=7, learning_rate=0.05, **options)
    found = []
    for interrupted in (False, True):
        pyro.clear_param_store()
        (model, guide), modules = pair_with_everything()
        more: dict[str, Any] = {"training": training, "folder": tmp_path / str(interrupted)}
        if interrupted:
            quiet_fit(model, guide, grey(), objective=objective(), on_epoch=stop_after(3), **more)
            pyro.clear_param_store()
            (model, guide), modules = pair_with_everything()
            more["resume"] = True
        history = quiet_fit(model, guide, grey(), objective=objective(), **more)
        values = {f"{i}.{name}": value for i, module in enumerate(modules) for name, value in state(module).items()}
        values["bias"] = pyro.param("bias").detach().clone()
        found.append((numbers(history), values, history.best_epoch, history.why_stopped))
    assert found[0][0] == found[1][0]
    assert equal(found[0][1], found[1][1])
    assert found[0][2:] == found[1][2:]
    assert json.loads((tmp_path / "True" / "config.json").read_text())["objective"] == objective().describe()


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    v, again, training = vae().double(), vae(9).double(), quick(epochs=300, learning_rate=0.3, patience=2)
    history = train(v, grey(), training=training, folder=tmp_path)
    resumed = train(again, grey(), training=training, folder=tmp_path, resume=True)
    assert numbers(resumed) == numbers(history)
    assert resumed.why_stopped == history.why_stopped
    assert history.why_stopped.startswith("stopped early")
    assert equal(state(again), state(v))


# options


@pytest.mark.parametrize(("objective", "bound"), [(ELBO, "ELBO"), (lambda: IWAE(num_particles=5), "L_5")])
def test_early_stopping_restores_the_best_weights(tmp_path: Path, objective: Any, bound: str) -> None:
    v = vae().double()
    states: dict[int, dict[str, Tensor]] = {}
    training = quick(epochs=300, learning_rate=0.3, patience=4)
    history = train(
        v,
        grey(),
        objective=objective(),
        training=training,
        folder=tmp_path,
        on_epoch=lambda epoch: states.update({epoch.epoch: state(v)}),
    )
    curve = [epoch.validation[bound.replace("ELBO", "elbo")] for epoch in history.epochs]
    assert history.best_epoch == curve.index(max(curve)) + 1
    assert len(curve) == history.best_epoch + 4
    assert equal(state(v), states[history.best_epoch])
    assert equal(state(load(tmp_path).vae), states[history.best_epoch])
    assert f"no better validation {bound} since epoch {history.best_epoch}" in history.why_stopped
    assert f"validation {bound}" in str(history)
    assert all(bound == "ELBO" or epoch.validation[bound] > epoch.validation["elbo"] for epoch in history.epochs)


class Square(ImportanceWeighted):
    """The Renyi bound of order -1, which may exceed log p(x)."""

    def bound(self, log_weights: Tensor) -> Tensor:
        return log_mean_exp(2 * log_weights) / 2


@pytest.mark.parametrize(
    ("objective", "name"),
    [(ELBO(), "ELBO"), (IWAE(num_particles=5), "L_5"), (Square(num_particles=5), "objective"), (Trace_ELBO(), "ELBO")],
)
def test_progress_names_no_loss_a_bound_that_is_none(
    objective: Any, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyrovae.runtime.progress_bar.SECONDS_BETWEEN_LINES", 0.0)
    fit(vae(), grey(), objective=objective, training=quick(epochs=1), show_progress=True)
    assert f"  {name} -" in capsys.readouterr().err


def test_validation_is_the_elbo_of_the_fixed_validation_data() -> None:
    v = vae().double()
    data = grey()
    history = train(v, data, training=quick(epochs=1))
    evaluation = evaluate(v.model, v.guide, data.validation, ks=(1, 4000))
    assert history.epochs[0].validation["kl"] == pytest.approx(evaluation.kl.value, rel=1e-9)
    assert history.epochs[0].validation["elbo"] == pytest.approx(evaluation.elbo.value, abs=0.5)


def test_the_learning_rate_follows_a_cosine() -> None:
    v = vae().double()
    training = quick(epochs=5, learning_rate=1e-2, final_learning_rate=1e-4)
    history = train(v, binary(), training=training)
    expected = [1e-4 + (1e-2 - 1e-4) * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    assert [epoch.learning_rate for epoch in history.epochs] == pytest.approx(expected, rel=1e-12)


def test_an_objective_of_pyros() -> None:
    v = vae().double()
    history = train(v, binary(), objective=Trace_ELBO(), training=quick(epochs=20))
    assert history.epochs[-1].elbo > history.epochs[0].elbo + 0.3
    assert history.epochs[-1].kl is None
    with pytest.raises(TypeError, match=r"which RenyiELBO does not have; use pyrovae.objectives \(IWAE"):
        train(v, binary(), objective=RenyiELBO(num_particles=2), training=quick())


def test_the_objective_counts_the_steps_of_training(tmp_path: Path) -> None:
    v, objective = vae().double(), ELBO(annealing=schedules.Linear(100))
    objective.step = 77  # from an earlier use
    options = {"folder": tmp_path, "show_progress": False}
    train(v, grey(), objective=objective, training=quick(epochs=2), **options)
    assert objective.step == 6  # 48 data in batches of 16
    again = ELBO(annealing=schedules.Linear(100))
    train(v, grey(), objective=again, training=quick(epochs=3), resume=True, **options)
    assert again.step == 9


# divergence


def test_a_loss_that_explodes_in_the_first_epoch_stops_training(tmp_path: Path) -> None:
    v = vae().double()
    start = state(v)
    training = quick(learning_rate=1e300, start_at_data=False)
    with pytest.raises(DivergenceError, match="stopped in epoch 1 at its step [234]: .* is not finite") as error:
        train(v, grey(), training=training, folder=tmp_path)
    assert f"{tmp_path} holds the weights of epoch 0" in str(error.value)
    assert "lower the learning rate (1e+300) or set clip_norm" in str(error.value)
    assert equal(state(load(tmp_path).vae.double()), start)


def test_a_nan_after_the_first_epoch_leaves_the_last_good_one(tmp_path: Path) -> None:
    v = vae().double()
    states = []

    def poison(epoch: Any) -> None:
        states.append(state(v))
        if epoch.epoch == 2:
            v.encoder.layers[0].weight.data[0, 0] = math.nan

    with pytest.raises(DivergenceError, match=r"stopped in epoch 3 at its step 1: (KL|the loss|loss) is not finite"):
        train(v, grey(), training=quick(), folder=tmp_path, on_epoch=poison)
    run = load(tmp_path)
    assert equal(state(run.vae), states[1])
    assert [epoch.epoch for epoch in run.history.epochs] == [1, 2]
    again = vae().double()
    history = train(again, grey(), training=quick(), folder=tmp_path, resume=True)
    assert len(history.epochs) == 4


def test_the_term_that_is_not_finite_is_named() -> None:
    v = vae().double()
    calls = []

    def model(x: Tensor) -> None:
        calls.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", v.prior())
            late = torch.tensor(-math.inf if len(calls) > 20 else 0.0)
            pyro.sample("x", v.likelihood(v.decoder(z)), obs=x)
            pyro.factor("late", late.expand(len(x)))

    with pytest.raises(DivergenceError, match="reconstruction is not finite"):
        quiet_fit(model, v.guide, binary(), training=quick(epochs=10))


def test_a_last_step_to_nan_is_not_kept(tmp_path: Path) -> None:
    v = vae().double()
    start = state(v)

    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.fill_(math.nan)

    training = quick(batch_size=60, start_at_data=False)
    with pytest.raises(DivergenceError, match="epoch 1 at its step 1: a parameter is not finite"):
        train(v, binary(), training=training, optimizer=lambda p: Broken(p, lr=1.0), folder=tmp_path)
    assert equal(state(load(tmp_path).vae), start)


# the run folder


def run_in(folder: Path, **options: Any) -> VAE:
    v = vae()
    train(v, grey(), training=quick(**({"epochs": 2} | options)), folder=folder)
    return v


def test_a_folder_is_complete(tmp_path: Path) -> None:
    v = run_in(tmp_path / "deep" / "run")
    folder = tmp_path / "deep" / "run"
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == FILES | {"manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    assert manifest == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    config = json.loads((folder / "config.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert config["training"]["seed"] == 0
    assert config["objective"] == ELBO().describe()
    assert config["optimizer"] == {"class": "Adam"}
    assert len(config["data"]["hash"]) == 64
    assert torch.__version__.startswith(config["versions"]["torch"])
    trainer = torch.load(folder / "trainer.pt", weights_only=True)
    assert trainer["epoch"] == 2
    assert equal(trainer["values"], state(v))


def test_a_loaded_run_gives_the_same_numbers(tmp_path: Path) -> None:
    v = run_in(tmp_path)
    pyro.param("of another pair", torch.zeros(2))
    run = load(tmp_path)
    assert run.vae is not v
    assert equal(state(run.vae), state(v))
    assert not run.vae.training
    test = grey().test
    a, b = (evaluate(m.model, m.guide, test, ks=(1, 10)) for m in (v, run.vae))
    for name, value in a.per_datum.items():
        torch.testing.assert_close(value, b.per_datum[name], rtol=0, atol=0, equal_nan=True)
    assert [epoch.epoch for epoch in run.history.epochs] == [1, 2]
    assert run.config["training"]["epochs"] == 2


def test_weights_keep_their_dtype_whatever_the_default(tmp_path: Path) -> None:
    v = run_in(tmp_path)
    torch.set_default_dtype(torch.float32)
    assert equal(state(load(tmp_path).vae), state(v))
    with pytest.raises(ValueError, match="of torch.float64 in the run and .* of torch.float32 in the model"):
        load_weights(tmp_path, [vae()])


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    """The run is as of an earlier version, which lacks some options and has another; the defaults stand for them."""
    settings = {"epochs": 2, "final_learning_rate": 1e-4}
    v = run_in(tmp_path, **settings)
    config, model = (json.loads(RunFolder(tmp_path).read(name)) for name in ("config.json", "model.json"))
    del config["training"]["engine"]
    del model["arguments"]["encoder"]["arguments"]["activation"]
    model["arguments"]["decoder"]["arguments"]["initial_params"] = None
    RunFolder(tmp_path).write({"config.json": json.dumps(config).encode(), "model.json": json.dumps(model).encode()})
    train(v, grey(), training=quick(**settings), folder=tmp_path, resume=True)
    assert equal(state(load(tmp_path).vae), state(v))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"training": quick(**settings, seed=3)}, "training.seed = 0, but received 3"),
        ({"training": quick(**settings | {"epochs": 4})}, "training.epochs = 2, but received 4"),
        ({"objective": ELBO(beta=2.0)}, "objective.beta = 1.0, but received 2.0"),
        ({"objective": Trace_ELBO()}, "objective.class = 'ELBO', but received 'Trace_ELBO'"),
        ({"optimizer": sgd}, "optimizer.class = 'Adam', but received 'SGD'"),
        ({"data": grey(60)}, "data.num_data = 48, but received 28"),
        ({"data": grey(transform=transforms.Threshold())}, "data.transform = "),
    ]
    for changed, text in changes:
        options = {"data": grey(), "training": quick(**settings)} | changed
        with pytest.raises(ValueError, match="resume with the same settings") as error:
            train(v, options.pop("data"), **options, folder=tmp_path, resume=True)
        assert text in str(error.value)
    other = networks.MLPDecoder(2, v.likelihood.param_shape, hidden=(6,), activation=nn.SiLU)
    v.decoder, v.init_arguments = other, v.init_arguments | {"decoder": other}
    with pytest.raises(ValueError, match="has another model: its model.json describes other parts"):
        train(v, grey(), training=quick(**settings), folder=tmp_path, resume=True)


def test_a_run_in_bfloat16_is_not_resumed_in_float32(tmp_path: Path) -> None:
    """Earlier versions had the option."""
    v = run_in(tmp_path, epochs=1)
    for precision, refused in (("float32", False), ("bfloat16", True)):
        config = json.loads(RunFolder(tmp_path).read("config.json"))
        config["training"]["precision"] = precision
        RunFolder(tmp_path).write({"config.json": json.dumps(config).encode()})
        with pytest.raises(ValueError, match="was trained in bfloat16") if refused else nullcontext():
            train(v, grey(), training=quick(epochs=2), folder=tmp_path, resume=True)


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    run_in(tmp_path)
    RunFolder(tmp_path).write({"trainer.pt": pickle.dumps(print)})
    with pytest.raises(ValueError, match="trainer.pt is not a state of training"):
        load(tmp_path)
    RunFolder(tmp_path).write({"model.safetensors": b"x"})
    with pytest.raises(ValueError, match="model.safetensors must have the safetensors format"):
        load_weights(tmp_path, [vae()])


def test_a_model_that_cannot_be_described_is_loaded_by_its_weights(tmp_path: Path) -> None:
    v = vae(encoder=nn.Sequential(nn.Linear(4, 4), nn.Unflatten(-1, (2, 2))))
    train(v, grey(), training=quick(epochs=1), folder=tmp_path)
    with pytest.raises(ValueError, match="use training.load_weights"):
        load(tmp_path)
    other = vae(1, encoder=nn.Sequential(nn.Linear(4, 4), nn.Unflatten(-1, (2, 2))))
    load_weights(tmp_path, [other])
    assert equal(state(other), state(v))
    with pytest.raises(ValueError, match="the run belongs to another model"):
        load_weights(tmp_path, [vae()])


def test_weights_of_a_hand_written_pair(tmp_path: Path) -> None:
    (model, guide), modules = pair_with_everything()
    quiet_fit(model, guide, grey(), training=quick(epochs=1), modules=modules, folder=tmp_path)
    trained, bias = [state(module) for module in modules], pyro.param("bias").detach().clone()
    pyro.clear_param_store()
    (model, guide), fresh = pair_with_everything()
    before = [state(module) for module in fresh]
    with pytest.raises(ValueError, match=r"pyro.param\('bias'\).*call the model and the guide once"):
        load_weights(tmp_path, fresh)
    assert all(equal(state(module), old) for module, old in zip(fresh, before, strict=True))
    pyro.param("of another pair", torch.zeros(2))
    model(binary())
    load_weights(tmp_path, fresh)
    assert all(equal(state(module), values) for module, values in zip(fresh, trained, strict=True))
    assert torch.equal(pyro.param("bias"), bias)


def test_an_interrupt_leaves_the_last_epoch_and_nothing_switched(tmp_path: Path) -> None:
    v = vae()
    v.encoder.eval()
    states: list[dict[str, Tensor]] = []
    steps: list[int] = []

    def model(x: Tensor) -> None:
        steps.append(len(x))
        if len(states) == 2 and v.training and len(steps) % 3 == 0:
            raise KeyboardInterrupt
        v.model(x)

    def left_behind() -> list[object]:
        precision = torch.get_float32_matmul_precision()
        return [[part.training for part in v.modules()], torch.get_rng_state().tolist(), precision]

    before = left_behind()
    options = {"training": quick(), "folder": tmp_path, "on_epoch": lambda epoch: states.append(state(v))}
    with pytest.raises(KeyboardInterrupt) as caught:
        quiet_fit(model, v.guide, grey(), **options)
    assert [epoch.epoch for epoch in caught.value.history.epochs] == [1, 2]  # type: ignore[attr-defined]
    assert left_behind() == before
    assert not list(pyro.get_param_store())
    restored = vae(4)
    load_weights(tmp_path, [restored])
    assert equal(state(restored), states[1])
    assert not list(tmp_path.glob(".*.new"))


# refusals


def test_training_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is nothing to train.*modules=\[...\]"):
        quiet_fit(*pair_of(TRUTH), TRUTH.sample(10), training=quick())
    for options, text in (
        ({"patience": 1}, "early stopping watches validation data, but there are none"),
        ({"device": "nonsense"}, "the device 'nonsense' cannot be used here"),
        ({"resume": True}, "resume goes on with the run in a folder, but there is none; pass folder="),
    ):
        with pytest.raises(ValueError, match=text):
            train(vae().double(), binary(), **({"epochs": 4, "device": "cpu"} | options))


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (torch.zeros(0, 4), ValueError, "the data set is empty"),
        (torch.full((5, 4), math.nan), ValueError, "20 values that are NaN or infinite"),
        ((torch.zeros(5, 4), torch.zeros(4)), ValueError, "share their first axis"),
        ([[0.0, 1.0]], TypeError, "`data` of (fit|evaluate) must be a Data or a Split or a tensor"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(data: Any, error: type[Exception], text: str) -> None:
    v = vae().double()
    with pytest.raises(error, match=text):
        train(v, data, training=quick())
    with pytest.raises(error, match=text):
        evaluate(v.model, v.guide, data, ks=(1,))


def test_grey_values_under_bernoulli_are_refused_with_the_cure() -> None:
    x, bad = binary(40), binary(1100)
    bad[-1] = 0.5
    splits = {"train": Split(x, name="train"), "validation": Split(bad, name="bad"), "test": Split(x, name="test")}
    for given in (bad, Data(**splits, name="d")):
        v = vae().double()
        with pytest.raises(ValueError, match="scores data that are 0 or 1, but .* binarize them") as error:
            train(v, given, training=quick())
        assert not isinstance(error.value, DivergenceError)


def test_options_are_keywords_or_a_record() -> None:
    v = vae().double()
    stopped = []
    for options in ({"on_epoch": stop_after(1)}, {"options": FitOptions(on_epoch=stop_after(1))}):
        history = train(v, binary(), training=quick(), **options)
        stopped.append(history.why_stopped)
    assert stopped == ["stopped by on_epoch after epoch 1"] * 2
    with pytest.raises(TypeError, match="fit has the options resume, .*, epochs, .*, but received 'epoch'"):
        train(v, binary(), epoch=3)


def test_a_training_that_ends_below_its_start_says_so() -> None:
    for learning_rate, fell in ((1e-3, False), (1e4, True)):
        history = train(vae(), binary(), epochs=4, learning_rate=learning_rate)
        assert ("far below that of the first epoch" in str(history)) == fell
