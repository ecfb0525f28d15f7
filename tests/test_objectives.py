"""The objective against Pyro's, where Pyro's is right, and against the definition where it is not."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import Pair, TwoLayers, linear_gaussian, pair_of
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.objectives import ELBO

TRUTH = linear_gaussian()
X = TRUTH.sample(12)


class Both(nn.Module):
    """A trainable pair whose plate, scales and masks are chosen by name."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.encoder, self.decoder = nn.Linear(5, 6), nn.Linear(3, 5)

    def plate(self, x: Tensor) -> Any:
        if self.kind == "subsampled":
            return pyro.plate("data", 1000, subsample=torch.arange(len(x)))
        return pyro.plate("data", len(x))

    def around(self, x: Tensor) -> Any:
        stack = contextlib.ExitStack()
        if self.kind == "masked":
            stack.enter_context(poutine.mask(mask=x[:, 0] > 0))
        if self.kind == "scaled":
            stack.enter_context(poutine.scale(scale=0.3))
        if self.kind == "scaled by a tensor":
            stack.enter_context(poutine.scale(scale=torch.tensor(0.3)))
        return stack

    def model(self, x: Tensor) -> None:
        pyro.module("both", self)
        with self.plate(x), self.around(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.deterministic("mean", self.decoder(z), event_dim=1)
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("both", self)
        with self.plate(x), self.around(x):
            mean, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def loss_and_gradients(objective: Any, pair: nn.Module, x: Tensor, *, checked: bool) -> tuple[float, list[Tensor]]:
    pyro.clear_param_store()
    pair.zero_grad()
    torch.manual_seed(7)
    with pyro.validation_enabled(checked):
        loss = objective.differentiable_loss(pair.model, pair.guide, x)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in pair.parameters() if p.grad is not None]


class PyroLoss(TraceMeanField_ELBO):
    """Pyro's estimator, differentiable."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any) -> Tensor:
        pairs = self._get_traces(model, guide, args, {})
        return sum(self._differentiable_loss_particle(*pair)[1] for pair in pairs) / self.num_particles


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
@pytest.mark.parametrize("kind", ["plain", "subsampled", "masked", "scaled", "scaled by a tensor"])
def test_loss_and_gradients_are_those_of_pyro(kind: str, options: dict[str, Any], checked: bool) -> None:  # noqa: FBT001
    pair = Both(kind)
    expected, gradients = loss_and_gradients(PyroLoss(**options, max_plate_nesting=1), pair, X, checked=True)
    found, own = loss_and_gradients(ELBO(**options, max_plate_nesting=1), pair, X, checked=checked)
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(own) == len(gradients) == 4
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(own, gradients, strict=True))
    guessed, _ = loss_and_gradients(ELBO(**options), pair, X, checked=checked)
    assert guessed == found


@pytest.mark.parametrize("kind", ["plain", "subsampled", "masked", "scaled", "scaled by a tensor"])
def test_reported_terms_are_free_of_scales(kind: str) -> None:
    plain = Both("masked" if kind == "masked" else "plain")
    torch.manual_seed(7)
    expected = ELBO().terms(plain.model, plain.guide, X)
    pyro.clear_param_store()
    pair = Both(kind)
    torch.manual_seed(7)
    terms = ELBO().terms(pair.model, pair.guide, X)
    assert terms.reconstruction.item() == pytest.approx(expected.reconstruction.item(), rel=1e-12)
    assert terms.kl.item() == pytest.approx(expected.kl.item(), rel=1e-12)
    factor = {"subsampled": 1000 / 12, "scaled": 0.3, "scaled by a tensor": 0.3}.get(kind, 1.0)
    assert terms.loss.item() == pytest.approx(factor * expected.loss.item(), rel=1e-12)


def latent_weighted(a: Any, b: Any) -> Pair:
    """Return a pair whose log q(z) is multiplied by a and whose log p(z) by b."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=b):
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ TRUTH.weight.T + TRUTH.bias, TRUTH.scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        exact = TRUTH.posterior(x)
        with pyro.plate("data", len(x)), poutine.scale(scale=a):
            pyro.sample("z", dist.Normal(exact.mean, exact.variance.sqrt()).to_event(1))

    return model, guide


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.2), (0.2, 1.0), (torch.tensor(0.5), torch.tensor(0.5)), (0.01, 2.0)])
def test_scales_of_one_latent_are_the_definition(a: Any, b: Any) -> None:
    model, guide = latent_weighted(a, b)
    repeats = 40
    objective = ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    losses = torch.tensor([objective.differentiable_loss(model, guide, X).item() for _ in range(repeats)])
    q = TRUTH.posterior(X)
    entropy = dist.Normal(q.mean, q.variance.sqrt()).entropy().sum()
    mean_log_prior = (-0.5 * (q.mean**2 + q.variance) - 0.5 * math.log(2 * math.pi)).sum()
    residual = X - q.mean @ TRUTH.weight.T - TRUTH.bias
    spread = q.variance.expand_as(q.mean) @ (TRUTH.weight**2).T
    mean_log_likelihood = (
        -0.5 * (residual**2 + spread) / TRUTH.scale**2 - math.log(TRUTH.scale) - 0.5 * math.log(2 * math.pi)
    ).sum()
    expected = -(mean_log_likelihood + b * mean_log_prior + a * entropy)
    assert abs(losses.mean() - expected) < 4 * losses.std() / math.sqrt(repeats)


