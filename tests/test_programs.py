"""The contract with a hand-written pair: every form of it gives the exact numbers, and what breaks it is refused."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ModelGuide, TwoLayers, linear_gaussian, make_vae, pair_of
from pyro import poutine
from pyro.infer import SVI
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints

from pyrovae import bounds, data, likelihoods, networks, posteriors, priors
from pyrovae.evaluation import Checks, evaluate
from pyrovae.importance.sampling import log_joint, log_weights, particles
from pyrovae.objectives import ELBO
from pyrovae.programs import find_modules, inspect_programs
from pyrovae.results import compare
from pyrovae.runtime.context import module_mode, validation
from pyrovae.training import Training, capture, fit
from pyrovae.vae import VAE

TRUTH = linear_gaussian()
X = TRUTH.sample(23)
EXACT = TRUTH.log_prob(X)
ONE_LINE = "model and guide do not take an axis of particles"


def prior() -> dist.TorchDistribution:
    return dist.Normal(torch.zeros(3), 1.0).to_event(1)


def likelihood(z: Tensor) -> dist.TorchDistribution:
    return dist.Normal(z @ TRUTH.weight.T + TRUTH.bias, TRUTH.scale).to_event(1)


def posterior(x: Tensor) -> dist.TorchDistribution:
    exact = TRUTH.posterior(x)
    return dist.Normal(exact.mean, exact.variance.sqrt()).to_event(1)


def in_plate(plate: Callable[[Tensor], Any], *, indexed: bool = False) -> ModelGuide:
    """Return the exact model and guide in a plate, the rows of x being those it draws if it is indexed."""

    def model(x: Tensor) -> None:
        with plate(x) as i:
            pyro.sample("x", likelihood(pyro.sample("z", prior())), obs=x[i] if indexed else x)

    def guide(x: Tensor) -> None:
        with plate(x) as i:
            pyro.sample("z", posterior(x[i] if indexed else x))

    return model, guide


def full_plate(size: int) -> ModelGuide:
    return in_plate(lambda x: pyro.plate("data", size, subsample_size=len(x)))


def drawing_plate(size: int, batch_size: int) -> ModelGuide:
    return in_plate(lambda x: pyro.plate("data", size, subsample_size=batch_size), indexed=True)


def drawing_at_most(batch_size: int) -> ModelGuide:
    return in_plate(lambda x: pyro.plate("data", len(x), subsample_size=min(batch_size, len(x))), indexed=True)


def rows_given() -> tuple[Callable[..., None], Callable[..., None]]:
    def model(x: Tensor, rows: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=rows):
            pyro.sample("x", likelihood(pyro.sample("z", prior())), obs=x)

    def guide(x: Tensor, rows: Tensor) -> None:
        with pyro.plate("data", 1000, subsample=rows):
            pyro.sample("z", posterior(x))

    return model, guide


def pixel_plate() -> ModelGuide:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", prior())  # (..., B, 1, 3)
            mean = z @ TRUTH.weight.T + TRUTH.bias  # (..., B, 1, 5)
            with pyro.plate("pixels", 5, dim=-1):
                pyro.sample("x", dist.Normal(mean.squeeze(-2), TRUTH.scale), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", posterior(x.unsqueeze(-2)))

    return model, guide


def pixel_plate_to_the_left() -> ModelGuide:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", prior())  # (..., 1, B, 3) with particles, else (B, 3)
            mean = (z @ TRUTH.weight.T + TRUTH.bias).movedim(-1, -2)  # (..., 1, 5, B) or (5, B)
            mean = mean.squeeze(-3) if mean.ndim > 2 else mean
            with pyro.plate("pixels", 5, dim=-2):
                pyro.sample("x", dist.Normal(mean, TRUTH.scale), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", posterior(x))

    return model, guide


def latent_in_inner_plate(width: int = 3) -> ModelGuide:
    """Return the pair with the latent variables as a plate of their own; the width is that of the 3-row probe."""
    assert width == TRUTH.weight.shape[1]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("codes", width, dim=-1):
                z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", likelihood(z.unsqueeze(-2)), obs=x.unsqueeze(-2))

    def guide(x: Tensor) -> None:
        exact = TRUTH.posterior(x)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("codes", width, dim=-1):
            pyro.sample("z", dist.Normal(exact.mean, exact.variance.sqrt()))

    return model, guide


def several_latents() -> ModelGuide:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(torch.tensor(0.0), 1.0))
            rest = pyro.sample("rest", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", likelihood(torch.cat([first.unsqueeze(-1), rest], -1)), obs=x)

    def guide(x: Tensor) -> None:
        exact = TRUTH.posterior(x)
        with pyro.plate("data", len(x)):
            deviation = exact.variance.sqrt()
            pyro.sample("first", dist.Normal(exact.mean[..., 0], deviation[..., 0]))
            pyro.sample("rest", dist.Normal(exact.mean[..., 1:], deviation[..., 1:]).to_event(1))

    return model, guide


def scaled(model_scale: float, guide_scale: float) -> ModelGuide:
    model, guide = pair_of(TRUTH)
    return poutine.scale(model, scale=model_scale), poutine.scale(guide, scale=guide_scale)


def with_deterministic_and_factor() -> ModelGuide:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            mean = pyro.deterministic("mean", z @ TRUTH.weight.T + TRUTH.bias)
            pyro.factor("x", dist.Normal(mean, TRUTH.scale).log_prob(x).sum(-1))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(pyro.deterministic("seen", x, event_dim=1)))

    return model, guide


class Plain:
    """A callable object that is no module."""

    def __init__(self, which: str) -> None:
        self.which = which

    def __call__(self, x: Tensor) -> None:
        dict(zip(("model", "guide"), pair_of(TRUTH), strict=True))[self.which](x)


def switched(x: Tensor, *, which: str) -> None:
    Plain(which)(x)


class ExactModule(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(TRUTH.weight.clone())
        self.scale = PyroParam(torch.tensor(TRUTH.scale), constraint=constraints.positive)

    @pyro_method
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z @ self.weight.T + TRUTH.bias, self.scale).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))


def exact_module() -> ModelGuide:
    module = ExactModule()
    return module.model, module.guide


BROADCASTING: dict[str, Callable[[], ModelGuide]] = {
    "plate(len(x))": lambda: pair_of(TRUTH),
    "plate(N, subsample_size=len(x))": lambda: full_plate(1000),
    "draws rows": lambda: drawing_plate(23, 5),
    "draws rows of a longer data set": lambda: drawing_plate(1000, 7),
    "draws more rows than there are": lambda: drawing_plate(1000, 40),
    "draws 3 rows": lambda: drawing_plate(23, 3),
    "draws at most 8 rows": lambda: drawing_at_most(8),
    "draws at most 128 rows": lambda: drawing_at_most(128),
    "pixels in a plate": pixel_plate,
    "latent in a plate": latent_in_inner_plate,
    "several latents": several_latents,
    "scaled": lambda: scaled(0.01, 7.0),
    "deterministic and factor": with_deterministic_and_factor,
    "callable objects": lambda: (Plain("model"), Plain("guide")),
    "partial": lambda: (functools.partial(switched, which="model"), functools.partial(switched, which="guide")),
    "PyroModule": exact_module,
}


@pytest.mark.parametrize("form", BROADCASTING)
def test_every_form_of_pair_gives_exact_weights(form: str, caplog: pytest.LogCaptureFixture) -> None:
    model, guide = BROADCASTING[form]()
    weights = log_weights(model, guide, X, num_particles=4)
    assert weights.shape == (4, 23)
    assert (weights - EXACT).abs().max() < 1e-9
    evaluation = evaluate(model, guide, X, ks=(1, 6), batch_size=10, show_progress=False)
    assert (evaluation.per_datum["L_1"] - EXACT).abs().max() < 1e-9
    assert (evaluation.per_datum["L_6"] - EXACT).abs().max() < 1e-9
    assert ONE_LINE not in caplog.text
    terms = bounds.elbo(model, guide, X, num_particles=2)
    assert terms.elbo.shape == (23,)
    assert set(terms.methods.values()) == {"closed form"}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("form", ["plate(len(x))", "draws more rows than there are", "pixels in a plate"])
def test_few_data(form: str, size: int) -> None:
    model, guide = BROADCASTING[form]()
    assert (log_weights(model, guide, X[:size], num_particles=3) - EXACT[:size]).abs().max() < 1e-9
    assert (log_weights(model, guide, X[:size], num_particles=1) - EXACT[:size]).abs().max() < 1e-9


def test_rows_given_as_an_argument_travel_with_the_data() -> None:
    model, guide = rows_given()
    rows = torch.randperm(1000)[:23]
    assert (log_weights(model, guide, X, rows, num_particles=2) - EXACT).abs().max() < 1e-9
    evaluation = evaluate(model, guide, (X, rows), ks=(1, 2), batch_size=4, show_progress=False)
    assert (evaluation.per_datum["L_2"] - EXACT).abs().max() < 1e-9


def test_two_inner_plates() -> None:
    x = torch.randn(7, 2, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-3):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-3):
            mean = x.sum((-2, -1), keepdim=True) / (6 + 0.25)
            pyro.sample("z", dist.Normal(mean, (1 / (1 + 6 / 0.25)) ** 0.5))

    cov = torch.ones(6, 6) + 0.25 * torch.eye(6)
    exact = dist.MultivariateNormal(torch.zeros(6), cov).log_prob(x.flatten(1))
    record = particles(model, guide, x, num_particles=4)
    assert record.z["z"].shape == (4, 7)
    assert (record.log_weights - exact).abs().max() < 1e-9


# pairs that do not broadcast


def concatenating(plate: Callable[[Tensor], Any], rows: Callable[[Tensor, Any], Tensor]) -> ModelGuide:
    mix = torch.cat([torch.zeros(5, 5), TRUTH.weight], 1)  # (5, 8): the mean of x reads z alone

    def model(x: Tensor) -> None:
        with plate(x) as i:
            few = rows(x, i)
            z = pyro.sample("z", prior())
            mean = torch.cat([few, z], -1) @ mix.T + TRUTH.bias
            pyro.sample("x", dist.Normal(mean, TRUTH.scale).to_event(1), obs=few)

    def guide(x: Tensor) -> None:
        with plate(x) as i:
            pyro.sample("z", posterior(rows(x, i)))

    return model, guide


def viewing() -> ModelGuide:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z.reshape(len(x), -1)), obs=x)

    return model, pair_of(TRUTH)[1]


def flattening() -> ModelGuide:
    """Return a pair whose codes are flattened to ``(-1, D)`` and cut to the data: silently the first particle's."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z.reshape(-1, 3)[: len(x)]), obs=x)

    return model, pair_of(TRUTH)[1]


