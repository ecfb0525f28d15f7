"""Pairs with known answers, and the state that no test may change."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

import pyrovae
from pyrovae import VAE, cli, likelihoods, networks, posteriors, priors, programs
from pyrovae.diagnostics import gaps
from pyrovae.evaluation import checks
from pyrovae.likelihoods import Likelihood
from pyrovae.results import History
from pyrovae.testing.small_models import LinearGaussian

ModelGuide = tuple[Callable[..., None], Callable[..., None]]
evaluate = functools.partial(pyrovae.evaluate, show_progress=False)

MNIST_ROOT = Path(os.environ.get("PYROVAE_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_mnist = pytest.mark.skipif(
    not (MNIST_ROOT / "MNIST").exists(), reason="no copy of MNIST; PYROVAE_DATA names its folder"
)


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run every test in float64, with an empty store and a fixed stream, and on the CPU unless it is for a GPU."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that it starts
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    torch.manual_seed(0)
    before = validation_switches()
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    after = validation_switches()
    if after != before:  # later tests would not see invalid values
        pyro.enable_validation(True)  # noqa: FBT003 (Pyro's)
        pytest.fail(f"validation switches of torch, pyro.infer and poutine: {before} before, {after} after the test")


def validation_switches() -> tuple[bool | None, bool, bool]:
    """Return whether torch's distributions, pyro.infer and pyro.poutine check values."""
    return (
        torch.distributions.Distribution._validate_args,
        pyro.infer.util.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
    )


@pytest.fixture
def quick_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refine in few steps where `evaluate` splits the gap, in tests of other facts."""
    monkeypatch.setattr(checks, "gaps", functools.partial(gaps, num_steps=10))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder and in float32, as the command line does."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail, and return its error line."""
    capsys.readouterr()
    try:
        code = cli.main(list(argv))
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert "Traceback" not in captured.err
    (line,) = (line for line in captured.err.splitlines() if "error:" in line)
    return line