@pytest.mark.parametrize("alike", [True, False])
def test_masks_made_separately_in_model_and_guide(alike: bool) -> None:  # noqa: FBT001
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ TRUTH.weight.T + TRUTH.bias, TRUTH.scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        exact = TRUTH.posterior(x)
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0 if alike else 1] > 0):
            pyro.sample("z", dist.Normal(exact.mean, exact.variance.sqrt()).to_event(1))

    objective = ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    terms = objective.terms(model, guide, X)
    exact = TRUTH.posterior(X)
    q, p = dist.Normal(exact.mean, exact.variance.sqrt()).to_event(1), dist.Normal(torch.zeros(3), 1.0).to_event(1)
    kl = torch.distributions.kl_divergence(q, p)
    of_model, of_guide = X[:, 0] > 0, X[:, 0 if alike else 1] > 0
    expected = (of_model * (kl + q.entropy()) - of_guide * q.entropy()).sum()
    assert abs(terms.kl - expected) < (1e-9 if alike else 5 * math.sqrt(12 * 3 / 4000))


def test_expectation_of_two_layers_and_the_line_that_names_the_method(caplog: pytest.LogCaptureFixture) -> None:
    pair = TwoLayers(bottom_up=True)
    x = torch.bernoulli(torch.full((6, 4), 0.5))
    options = {"num_particles": 5000, "vectorize_particles": True, "max_plate_nesting": 1}
    objective = ELBO(**options)
    with caplog.at_level(logging.WARNING, logger="pyrovae"), torch.no_grad():
        ours = torch.tensor([objective.loss(pair.model, pair.guide, x) / 6 for _ in range(20)])
        pyros = torch.tensor([Trace_ELBO(**options).loss(pair.model, pair.guide, x) / 6 for _ in range(20)])
    assert [record.message for record in caplog.records] == [
        "the KL of 'z1' is estimated by Monte Carlo: 'z2' comes before 'z1' in the model but not in the guide"
    ]
    assert objective.kl_methods["z2"] == "closed form"
    assert abs(ours.mean() - pyros.mean()) < 4 * math.hypot(ours.std(), pyros.std()) / math.sqrt(20)


def test_no_closed_form_is_named_once_and_right_in_expectation(caplog: pytest.LogCaptureFixture) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ TRUTH.weight.T + TRUTH.bias, TRUTH.scale).to_event(1), obs=x)

    _, guide = pair_of(TRUTH)
    options = {"num_particles": 5000, "vectorize_particles": True, "max_plate_nesting": 1}
    objective = ELBO(**options)
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        ours = torch.tensor([objective.loss(model, guide, X) for _ in range(20)])
    pyros = torch.tensor([Trace_ELBO(**options).loss(model, guide, X) for _ in range(20)])
    assert len(caplog.records) == 1
    assert "no closed form is known for KL(Normal || StudentT)" in caplog.text
    assert abs(ours.mean() - pyros.mean()) < 4 * math.hypot(ours.std(), pyros.std()) / math.sqrt(20)


def test_beta_multiplies_the_kl_alone() -> None:
    pair = Both()
    losses = []
    for beta in (0.0, 1.0, 4.0):
        torch.manual_seed(7)
        losses.append(ELBO(beta=beta).differentiable_loss(pair.model, pair.guide, X).item())
    terms = ELBO().terms(pair.model, pair.guide, X)
    assert losses[1] - losses[0] == pytest.approx(terms.kl.item(), rel=1e-9)
    assert losses[2] - losses[0] == pytest.approx(4 * terms.kl.item(), rel=1e-9)