NOT_BROADCASTING: dict[str, Callable[[], ModelGuide]] = {
    "cat": lambda: concatenating(lambda x: pyro.plate("data", len(x)), lambda x, i: x),
    "cat, full plate": lambda: concatenating(lambda x: pyro.plate("data", 1000, subsample_size=len(x)), lambda x, i: x),
    "cat, plate as long as the data": lambda: concatenating(
        lambda x: pyro.plate("data", 23, subsample_size=len(x)), lambda x, i: x
    ),
    "cat, draws rows": lambda: concatenating(lambda x: pyro.plate("data", len(x), subsample_size=4), lambda x, i: x[i]),
    "view": viewing,
    "silent": flattening,
    "inner plate to the left": pixel_plate_to_the_left,
}


@pytest.mark.parametrize("form", NOT_BROADCASTING)
def test_a_pair_that_does_not_broadcast_is_right_and_one_line_says_so(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, guide = NOT_BROADCASTING[form]()
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        weights = log_weights(model, guide, X, num_particles=5)
    if form != "inner plate to the left":
        assert [record.message[: len(ONE_LINE)] for record in caplog.records] == [ONE_LINE]
    assert (weights - EXACT).abs().max() < 1e-9
    evaluation = evaluate(model, guide, X, ks=(1, 5, 40), batch_size=12, chunk_size=100, show_progress=False)
    assert (evaluation.per_datum["L_40"] - EXACT).abs().max() < 1e-9
    assert (evaluation.per_datum["L_1"] - EXACT).abs().max() < 1e-9


def test_particles_of_a_pair_that_does_not_broadcast_belong_to_their_data() -> None:
    record = particles(*viewing(), X, num_particles=2000)
    exact = TRUTH.posterior(X)
    assert record.z["z"].shape == (2000, 23, 3)
    error = (record.z["z"].mean(0) - exact.mean) / (exact.variance / 2000).sqrt()
    assert error.abs().max() < 5
    again = dist.Normal(exact.mean, exact.variance.sqrt()).to_event(1).log_prob(record.z["z"])
    assert (record.log_guide - again).abs().max() < 1e-12


def test_later_closed_forms_without_broadcasting() -> None:
    pair = TwoLayers(bottom_up=False)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(pair.to_z1(z2.reshape(len(x), -1)), 0.8).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=pair.to_x(z1)).to_event(1), obs=x)

    x = torch.bernoulli(torch.full((6, 4), 0.5))
    broadcasting = evaluate(pair.model, pair.guide, x, ks=(1, 4000), show_progress=False)
    repeated = evaluate(model, pair.guide, x, ks=(1, 4000), show_progress=False)
    assert repeated.kl_methods == {"z2": "closed form", "z1": "closed form"}
    for a, b in zip(repeated.estimates, broadcasting.estimates, strict=True):
        assert abs(a.value - b.value) < 4 * math.hypot(a.se_monte_carlo, b.se_monte_carlo)