def linear_gaussian(*, latent_dim: int = 3, x_dim: int = 5, scale: float = 0.7, seed: int = 0) -> LinearGaussian:
    """Return a linear-Gaussian model with orthogonal columns, whose posterior is diagonal."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(x_dim, latent_dim, generator=generator, dtype=torch.float64))
    lengths = torch.linspace(0.5, 2.0, latent_dim, dtype=torch.float64)
    bias = torch.randn(x_dim, generator=generator, dtype=torch.float64)
    return LinearGaussian(q * lengths, bias, scale)


def likelihood_of(truth: LinearGaussian) -> Callable[..., Any]:
    """Return p(x | z) as a function of z and ignored arguments."""
    return lambda z, *_: dist.Normal(z @ truth.weight.T + truth.bias, truth.scale).to_event(1)


def posterior_of(truth: LinearGaussian, *, offset: float = 0.0, widen: float = 1.0) -> Callable[..., Any]:
    """Return the diagonal posterior, shifted and widened, as a function of x and ignored arguments."""

    def q_z(x: Tensor, *_: Tensor) -> Any:
        exact = truth.posterior(x)
        return dist.Normal(exact.mean + offset, widen * exact.variance.sqrt()).to_event(1)

    return q_z


def pair_of(truth: LinearGaussian, *, offset: float = 0.0, widen: float = 1.0) -> ModelGuide:
    """Return the model as a Pyro pair whose guide is the exact posterior, shifted and widened."""
    dim = truth.weight.shape[1]
    posterior = posterior_of(truth, offset=offset, widen=widen)
    return pair_from(lambda *_: standard_normal(dim), likelihood_of(truth), posterior)


def program(body: Callable[..., object], *, dim: int = -1) -> Callable[..., None]:
    """Return a program that runs a function of its arguments in a plate of their length."""

    def run(x: Tensor, *given: Tensor) -> None:
        with pyro.plate("data", len(x), dim=dim):
            body(x, *given)

    return run


def model_from(p_z: Any, p_x: Callable[..., Any]) -> Callable[..., None]:
    """Return the model of z ~ p_z and x ~ p_x(z, x, ...); p_z may be a function of (x, ...) too."""

    def body(x: Tensor, *given: Tensor) -> None:
        z = pyro.sample("z", p_z if isinstance(p_z, Distribution) else p_z(x, *given))
        pyro.sample("x", p_x(z, x, *given), obs=x)

    return program(body)


def guide_from(q_z: Callable[..., Any]) -> Callable[..., None]:
    """Return the guide z ~ q_z(x, ...)."""
    return program(lambda *args: pyro.sample("z", q_z(*args)))


def pair_from(p_z: Any, p_x: Callable[..., Any], q_z: Callable[..., Any]) -> ModelGuide:
    """Return the model of `model_from` with the guide of `guide_from`."""
    return model_from(p_z, p_x), guide_from(q_z)


def exact_guide(truth: LinearGaussian) -> Callable[..., None]:
    """Return the posterior, with its full covariance, as a guide."""
    posterior = truth.posterior
    return guide_from(lambda x: dist.MultivariateNormal(posterior(x).mean, posterior(x).covariance_matrix))


def standard_normal(dim: int) -> Any:
    """Return a standard normal distribution of vectors."""
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


def scalar_pair(q_mean: float, q_variance: float) -> ModelGuide:
    """Return the one-dimensional pair of the reference table."""
    return pair_from(
        dist.Normal(torch.tensor(0.0), 1.0),
        lambda z, _: dist.Normal(0.5 + 2.0 * z, 1.0),
        lambda _: dist.Normal(torch.tensor(q_mean), q_variance**0.5),
    )


def menu(room: ModuleType) -> list[Any]:
    """Return the concrete classes that a package exports."""
    classes = [part for part in (getattr(room, name) for name in room.__all__) if inspect.isclass(part)]
    return [part for part in classes if not inspect.isabstract(part)]


SMALL = {"levels": 6, "scale": 0.7, "learn_scale": True, "num_components": 3, "hidden": (16,), "rank": 1}


def small_part(part: type, *args: Any, **options: Any) -> Any:
    """Return a part of a class, with the options among `SMALL` that it has."""
    names = inspect.signature(part).parameters
    return part(*args, **{name: value for name, value in SMALL.items() if name in names} | options)


def make_vae(latent_dim: int = 3, likelihood: Likelihood | None = None) -> VAE:
    """Return a small VAE, of binary images of 8 x 8 if no likelihood is given."""
    likelihood = likelihoods.Bernoulli((1, 8, 8)) if likelihood is None else likelihood
    posterior = posteriors.DiagonalNormal(latent_dim)
    return VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, hidden=(8,)),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(likelihood.x_shape, posterior.param_shape, hidden=(8,)),
        posterior=posterior,
    )


def numbers(history: History) -> list[dict[str, Any]]:
    """Return the metrics of all epochs without their durations."""
    return [{k: v for k, v in dataclasses.asdict(epoch).items() if k != "seconds"} for epoch in history.epochs]


def inspect_programs(*args: Any, **options: Any) -> programs.ModelGuide:
    """Return the structure of model and guide."""
    with programs.inspected_programs(*args, **options) as structure:
        return structure


class TwoLayers(nn.Module):
    """Two stochastic layers: the model goes z2 -> z1 -> x, the guide z1 -> z2 or z2 -> z1."""

    def __init__(self, *, bottom_up: bool) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.to_z1, self.to_x = nn.Linear(2, 3), nn.Linear(3, 4)
        self.q1, self.q2 = nn.Linear(4 if bottom_up else 6, 3), nn.Linear(3 if bottom_up else 4, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.to_z1(z2), 0.8).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.to_x(z1)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            if self.bottom_up:
                z1 = pyro.sample("z1", dist.Normal(self.q1(x), 0.6).to_event(1))
                pyro.sample("z2", dist.Normal(self.q2(z1), 0.7).to_event(1))
            else:
                z2 = pyro.sample("z2", dist.Normal(self.q2(x), 0.7).to_event(1))
                rows = torch.cat([x.expand(*z2.shape[:-1], -1), z2], -1)
                pyro.sample("z1", dist.Normal(self.q1(rows), 0.6).to_event(1))