@pytest.mark.parametrize("make", [pyro.optim.Adam, pyro.optim.ClippedAdam])
def test_it_trains_in_a_bare_svi(make: Callable[..., Any]) -> None:
    pair = Both()
    svi = SVI(pair.model, pair.guide, make({"lr": 0.02}), loss=ELBO())
    losses = [svi.step(X) / 12 for _ in range(400)]
    assert all(isinstance(loss, float) for loss in losses)
    assert sum(losses[-20:]) / 20 < sum(losses[:20]) / 20 - 1.0
    assert svi.evaluate_loss(X) / 12 == pytest.approx(sum(losses[-20:]) / 20, abs=1.0)


class Model(nn.Module):
    def __init__(self, both: Both) -> None:
        super().__init__()
        self.decoder = both.decoder

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self, both: Both) -> None:
        super().__init__()
        self.encoder = both.encoder

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            mean, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def test_it_makes_a_module_of_two_modules() -> None:
    both = Both()
    expected, gradients = loss_and_gradients(ELBO(), both, X, checked=True)
    module = ELBO()(Model(both), Guide(both))
    assert len(list(module.parameters())) == 4
    both.zero_grad()
    torch.manual_seed(7)
    loss = module(X)
    loss.backward()
    assert loss.item() == expected
    assert all(torch.equal(p.grad, g) for p, g in zip(both.parameters(), gradients, strict=True))


class NoSync(TorchDispatchMode):
    """Raises where the host would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal"):
            raise AssertionError(f"the host waits for {func}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    with pyro.validation_enabled(False), NoSync():  # noqa: FBT003 (Pyro's)
        yield


@pytest.mark.parametrize("options", [{}, {"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 1}])
@pytest.mark.parametrize("kind", ["plain", "subsampled", "masked", "scaled", "scaled by a tensor"])
def test_the_host_does_not_wait(kind: str, options: dict[str, Any]) -> None:
    pair = Both(kind)
    with no_sync():
        ELBO(**options).loss_and_grads(pair.model, pair.guide, X)
    with pytest.raises(AssertionError, match="the host waits"), no_sync():
        TraceMeanField_ELBO(**options).loss_and_grads(pair.model, pair.guide, X)


def test_a_guide_without_gradients_is_refused() -> None:
    class Fixed(dist.Normal):
        has_rsample = False

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Fixed(torch.zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match="draw of 'z' has no gradient.*cannot be reparametrized.*TraceGraph_ELBO"):
        ELBO().differentiable_loss(pair_of(TRUTH)[0], guide, X)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_beta_is_finite_and_not_negative(beta: float) -> None:
    with pytest.raises(ValueError, match="beta is at least 0 and finite, but received"):
        ELBO(beta=beta)


@pytest.mark.parametrize("num_particles", [0, -1, 1.5, True, "2"])
def test_particles_are_counted_in_whole_numbers(num_particles: Any) -> None:
    with pytest.raises(ValueError, match="num_particles is a whole number of at least 1"):
        ELBO(num_particles=num_particles)


@pytest.mark.parametrize("vectorize", [True, False])
def test_streams_and_switches_are_those_of_the_draws_alone(vectorize: bool) -> None:  # noqa: FBT001
    pair = Both()
    before = (torch.distributions.Distribution._validate_args, pyro.infer.util.is_validation_enabled())
    torch.manual_seed(3)
    ELBO(num_particles=2, vectorize_particles=vectorize).loss(pair.model, pair.guide, X)
    after = torch.rand(3)
    torch.manual_seed(3)
    for shape in [(2, 12, 3)] if vectorize else [(12, 3), (12, 3)]:
        torch.randn(shape)
    assert torch.equal(torch.rand(3), after)
    assert before == (torch.distributions.Distribution._validate_args, pyro.infer.util.is_validation_enabled())


def test_an_auxiliary_draw_of_the_guide_counts() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.tensor(0.0), 2.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(torch.zeros(3) + u.unsqueeze(-1), 1.0).to_event(1))

    model, _ = pair_of(TRUTH)
    expected, found = [], []
    for objective, losses in ((PyroLoss(), expected), (ELBO(), found)):
        torch.manual_seed(7)
        losses.append(objective.differentiable_loss(model, guide, X).item())
    assert found == pytest.approx(expected, rel=1e-12)