# masks


def masked(mask_of: Callable[[Tensor], Tensor]) -> ModelGuide:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            with pyro.plate("pixels", 5, dim=-1), poutine.mask(mask=mask_of(x)):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        seen = mask_of(x).double()  # (B, 5) or (B, 1)
        count = seen.expand(-1, 5).sum(-1, keepdim=True)
        precision = 1 + count / 0.25
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal((seen * x).sum(-1, keepdim=True) / 0.25 / precision, precision**-0.5))

    return model, guide


@pytest.mark.parametrize("inner", [True, False])
def test_masks_leave_out_what_they_hide(inner: bool) -> None:  # noqa: FBT001
    def mask_of(x: Tensor) -> Tensor:
        return x > 0 if inner else x[:, :1] > 0

    model, guide = masked(mask_of)
    seen = mask_of(X).expand_as(X)
    for b, weights in enumerate(log_weights(model, guide, X, num_particles=3).T):
        some = X[b, seen[b]]
        cov = torch.ones(len(some), len(some)) + 0.25 * torch.eye(len(some))
        exact = dist.MultivariateNormal(torch.zeros(len(some)), cov).log_prob(some) if len(some) else torch.zeros(())
        assert (weights - exact).abs().max() < 1e-9


@pytest.mark.parametrize("by_distribution", [True, False])
def test_a_datum_that_is_masked_everywhere_weighs_nothing(by_distribution: bool) -> None:  # noqa: FBT001
    kept = torch.arange(23) % 3 > 0

    def maybe(fn: dist.TorchDistribution, m: Tensor) -> dist.TorchDistribution:
        return fn.mask(m) if by_distribution else fn

    def model(x: Tensor, m: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=True if by_distribution else m):
            z = pyro.sample("z", maybe(prior(), m))
            pyro.sample("x", maybe(likelihood(z), m), obs=x)

    def guide(x: Tensor, m: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=True if by_distribution else m):
            pyro.sample("z", maybe(posterior(x), m))

    weights = log_weights(model, guide, X, kept, num_particles=3)
    assert (weights - EXACT * kept).abs().max() < 1e-9
    terms = bounds.elbo(model, guide, X, kept, num_particles=2)
    assert terms.methods == {"z": "closed form"}
    exact = torch.distributions.kl_divergence(posterior(X), prior())
    assert (terms.kl - exact * kept).abs().max() < 1e-9


def test_latent_masks_must_have_the_same_values() -> None:
    a = torch.arange(23) % 3 > 0

    def model(x: Tensor, a: Tensor, b: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", prior().mask(a))).mask(a), obs=x)

    def guide(x: Tensor, a: Tensor, b: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x).mask(b))

    terms = bounds.elbo(model, guide, X, a, a.clone(), num_particles=20_000)
    assert terms.methods == {"z": "model and guide are not masked by the same tensor"}
    exact = torch.distributions.kl_divergence(posterior(X), prior()) * a
    assert (terms.kl - exact).abs().max() < 5 * 3 / math.sqrt(20_000)
    late = a.clone()
    late[-1] = ~late[-1]  # the first runs of a few rows do not show it
    with pytest.raises(ValueError, match="'z' is masked in only one of model and guide, for 3 of 69 elements"):
        log_weights(model, guide, X, a, late, num_particles=2)


# covariates


def conditional() -> tuple[Callable[..., None], Callable[..., None]]:
    def model(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            mean = z @ TRUTH.weight.T + TRUTH.bias + shift
            pyro.sample("x", dist.Normal(mean, TRUTH.scale).to_event(1), obs=x)

    def guide(x: Tensor, shift: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x - shift))

    return model, guide


def test_a_masked_latent_must_not_be_used() -> None:
    kept = torch.arange(23) % 2 == 0

    def model(x: Tensor, kept: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior().mask(kept))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x: Tensor, kept: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x).mask(kept))

    with pytest.raises(ValueError, match="'z' are masked, but the model depends on them for .* mask what depends"):
        log_weights(model, guide, X, kept, num_particles=2)


def test_covariates_travel_with_the_data() -> None:
    shift = torch.randn(23, 5)
    exact = TRUTH.log_prob(X - shift)
    assert (log_weights(*conditional(), X, shift, num_particles=3) - exact).abs().max() < 1e-9
    evaluation = evaluate(*conditional(), (X, shift), ks=(1, 3), batch_size=4, show_progress=False)
    assert (evaluation.per_datum["L_3"] - exact).abs().max() < 1e-9
    z = torch.randn(2, 23, 3)
    model, _ = conditional()
    assert torch.allclose(log_joint(model, X, shift, z=z), log_joint(pair_of(TRUTH)[0], X - shift, z=z))


# the modules of a pair


class Noisy(nn.Module):
    """A network whose output and buffers differ between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def reading(encode: Callable[[Tensor], Tensor]) -> ModelGuide:
    """Return the exact model, and a guide that calls a function of x."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 1.0).to_event(1))

    return pair_of(TRUTH)[0], guide


def as_closure(net: nn.Module) -> ModelGuide:
    def encode(x: Tensor) -> Tensor:
        return (lambda y: net(y))(x)

    return reading(encode)


def as_default(net: nn.Module) -> ModelGuide:
    def encode(x: Tensor, *, net: nn.Module = net) -> Tensor:
        return net(x)

    return reading(encode)


def as_attribute(net: nn.Module) -> ModelGuide:
    parts = SimpleNamespace(encoders=[net])
    return reading(lambda x: parts.encoders[0](x))


class Guide:
    """A callable object with a network."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> None:
        reading(self.net)[1](x)

    def guide(self, x: Tensor) -> None:
        self(x)


def as_callable(net: nn.Module) -> ModelGuide:
    return pair_of(TRUTH)[0], Guide(net)


def as_method_of_an_object(net: nn.Module) -> ModelGuide:
    return pair_of(TRUTH)[0], Guide(net).guide


def as_partial_of_scaled(net: nn.Module) -> ModelGuide:
    model, guide = as_closure(net)
    return functools.partial(poutine.scale(model, scale=2.0)), functools.partial(poutine.scale(guide, scale=2.0))


def as_hidden(net: nn.Module) -> ModelGuide:
    """Return a model and guide whose module lies deeper than the search goes."""
    holder = SimpleNamespace(parts=SimpleNamespace(nets={"encoders": [[SimpleNamespace(encode=lambda x: net(x))]]}))
    return as_closure(lambda x: holder.parts.nets["encoders"][0][0].encode(x))  # type: ignore[arg-type]


WAYS = [as_closure, as_default, as_attribute, as_callable, as_method_of_an_object, as_partial_of_scaled, as_hidden]


@pytest.mark.parametrize("way", WAYS)
def test_modules_are_found_evaluated_and_restored(way: Callable[[nn.Module], ModelGuide]) -> None:
    net = Noisy()
    net.layers[0].eval()
    modes = [part.training for part in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model, guide = way(net)
    assert find_modules(model, guide) == (() if way is as_hidden else (net,))
    with module_mode([net], training=False):
        assert inspect_programs(model, guide, (X,)).modules == (net,)
    first = log_weights(model, guide, X, num_particles=1)
    torch.manual_seed(0)
    a = evaluate(model, guide, X, ks=(1, 4), show_progress=False)
    b = evaluate(model, guide, X, ks=(1, 4), show_progress=False)
    assert a.elbo.value == b.elbo.value
    assert first.shape == (1, 23)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        mean = net.eval()(X)
    expected = 0.5 * (mean**2).sum(-1)  # KL(N(mean, 1) || N(0, 1))
    assert torch.allclose(a.per_datum["KL"], expected, atol=1e-12)


def test_a_global_that_is_only_the_name_of_an_attribute_is_not_a_module_of_the_pair() -> None:
    net, other = nn.Linear(5, 3), nn.Linear(1, 1)
    namespace: dict[str, Any] = {"pyro": pyro, "dist": dist, "net": other, "holder": SimpleNamespace(net=net)}
    exec(
        "def guide(x):\n"
        "    with pyro.plate('data', len(x)):\n"
        "        pyro.sample('z', dist.Normal([holder.net(row) for row in [x]][0], 1.).to_event(1))\n",
        namespace,
    )
    assert find_modules(namespace["guide"]) == (net,)


@pytest.mark.slow
def test_a_compiled_network_is_evaluated_where_nobody_looks() -> None:
    with validation(enabled=True):  # which the first torch.compile of a process switches off
        net = torch.compile(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)), backend="eager", fullgraph=True)
        a, b = (evaluate(*way(net), X, ks=(1,), show_progress=False).per_datum["KL"] for way in (as_hidden, as_closure))
    assert torch.equal(a, b)
    assert all(part.training for part in net.modules())


def test_modules_that_a_program_makes_anew_are_those_of_the_store() -> None:
    def guide(x: Tensor) -> None:
        net = pyro.module("net", nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    pair = inspect_programs(pair_of(TRUTH)[0], guide, (X,))
    assert pair.modules == ()
    assert pair.params == ("net$$$0.weight", "net$$$0.bias")


def test_networks_of_the_store_and_layers_without_tensors_are_evaluated_but_keep_their_names() -> None:
    """What a run folder calls a parameter does not change with where its module is found."""
    net, noise = nn.Linear(5, 3), nn.Dropout(0.5)
    hidden = [[[[[[net, noise]]]]]]

    def guide(x: Tensor) -> None:
        encode, drop = hidden[0][0][0][0][0]
        pyro.module("net", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(drop(encode(x)), 1.0).to_event(1))

    pair = inspect_programs(pair_of(TRUTH)[0], guide, (X,))
    assert pair.modules == ()
    assert set(pair.all_modules) == {net, noise}
    assert noise.training
    elbo = evaluate(pair.model, pair.guide, X, ks=(1,), show_progress=False).per_datum["KL"]
    assert torch.allclose(elbo, 0.5 * (net(X) ** 2).sum(-1))


# refusals


def programs(body: Callable[[Tensor], object], *, dim: int = -1) -> Callable[[Tensor], None]:
    """Return a program that runs a function of x in a plate of its length."""

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=dim):
            body(x)

    return program


def observe(x: Tensor, z: Tensor, name: str = "x") -> None:
    pyro.sample(name, likelihood(z), obs=x)


def drawn_from(fn: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    return programs(lambda x: pyro.sample("z", fn(x)))


def from_prior(fn: Any) -> Callable[[Tensor], None]:
    return programs(lambda x: observe(x, pyro.sample("z", fn)))


def unit(name: str) -> Tensor:
    return pyro.sample(name, dist.Normal(torch.tensor(0.0), 1.0))


def global_latent(program: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def run(x: Tensor) -> None:
        unit("w")
        program(x)

    return run


def no_plate_model(x: Tensor) -> None:
    z = pyro.sample("z", prior().expand([len(x)]).to_event(1))
    pyro.sample("x", likelihood(z).to_event(1), obs=x)


def some_pixels(x: Tensor) -> None:
    mean = pyro.sample("z", prior()) @ TRUTH.weight.T + TRUTH.bias
    with pyro.plate("pixels", 5, subsample_size=2, dim=-1) as i:
        pyro.sample("x", dist.Normal(mean.squeeze(-2)[..., i], TRUTH.scale), obs=x[..., i])


def one_after_the_other(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        observe(x[i], pyro.sample(f"z_{i}", prior()), f"x_{i}")


def guide_one_after_the_other(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", posterior(x[i]))


def sequential_inside(x: Tensor) -> None:
    mean = pyro.sample("z", prior()) @ TRUTH.weight.T + TRUTH.bias
    for i in pyro.plate("pixels", 5):
        pyro.sample(f"x_{i}", dist.Normal(mean[..., i], TRUTH.scale), obs=x[..., i])


def observed_outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior())
    pyro.sample("x", likelihood(z).to_event(1), obs=x)


def refused_pairs() -> dict[str, tuple[Any, str]]:
    model, guide = pair_of(TRUTH)
    half, positive = torch.full((3,), 0.5), dist.Gamma(torch.ones(3), 1.0).to_event(1)
    bits = dist.Bernoulli(half).to_event(1)
    soft = dist.RelaxedBernoulli(torch.tensor(0.5), half).to_event(1)
    rounded = dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), half).to_event(1)
    unchecked = dist.Exponential(torch.ones(3), validate_args=False).to_event(1)
    points = dist.MaskedMixture(torch.tensor(data=True), dist.Delta(half), dist.Delta(half)).to_event(1)
    moved_bits = dist.TransformedDistribution(
        dist.Bernoulli(half), [dist.transforms.AffineTransform(0.0, 0.1)]
    ).to_event(1)
    masked_prior = from_prior(prior().mask(torch.tensor(data=False)))
    penalized = programs(lambda x: pyro.factor("penalty", -pyro.sample("z", posterior(x)).sum(-1), has_rsample=True))
    only_in_guide = programs(lambda x: (pyro.sample("z", posterior(x)), unit("u")))
    only_in_model = programs(lambda x: (unit("u"), observe(x, pyro.sample("z", prior()))))
    unobserved = programs(lambda x: pyro.sample("x", likelihood(pyro.sample("z", prior()))))
    without_plate = (no_plate_model, lambda x: pyro.sample("z", posterior(x).to_event(1)))
    one_by_one = (one_after_the_other, guide_one_after_the_other)
    points_of_x = drawn_from(lambda x: dist.Delta(x[:, :3], event_dim=1))
    point_prior = from_prior(dist.Delta(half, event_dim=1))
    sequential = "'pixels' inside.*'data' is subsampled or sequential"
    return {
        "point in the guide": ((model, points_of_x), r"'z' is a point \(Del"),
        "point in the model": ((point_prior, guide), "'z' is a point .* in the model"),
        "relaxed for discrete": ((from_prior(bits), drawn_from(lambda x: soft)), "'z' is discrete in the model"),
        "rounded in the guide": ((from_prior(soft), drawn_from(lambda x: rounded)), "rounds 'z'.*the same class"),
        "rounded in the model": ((from_prior(rounded), drawn_from(lambda x: soft)), "rounds 'z'.*the same class"),
        "beyond the prior": ((from_prior(unchecked), guide), "draws 'z' from .*Real.*same support"),
        "simplex": ((model, drawn_from(lambda x: dist.Dirichlet(2 * half))), "draws 'z' from .*implex"),
        "reals for a simplex": ((from_prior(dist.Dirichlet(half)), guide), "draws 'z' from .*Real"),
        "mixture of points": ((model, drawn_from(lambda x: points)), "'z' is a point"),
        "discrete, transformed": ((model, drawn_from(lambda x: moved_bits)), "'z' is discrete in the guide"),
        "masked prior": ((masked_prior, guide), "'z' is masked in only one of model and guide"),
        "positive for real": ((from_prior(positive), guide), "draws 'z' from .*Real.*GreaterThan"),
        "discrete": ((from_prior(bits), drawn_from(lambda x: bits)), "'z' is discrete in the guide.*sum it out.*relax"),
        "global latent": (tuple(map(global_latent, (model, guide))), "'w' lies outside the data plate.*move it into"),
        "no plate": (without_plate, r"no plate of the length.*with pyro.plate\('data', len\(x\)\)"),
        "guide has more": ((model, only_in_guide), "samples 'u', which is not a latent variable of the model"),
        "model has more": ((only_in_model, guide), "variable 'u' is missing in the guide.*sample it in the guide"),
        "nothing observed": ((unobserved, guide), "observes nothing.*obs=x"),
        "subsampled inner plate": ((programs(some_pixels, dim=-2), pixel_plate()[1]), sequential),
        "sequential plate": (one_by_one, "no plate of the length of the data"),
        "sequential inner plate": ((programs(sequential_inside), guide), sequential),
        "fixed plate": (in_plate(lambda x: pyro.plate("data", 23)), r"'data' has 23 rows.*write pyro.plate\('data', l"),
        "factor in the guide": ((model, penalized), "guide's site 'penalty' is observed"),
        "empty guide": ((model, lambda x: None), "the guide samples nothing"),
        "observed outside": ((observed_outside, guide), "'x' lies outside the data plate"),
    }


@pytest.mark.parametrize("case", refused_pairs())
def test_programs_that_break_the_contract_are_refused(case: str) -> None:
    (model, guide), text = refused_pairs()[case]
    with pytest.raises(ValueError, match=f"(?s){text}"):
        evaluate(model, guide, X, ks=(1,), show_progress=False)
    with pytest.raises(ValueError, match=f"(?s){text}"):
        fit(model, guide, X, modules=[nn.Linear(1, 1)], training=Training(epochs=1), show_progress=False)


def test_an_error_of_the_users_own_is_passed_on() -> None:
    def broken(x: Tensor) -> None:
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        log_weights(broken, pair_of(TRUTH)[1], X, num_particles=2)


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "3", None])
def test_numbers_of_particles_are_positive_and_whole(k: Any) -> None:
    for function in (particles, log_weights, bounds.elbo):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            function(*pair_of(TRUTH), X, num_particles=k)
    with pytest.raises(ValueError, match="whole numbers of at least 1"):
        evaluate(*pair_of(TRUTH), X, ks=(k,), show_progress=False)


# evaluation: chunks, batches, layouts


def wide_pixel_guide(x: Tensor) -> None:
    exact = TRUTH.posterior(x.unsqueeze(-2))
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(exact.mean + 0.1, 1.3 * exact.variance.sqrt()).to_event(1))


@pytest.mark.parametrize("form", ["plain", "pixels", "view", "two layers"])
def test_bounds_do_not_depend_on_the_chunk(form: str) -> None:
    layers = TwoLayers(bottom_up=False)
    model, guide = {
        "plain": lambda: pair_of(TRUTH, offset=0.2, widen=1.3),
        "pixels": lambda: (pixel_plate()[0], wide_pixel_guide),
        "view": lambda: (viewing()[0], pair_of(TRUTH, offset=0.2)[1]),
        "two layers": lambda: (layers.model, layers.guide),
    }[form]()
    x = torch.bernoulli(torch.full((23, 4), 0.5)) if form == "two layers" else X
    found = [evaluate(model, guide, x, ks=(1, 10, 50), chunk_size=size, show_progress=False) for size in (7, 64, 5000)]
    for other in found[1:]:
        for name, value in other.per_datum.items():
            assert torch.allclose(value, found[0].per_datum[name], rtol=1e-11, atol=0)


def test_batches_change_no_bound_beyond_monte_carlo_error() -> None:
    model, guide = pair_of(TRUTH, offset=0.2, widen=1.3)
    a, b = (evaluate(model, guide, X, ks=(1, 20, 2000), batch_size=size, show_progress=False) for size in (23, 6))
    for left, right in zip(a.estimates, b.estimates, strict=True):
        assert abs(left.value - right.value) <= 4 * math.hypot(left.se_monte_carlo, right.se_monte_carlo)
    assert a.elbo.value != b.elbo.value


def test_layouts_of_z() -> None:
    assert particles(*pair_of(TRUTH), X, num_particles=4).z["z"].shape == (4, 23, 3)
    assert particles(*pixel_plate(), X, num_particles=4).z["z"].shape == (4, 23, 3)
    assert particles(*drawing_plate(23, 5), X, num_particles=4).z["z"].shape == (4, 23, 3)
    record = particles(*several_latents(), X, num_particles=4)
    assert {name: z.shape for name, z in record.z.items()} == {"first": (4, 23), "rest": (4, 23, 2)}
    inner = particles(*latent_in_inner_plate(), X, num_particles=4)
    assert inner.z["z"].shape == (4, 23, 3)
    expected = dist.Normal(0.0, 1.0).log_prob(inner.z["z"]).sum(-1)
    assert torch.allclose(inner.log_prior, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "form", ["plate(len(x))", "pixels in a plate", "latent in a plate", "several latents", "scaled"]
)
def test_log_joint_is_prior_plus_likelihood(form: str) -> None:
    model, guide = BROADCASTING[form]()
    record = particles(model, guide, X, num_particles=4)
    expected = record.log_prior + record.log_likelihood
    z = record.z if len(record.z) > 1 else record.z["z"]
    assert torch.allclose(log_joint(model, X, z=z), expected, rtol=1e-12)
    first = {name: value[0] for name, value in record.z.items()}
    assert torch.allclose(log_joint(model, X, z=first), expected[0], rtol=1e-12)


@pytest.mark.parametrize("form", ["plate(len(x))", "pixels in a plate", "latent in a plate", "view"])
@pytest.mark.parametrize("lead", [(), (4,)])
def test_gradient_of_log_joint(form: str, lead: tuple[int, ...]) -> None:
    model, _ = (BROADCASTING | NOT_BROADCASTING)[form]()
    z = torch.randn(*lead, 23, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_joint(model, X, z=z).sum(), z)
    residual = (X - z @ TRUTH.weight.T - TRUTH.bias) / TRUTH.scale**2
    assert torch.allclose(gradient, -z + residual @ TRUTH.weight, rtol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (22, 3), (4, 22, 3), (1, 4, 23, 3)])
def test_z_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z is \(B, ...\) or \(K, B, ...\) for B = 23"):
        log_joint(pair_of(TRUTH)[0], X, z=torch.zeros(shape))


def test_z_of_missing_or_unlike_sites_is_refused() -> None:
    model, _ = several_latents()
    with pytest.raises(ValueError, match=r"each of the latent sites \['first', 'rest'\]"):
        log_joint(model, X, z=torch.zeros(23, 3))
    with pytest.raises(ValueError, match=r"each of the latent sites"):
        log_joint(model, X, z={"first": torch.zeros(23)})
    with pytest.raises(ValueError, match="alike for all latent sites"):
        log_joint(model, X, z={"first": torch.zeros(4, 23), "rest": torch.zeros(23, 2)})


def vae(seed: int = 0, *, x_shape: tuple[int, ...] = (5,)) -> VAE:
    torch.manual_seed(seed)
    likelihood, posterior = likelihoods.Bernoulli(x_shape), posteriors.DiagonalNormal(2)
    return VAE(
        prior=priors.StandardNormal(2),
        decoder=networks.MLPDecoder(2, likelihood.param_shape, hidden=(6,)),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(x_shape, posterior.param_shape, hidden=(6,)),
        posterior=posterior,
    ).double()


@pytest.mark.parametrize("where", [0, -1])
def test_data_outside_the_support_are_refused_wherever_they_lie(where: int) -> None:
    v = vae()
    x = torch.bernoulli(torch.full((600, 5), 0.5))
    x[where] = 0.5
    with pytest.raises(ValueError, match="binarize"):
        evaluate(v.model, v.guide, x, ks=(1,), show_progress=False)
    with pytest.raises(ValueError, match="binarize"):
        log_weights(v.model, v.guide, x, num_particles=2)
    with pytest.raises(ValueError, match="binarize"):
        log_joint(v.model, x, z=torch.zeros(600, 2))


# nothing is left behind


def switches() -> tuple[bool, ...]:
    return (
        torch.distributions.Distribution._validate_args,
        pyro.infer.util.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
        dist.is_validation_enabled(),
    )


def test_evaluation_leaves_everything_as_it_was() -> None:
    v = vae()
    v.decoder.train()
    v.encoder.eval()
    x = torch.bernoulli(torch.full((30, 5), 0.5))
    pyro.param("mine", torch.tensor(2.0), constraint=constraints.positive)
    pyro.module("vae", vae(1))  # another under the same name
    store = pyro.get_param_store().get_state()
    kept = {name: value.clone() for name, value in store["params"].items()}
    weights = {name: value.clone() for name, value in v.state_dict().items()}
    stream = torch.get_rng_state()
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        before = switches()
        evaluate(v.model, v.guide, x, ks=(1, 2), show_progress=False)
        log_joint(v.model, x, z=torch.zeros(30, 2))
        assert torch.equal(torch.get_rng_state(), stream)
        particles(v.model, v.guide, x, num_particles=2)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert switches() == before
    assert (v.decoder.training, v.encoder.training) == (True, False)
    assert all(torch.equal(value, weights[name]) for name, value in v.state_dict().items())
    assert all(parameter.grad is None for parameter in v.parameters())
    after = pyro.get_param_store().get_state()
    assert list(after["params"]) == list(kept)
    assert all(after["params"][name] is store["params"][name] for name in kept)
    assert all(torch.equal(after["params"][name], kept[name]) for name in kept)
    assert after["constraints"] == store["constraints"]


@pytest.mark.parametrize(("of_torch", "of_pyro"), [(True, False), (False, True)])
def test_switches_are_restored_however_they_were_set(of_torch: bool, of_pyro: bool) -> None:  # noqa: FBT001
    model, guide = pair_of(TRUTH)

    def failing(x: Tensor) -> None:
        model(x)
        if len(x) > 3:
            raise RuntimeError("late")

    before = switches()
    try:
        pyro.enable_validation(of_pyro)
        torch.distributions.Distribution.set_default_validate_args(of_torch)
        mine = switches()
        evaluate(model, guide, X, ks=(1,), show_progress=False)
        assert switches() == mine
        with pytest.raises(RuntimeError, match="late"):
            evaluate(failing, guide, X, ks=(1,), show_progress=False)
        with pytest.raises(RuntimeError, match="late"):
            fit(failing, guide, X, modules=[nn.Linear(1, 1)], training=Training(epochs=1), show_progress=False)
        fit(model, guide, X, modules=[nn.Linear(1, 1)], training=Training(epochs=0), show_progress=False)
        assert switches() == mine
        assert mine[0] == of_torch
    finally:
        pyro.enable_validation(before[1])
        torch.distributions.Distribution.set_default_validate_args(before[0])


@pytest.mark.parametrize("wrapped", [False, True])
def test_two_vaes_of_one_name_keep_their_own_weights(wrapped: bool) -> None:  # noqa: FBT001
    def pair(v: VAE) -> ModelGuide:
        if not wrapped:
            return v.model, v.guide
        return (lambda x: v.model(x)), (lambda x: v.guide(x))

    x = torch.bernoulli(torch.full((30, 5), 0.5))
    first, second = vae(1), vae(2)
    alone = [evaluate(*pair(v), x, ks=(1, 4), show_progress=False) for v in (first, second)]
    assert alone[0].elbo.value != alone[1].elbo.value
    svi = SVI(first.model, first.guide, pyro.optim.Adam({"lr": 0.0}), ELBO())
    svi.step(x)  # the first one's tensors are now in the caller's store
    for v, expected in zip((first, second), alone, strict=True):
        again = evaluate(*pair(v), x, ks=(1, 4), show_progress=False)
        for name, values in again.per_datum.items():
            torch.testing.assert_close(values, expected.per_datum[name], rtol=0, atol=0, equal_nan=True)


def test_a_second_pyro_module_keeps_its_own_tensors() -> None:
    first, second = ExactModule(), ExactModule()
    with torch.no_grad():
        first.scale_unconstrained += 3.0
    first.model(X)  # registers "weight" and "scale" in the caller's store
    mine = second.scale_unconstrained
    assert (log_weights(second.model, second.guide, X, num_particles=2) - EXACT).abs().max() < 1e-9
    assert second.scale_unconstrained is mine
    assert pyro.get_param_store().get_state()["params"]["scale"] is first.scale_unconstrained


def test_stored_values_are_those_evaluated() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(9.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            mean = pyro.sample("z", prior()) @ TRUTH.weight.T + TRUTH.bias
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    _, guide = pair_of(TRUTH)
    pyro.param("scale", torch.tensor(TRUTH.scale), constraint=constraints.positive)
    assert (log_weights(model, guide, X, num_particles=2) - EXACT).abs().max() < 1e-9
    pyro.clear_param_store()
    assert (log_weights(model, guide, X, num_particles=2) - EXACT).abs().min() > 1.0
    assert "scale" not in pyro.get_param_store()


def test_structure_that_is_read_off() -> None:
    model, guide = pixel_plate()
    pair = inspect_programs(model, guide, (X,))
    assert (pair.plate, pair.dim, pair.nesting, pair.num_elements) == ("data", -2, 2, 5)
    assert pair.draws_rows is False
    assert pair.broadcasts is True
    drawn = inspect_programs(*drawing_plate(1000, 7), (X,))
    assert (drawn.draws_rows, drawn.num_rows, drawn.plate_size) == (True, 7, 1000)


def test_large_parameters_count_where_rows_are_scored_at_once() -> None:
    vae = make_vae(likelihood=likelihoods.Categorical((5,), 256))
    pair = inspect_programs(vae.model, vae.guide, (torch.zeros(3, 5),))
    assert pair.num_elements == 5 * 256


def test_the_largest_output_of_the_models_modules_counts_too() -> None:
    """Not that of the guide's, nor one of the same size for every number of data."""
    likelihood, posterior = likelihoods.Bernoulli((8, 8)), posteriors.DiagonalNormal(3)
    parts = {
        "likelihood": likelihood,
        "posterior": posterior,
        "encoder": networks.MLPEncoder((8, 8), posterior.param_shape, hidden=(500,)),
    }
    for decoder, expected in (
        (networks.MLPDecoder(3, likelihood.param_shape, hidden=(50,)), 64),
        (networks.MLPDecoder(3, likelihood.param_shape, hidden=(100,)), 100),
        (networks.ConvDecoder(3, likelihood.param_shape, channels=(10, 20)), 10 * 64),
    ):
        vae = VAE(prior=priors.StandardNormal(3), decoder=decoder, **parts)
        pair = inspect_programs(vae.model, vae.guide, (torch.rand(5, 8, 8).round(),))
        assert (pair.num_elements, pair.num_units) == (64, expected)
        assert not torch.nn.modules.module._global_forward_hooks
    mixture = nn.Linear(2, 400)

    def model(x: Tensor) -> None:
        mixture(torch.ones(30, 2))
        vae.model(x)

    pair = inspect_programs(model, vae.guide, (torch.rand(5, 8, 8).round(),), modules=(mixture,))
    assert pair.num_units == 10 * 64
    condition = networks.ConvEncoder((16, 16), (3, 2), channels=(32, 4))

    def conditional(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, log_scale = condition(y).unbind(-1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", likelihood(vae.decoder(z)), obs=x)

    args = torch.rand(5, 8, 8).round(), torch.rand(5, 16, 16)
    assert inspect_programs(conditional, lambda x, y: vae.guide(x), args, modules=(condition,)).num_units == 10 * 64
    assert not torch.nn.modules.module._global_forward_hooks


PRECISIONS = [
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'ieee'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
]
PRECISION_SCRIPT = """
import os, sys
import torch
from pyrovae.runtime.context import full_precision

def told(read):
    try:
        return read()
    except RuntimeError:
        return "mixed"

def switches():
    b = torch.backends
    parts = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)
    older = (torch.get_float32_matmul_precision, lambda: b.cuda.matmul.allow_tf32, lambda: b.cudnn.allow_tf32)
    return [part.fp32_precision for part in parts], [told(read) for read in older], b.fp32_precision

def check(choice):
    exec(choice)
    before = switches()
    for error in (None, KeyError):
        try:
            with full_precision(), full_precision():
                assert set(switches()[0]) == {"ieee"}, (choice, switches())
                if error:
                    raise error
        except KeyError:
            pass
        assert switches() == before, (choice, before, switches())

for choice in sys.argv[1:]:
    child = os.fork()
    if not child:
        check(choice)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, choice
print(len(sys.argv[1:]))
"""


def test_products_and_convolutions_are_exact_whatever_was_chosen() -> None:
    """In processes of their own: torch's switches do not forget that the newer kind was used."""
    command = [sys.executable, "-c", PRECISION_SCRIPT, *PRECISIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(PRECISIONS)}\n"), done.stderr


def rounded_pair(kind: Any, weight: Tensor) -> ModelGuide:
    """Return a model of bits and its guide, whose z are drawn from a straight-through relaxation."""
    event_dims = 0 if "OneHot" in kind.__name__ else 1

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", kind(torch.tensor(0.5), logits=torch.zeros(3)).to_event(event_dims))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", kind(torch.tensor(0.5), logits=0.3 * x @ weight.T).to_event(event_dims))

    return model, guide


@pytest.mark.parametrize("kind", [dist.RelaxedBernoulliStraightThrough, dist.RelaxedOneHotCategoricalStraightThrough])
def test_straight_through_draws_keep_their_density(kind: Any) -> None:
    model, guide = rounded_pair(kind, torch.randn(3, 6))
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    found = evaluate(model, guide, x, ks=(1, 500), show_progress=False)
    weights = []
    for _ in range(300):
        drawn = poutine.trace(guide).get_trace(x)
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(x)
        drawn.compute_log_prob()
        scored.compute_log_prob()
        terms = (scored.nodes["x"], scored.nodes["z"])
        weights.append(sum(site["log_prob"] for site in terms) - drawn.nodes["z"]["log_prob"])
    truth = torch.stack(weights).mean(1)
    assert abs(found.elbo.value - truth.mean()) < 4 * math.hypot(
        found.elbo.se_monte_carlo, truth.std() / math.sqrt(300)
    )
    assert found.iwae[-1].value < 0
    record = particles(model, guide, x, num_particles=5)
    assert torch.allclose(
        log_joint(model, x, z=record.z["z"]), record.log_prior + record.log_likelihood
    )  # z is the value before it was rounded


# values outside the support


def unchecked_pair(output: nn.Module | None = None) -> ModelGuide:
    """Return a model of bits that is told not to check them, and its guide."""
    output = output or nn.Identity()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            logits = output(z @ TRUTH.weight.T)
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


@pytest.mark.parametrize("where", [0, 22])
def test_support_is_checked_whatever_a_distribution_is_told(where: int) -> None:
    model, guide = unchecked_pair(nn.Linear(5, 5).double())
    x = torch.bernoulli(torch.full((23, 5), 0.5))
    assert evaluate(model, guide, x, ks=(1,), show_progress=False).bits_per_dimension is not None
    x[where, 2] = 0.25
    many = torch.bernoulli(torch.full((600, 5), 0.5))  # in minibatches of one, far past the steps that are traced
    many[-1, 2] = 0.25
    training = Training(epochs=2, batch_size=1, engine="captured", device="cpu")
    for attempt in (
        lambda: evaluate(model, guide, x, ks=(1,), show_progress=False),
        lambda: log_weights(model, guide, x, num_particles=2),
        lambda: fit(model, guide, many, training=training, show_progress=False),
        lambda: capture(model, guide, x, engine="eager")(x),
        lambda: capture(model, guide, data.Split(many, name="many")),
    ):
        with pytest.raises(ValueError, match=r"site 'x': 1 of \d+ lie outside .*first is 0.25.*unnormalized=True"):
            attempt()


def test_unnormalized_numbers_are_named_in_every_table() -> None:
    model, guide = unchecked_pair()
    checks = Checks(num_annealed=2, num_simulated=0, num_refined=0, num_encoded=2)
    x = torch.rand(4, 5)
    found = evaluate(model, guide, x, ks=(1, 2), checks=checks, unnormalized=True, show_progress=False)
    assert found.bits_per_dimension is None
    assert all(any("NOT a log-probability" in note for note in table.notes) for table in found.tables())
    assert "a log-probability," not in str(found)
    other = evaluate(model, guide, x.round(), ks=(1, 2), show_progress=False)
    with pytest.raises(ValueError, match="normalization"):
        compare({"grey": found, "binary": dataclasses.replace(other, data_hash=found.data_hash)})
    with pytest.raises(RuntimeError, match="does not require grad"):  # it is scored, and has no parameters
        capture(model, guide, x, modules=[nn.Linear(1, 1)], engine="eager", unnormalized=True)(x)


def test_a_factor_makes_a_model_unnormalized() -> None:
    model, guide = pair_of(TRUTH)

    def with_factor(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z), obs=x)
            pyro.factor("bonus", torch.ones(len(x)))

    found = evaluate(with_factor, guide, X, ks=(1,), show_progress=False)
    assert found.base_measure == "Lebesgue"
    assert "not normalized (pyro.factor 'bonus' in the model)" in str(found)
    assert found.iwae[-1].value == pytest.approx(EXACT.mean().item() + 1)


def test_an_improper_prior_makes_a_model_unnormalized() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (3,)))
            pyro.sample("x", likelihood(z), obs=x)

    assert "improper prior of 'z'" in evaluate(model, pair_of(TRUTH)[1], X, ks=(1,), show_progress=False).unnormalized


class Overconfident(dist.Bernoulli):
    """A distribution whose log-probability is wrong."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 1.0


def test_a_log_probability_above_zero_is_an_error() -> None:
    _, guide = pair_of(TRUTH)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", Overconfident(logits=9 + z @ TRUTH.weight.T).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"at most 0, but ELBO is .* nats: .*a log_prob is wrong"):
        evaluate(model, lambda x: guide(0 * x), torch.ones(6, 5), ks=(1, 10), show_progress=False)


@pytest.mark.parametrize(
    ("prior", "guide"),
    [
        (
            dist.Uniform(-torch.ones(3), 1.0),
            lambda m: dist.TransformedDistribution(
                dist.Beta(1 + m.sigmoid(), 2.0), [dist.transforms.AffineTransform(-1.0, 2.0)]
            ),
        ),
        (dist.Uniform(-math.pi * torch.ones(3), math.pi), lambda m: dist.VonMises(m, 2.0)),
        (dist.Uniform(torch.zeros(3), 1.0, validate_args=False), lambda m: dist.Uniform(-0.5 + 0 * m, 1.0)),
        (dist.Gamma(torch.ones(3), 1.0), lambda m: dist.LogNormal(0.1 * m, 0.5)),
    ],
)
def test_guides_whose_draws_lie_in_the_support_are_taken(prior: Any, guide: Callable[[Tensor], Any]) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", prior.to_event(1))), obs=x)

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide(x[:, :3]).to_event(1))

    values = log_weights(model, program, X, num_particles=3)
    assert not values.isnan().any()


def test_whole_numbers_are_checked_where_torch_looks_at_sums() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Multinomial(9, logits=z @ TRUTH.weight.T), obs=x)

    _, guide = pair_of(TRUTH)
    assert log_weights(model, guide, torch.ones(4, 5), num_particles=2).isfinite().all()
    with pytest.raises(ValueError, match="site 'x': 4 of 4 lie outside the support .* of Multinomial"):
        log_weights(model, guide, torch.full((4, 5), 0.4), num_particles=2)


class Grey(dist.Bernoulli):
    """A distribution that computes cross-entropy and checks nothing."""

    def log_prob(self, value: Tensor) -> Tensor:
        return -nn.functional.binary_cross_entropy_with_logits(self.logits, value, reduction="none")


def test_a_log_prob_that_checks_nothing_is_checked() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", Grey(logits=z @ TRUTH.weight.T).to_event(1), obs=x)

    with pytest.raises(ValueError, match="115 of 115 lie outside the support Boolean.. of Grey|lie outside"):
        evaluate(model, pair_of(TRUTH)[1], torch.rand(23, 5), ks=(1,), show_progress=False)


def test_unnormalized_scores_what_ours_refuses_too() -> None:
    vae = make_vae()
    x = torch.rand(5, 1, 8, 8)
    with pytest.raises(ValueError, match="scores data that are 0 or 1"):
        evaluate(vae.model, vae.guide, x, ks=(1,), show_progress=False)
    found = evaluate(vae.model, vae.guide, x, ks=(1,), unnormalized=True, show_progress=False)
    assert found.unnormalized
    assert found.density == "p(x)"


@pytest.mark.parametrize("below", [True, False])
def test_a_mask_that_is_a_number_is_understood(below: bool) -> None:  # noqa: FBT001
    """Also where it lies below the event; masked everywhere, a datum weighs nothing."""

    def maybe(fn: Any, m: bool) -> Any:  # noqa: FBT001
        return fn.mask(m).to_event(1) if below else fn.to_event(1).mask(m)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", maybe(dist.Normal(torch.zeros(3), 1.0), kept))
            pyro.sample("x", maybe(dist.Normal(z @ TRUTH.weight.T + TRUTH.bias, TRUTH.scale), kept), obs=x)

    def guide(x: Tensor) -> None:
        exact = TRUTH.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", maybe(dist.Normal(exact.mean, exact.variance.sqrt()), kept))

    for kept in (True, False):
        assert (log_weights(model, guide, X, num_particles=2) - EXACT * kept).abs().max() < 1e-9
