"""The objective against Pyro's, where Pyro's is right, and against the definition where it is not."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ModelGuide, TwoLayers, linear_gaussian, pair_of
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae import bounds
from pyrovae.objectives import ELBO, IWAE, STL, DReG, Objective, importance, schedules
from pyrovae.objectives.sites import sites_of, whole_plates

TRUTH = linear_gaussian()
X = TRUTH.sample(12)


class Both(nn.Module):
    """A trainable pair whose plate, scales and masks are chosen by name."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.masks: dict[int, Tensor] = {}
        self.encoder, self.decoder = nn.Linear(5, 6), nn.Linear(3, 5)

    def plate(self, x: Tensor) -> Any:
        if self.kind == "subsampled":
            return pyro.plate("data", 1000, subsample=torch.arange(len(x)))
        return pyro.plate("data", len(x))

    def around(self, x: Tensor) -> Any:
        stack = contextlib.ExitStack()
        if self.kind == "masked":
            stack.enter_context(poutine.mask(mask=x[:, 0] > 0))
        if self.kind == "masked by one tensor":
            stack.enter_context(poutine.mask(mask=self.masks.setdefault(len(x), x[:, 0] > 0)))
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


def latent_weighted(a: Any, b: Any) -> ModelGuide:
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


# importance-weighted objectives

WEIGHTED = (IWAE, STL, DReG)


class OneByOne(Both):
    """A decoder that takes no axis of particles."""

    def model(self, x: Tensor) -> None:
        pyro.module("both", self)
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            mean = self.decoder(torch.cat([z, z.new_zeros(len(z), 1)], -1)[:, :3])
            pyro.sample("x", dist.Normal(mean, 0.7).to_event(1), obs=x)


class DrawsRows(Both):
    """A pair that takes all data and draws four by itself."""

    def model(self, x: Tensor) -> None:
        pyro.module("both", self)
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x[rows])

    def guide(self, x: Tensor) -> None:
        pyro.module("both", self)
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            mean, log_scale = self.encoder(x[rows]).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def log_weights_by_hand(pair: nn.Module, x: Tensor, num_particles: int) -> Tensor:
    """Return log p(x, z) - log q(z | x) of draws from the seed of `loss_and_gradients`, ``(K, B)``."""
    torch.manual_seed(7)
    with pyro.plate("K", num_particles, dim=-2):
        guide_trace = poutine.trace(pair.guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x)
    total = torch.zeros(num_particles, len(x))
    for trace, sign in ((guide_trace, -1.0), (model_trace, 1.0)):
        for site in trace.nodes.values():
            if site["type"] == "sample" and type(site["fn"]).__name__ in ("Independent", "Normal"):
                log_prob = site["fn"].log_prob(site["value"])
                total = total + sign * (log_prob if site["mask"] is None else log_prob * site["mask"])
    return total.detach()


@pytest.mark.parametrize("make", WEIGHTED)
@pytest.mark.parametrize("kind", ["plain", "subsampled", "masked", "scaled"])
def test_weighted_losses_are_the_bound_of_each_datum_and_factors_stay_outside(kind: str, make: Any) -> None:
    pair = Both(kind)
    log_weights = log_weights_by_hand(pair, X, 5)
    factor = {"subsampled": 1000 / 12, "scaled": 0.3}.get(kind, 1.0)
    expected = -factor * bounds.iwae(log_weights).sum()
    for checked in (True, False):
        found, _ = loss_and_gradients(make(num_particles=5), pair, X, checked=checked)
        assert found == pytest.approx(expected.item(), rel=1e-12)
    torch.manual_seed(7)
    terms = make(num_particles=5).terms(pair.model, pair.guide, X)
    assert (terms.reconstruction - terms.kl).item() == pytest.approx(log_weights.mean(0).sum().item(), rel=1e-9)
    torch.manual_seed(7)
    assert make(num_particles=5).loss(pair.model, pair.guide, X).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("make", WEIGHTED)
@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_weighted_losses_are_pyros_without_subsampling(kind: str, make: Any) -> None:
    pair = Both(kind)
    pyros = RenyiELBO(alpha=0.0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(7)
    expected = pyros.loss(pair.model, pair.guide, X)
    assert loss_and_gradients(make(num_particles=5), pair, X, checked=True)[0] == pytest.approx(expected, rel=1e-12)
    subsampled = Both("subsampled")
    torch.manual_seed(7)
    wrong = pyros.loss(subsampled.model, subsampled.guide, X) * 12 / 1000
    assert wrong != pytest.approx(expected, rel=1e-3)  # its plate factor is inside the logarithm


@pytest.mark.parametrize("make", WEIGHTED)
def test_weighted_objectives_train_in_a_bare_svi(make: Any) -> None:
    pair, objective = Both(), make(num_particles=4)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.02}), loss=objective)
    losses = [svi.step(X) / 12 for _ in range(300)]
    assert all(isinstance(loss, float) for loss in losses)
    assert sum(losses[-20:]) / 20 < sum(losses[:20]) / 20 - 1.0
    before = [parameter.detach().clone() for parameter in pair.parameters()]
    assert svi.evaluate_loss(X) / 12 == pytest.approx(sum(losses[-20:]) / 20, abs=1.0)
    assert objective.step == 300
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


def test_a_pair_is_inspected_once_however_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    inspect = importance.inspect_programs
    monkeypatch.setattr(importance, "inspect_programs", lambda *a, **k: seen.append(a) or inspect(*a, **k))
    pair = Both()

    def model(data: Tensor, shift: Tensor) -> None:
        pair.model(data + shift)

    def guide(data: Tensor, shift: Tensor) -> None:
        pair.guide(data + shift)

    found = []
    for args, kwargs in (((X, X), {}), ((X,), {"shift": X}), ((), {"data": X, "shift": X})):
        pyro.clear_param_store()
        objective = DReG(num_particles=3)
        for _ in range(3):
            pair.zero_grad()
            torch.manual_seed(7)
            found.append(objective.loss_and_grads(model, guide, *args, **kwargs).item())
        assert objective.step == 3
    assert len(seen) == 3
    assert found == [found[0]] * 9


@pytest.mark.parametrize(("args", "received"), [((), "no argument"), ((None,), "NoneType"), (([1.0],), "list")])
def test_a_weighted_objective_needs_data(args: Any, received: str) -> None:
    pair = Both()
    with pytest.raises(TypeError, match=f"the data, a tensor .N, ....*first argument, but received {received}"):
        IWAE().loss(pair.model, pair.guide, *args)


@pytest.mark.parametrize("make", WEIGHTED)
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.2), (0.2, 1.0), (torch.tensor(0.5), torch.tensor(0.5))])
def test_scales_have_no_place_inside_the_logarithm(make: Any, a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match=r"one scale for all sites.*pyro.poutine.scale.*or weigh the KL with ELBO"):
        make(num_particles=2).loss(*latent_weighted(a, b), X)


@pytest.mark.parametrize("make", WEIGHTED)
def test_what_has_no_gradient_or_breaks_the_contract_is_refused(make: Any) -> None:
    class Fixed(dist.Normal):
        has_rsample = False

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", Fixed(torch.zeros(3), 1.0).to_event(1))

    def discrete(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(z @ TRUTH.weight.T, 1.0).to_event(1), obs=x)

    def latents_only(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))

    model, _ = pair_of(TRUTH)
    with pytest.raises(ValueError, match="draw of 'z' has no gradient.*cannot be reparametrized.*TraceGraph_ELBO"):
        make().loss(model, fixed, X)
    with pytest.raises(ValueError, match="latent variable 'z' is discrete"):
        make().loss(discrete, latents_only, X)
    with pytest.raises(ValueError, match="num_particles is a whole number of at least 1"):
        make(num_particles=0)


@pytest.mark.parametrize("make", WEIGHTED)
def test_the_encoder_sees_each_datum_once_whatever_the_number_of_particles(make: Any) -> None:
    pair, objective = Both(), make(num_particles=7)
    objective.loss_and_grads(pair.model, pair.guide, X)
    rows = []
    pair.encoder.register_forward_hook(lambda module, args, out: rows.append(out.numel() // 6))
    objective.loss_and_grads(pair.model, pair.guide, X)
    assert rows == [12]


def annealed() -> ELBO:
    return ELBO(free_bits=0.1, annealing=schedules.Linear(100))


EVERY: dict[str, Callable[[], Objective]] = {
    "ELBO": ELBO,
    "annealed, with free bits": annealed,
    "IWAE": lambda: IWAE(num_particles=3),
    "STL": lambda: STL(num_particles=3),
    "DReG": lambda: DReG(num_particles=3),
}


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("form", ["plain", "subsampled", "masked by one tensor", "two layers", "one by one", "rows"])
def test_the_host_does_not_wait_in_any_step(form: str, name: str) -> None:
    others = {"two layers": lambda: TwoLayers(bottom_up=True), "one by one": OneByOne, "rows": DrawsRows}
    pair = others[form]() if form in others else Both(form)
    x = torch.bernoulli(torch.full((6, 4), 0.5)) if form == "two layers" else X
    objective = EVERY[name]()
    objective.loss_and_grads(pair.model, pair.guide, x)  # which inspects the pair
    with no_sync():
        objective.loss_and_grads(pair.model, pair.guide, x)


def live_tensors() -> int:
    return sum(type(thing) is Tensor for thing in gc.get_objects())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("form", ["together", "one by one", "two layers"])
def test_a_step_leaves_no_tensor_behind_even_without_garbage_collection(form: str, name: str) -> None:
    makes = {"together": Both, "one by one": OneByOne, "two layers": lambda: TwoLayers(bottom_up=True)}
    pair, objective = makes[form](), EVERY[name]()
    x = torch.bernoulli(torch.full((6, 4), 0.5)) if form == "two layers" else X
    objective.loss_and_grads(pair.model, pair.guide, x)
    gc.collect()
    gc.disable()
    try:
        before = live_tensors()
        for _ in range(200 if (form, name) == ("together", "IWAE") else 20):
            objective.loss_and_grads(pair.model, pair.guide, x)
        assert live_tensors() == before
    finally:
        gc.enable()


# free bits


def loss_parts(pair: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return minus the reconstruction, from the seed of `loss_and_gradients`, and KL_bj, ``(B, 3)``."""
    pyro.clear_param_store()
    torch.manual_seed(7)
    reconstruction = ELBO(beta=0.0).differentiable_loss(pair.model, pair.guide, x)
    mean, log_scale = pair.encoder(x).chunk(2, -1)
    return reconstruction, 0.5 * (mean**2 + (2 * log_scale).exp() - 1) - log_scale


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 50.0])
@pytest.mark.parametrize("kind", ["plain", "subsampled", "scaled", "masked by one tensor"])
def test_free_bits_are_those_of_each_dimension_averaged_over_the_minibatch(kind: str, share: float) -> None:
    pair = Both(kind)
    kept = slice(None) if kind != "masked by one tensor" else X[:, 0] > 0
    means = loss_parts(pair, X)[1][kept].mean(0).sort().values
    free_bits = (1e-6 + share * means[:2].mean()).item()  # at 1, one dimension lies below the floor and two above
    objective = ELBO(free_bits=free_bits, beta=2.0)
    found, gradients = loss_and_gradients(objective, pair, X, checked=False)
    reconstruction, kl = loss_parts(pair, X)
    factor = {"subsampled": 1000 / 12, "scaled": 0.3}.get(kind, 1.0)
    kl = kl[kept]
    expected = reconstruction + 2.0 * factor * len(kl) * kl.mean(0).clamp(min=free_bits).sum()
    assert found == pytest.approx(expected.item(), rel=1e-12)
    pair.zero_grad()
    expected.backward()
    assert all(torch.allclose(p.grad, g, atol=1e-10) for p, g in zip(pair.parameters(), gradients, strict=True))
    terms = objective.terms(pair.model, pair.guide, X)
    assert terms.kl.item() == pytest.approx(kl.sum().item(), rel=1e-9)  # reported without free bits and beta


def test_below_the_floor_nothing_pushes_the_kl() -> None:
    pair = Both()
    _, gradients = loss_and_gradients(ELBO(free_bits=50.0), pair, X, checked=True)
    _, without = loss_and_gradients(ELBO(beta=0.0), pair, X, checked=True)
    assert all(torch.equal(a, b) for a, b in zip(gradients, without, strict=True))


class Other(Both):
    """A pair with another prior or posterior, whose KL is that of all dimensions jointly or has no closed form."""

    def model(self, x: Tensor) -> None:
        pyro.module("both", self)
        with self.plate(x):
            prior = (
                dist.StudentT(5.0, torch.zeros(3), 1.0) if self.kind == "student" else dist.Normal(torch.zeros(3), 1)
            )
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("both", self)
        with self.plate(x):
            mean, log_scale = self.encoder(x).chunk(2, -1)
            if self.kind == "joint":
                pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=log_scale.exp().diag_embed() + 0.1 * tril(3)))
            else:
                pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def tril(size: int) -> Tensor:
    return torch.ones(size, size).tril(-1)


def test_a_joint_kl_has_the_free_bits_of_its_dimensions_together() -> None:
    pair = Other("joint")
    without, _ = loss_and_gradients(ELBO(beta=0.0), pair, X, checked=True)
    whole, _ = loss_and_gradients(ELBO(), pair, X, checked=True)
    joint = (whole - without) / 12
    for free_bits, expected in ((joint / 3 - 1e-3, joint), (joint / 3 + 1e-3, joint + 3e-3)):
        found, _ = loss_and_gradients(ELBO(free_bits=free_bits), pair, X, checked=True)
        assert found == pytest.approx(without + 12 * expected, rel=1e-9)


def test_free_bits_of_sampled_terms_are_those_of_each_dimension() -> None:
    pair = Other("student")
    torch.manual_seed(7)
    mean, log_scale = pair.encoder(X).chunk(2, -1)
    q = dist.Normal(mean, log_scale.exp())
    z = q.rsample()
    terms = (q.log_prob(z) - dist.StudentT(5.0, torch.zeros(3), 1.0).log_prob(z)).mean(0)
    without, _ = loss_and_gradients(ELBO(beta=0.0), pair, X, checked=True)
    found, _ = loss_and_gradients(ELBO(free_bits=terms.median().item()), pair, X, checked=True)
    assert found == pytest.approx(without + 12 * terms.clamp(min=terms.median()).sum().item(), rel=1e-10)


@pytest.mark.parametrize("make", [Both, lambda: Other("student"), lambda: Other("joint")])
@pytest.mark.parametrize("free_bits", [0.05, 0.3, 1.0])
def test_free_bits_of_particles_looped_and_at_once_are_the_same(make: Callable[[], Both], free_bits: float) -> None:
    pair, x = make(), TRUTH.sample(16)  # draws of a multiple of 16 numbers do not depend on how they are cut
    options = {"free_bits": free_bits, "num_particles": 3}
    looped, gradients = loss_and_gradients(ELBO(**options), pair, x, checked=True)
    at_once = ELBO(**options, vectorize_particles=True, max_plate_nesting=1)
    together, own = loss_and_gradients(at_once, pair, x, checked=True)
    assert looped == pytest.approx(together, rel=1e-10)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(gradients, own, strict=True))


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.2), (torch.tensor(0.5), torch.tensor(0.5)), (torch.ones(12), 1.0)])
def test_free_bits_need_one_scale(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match="free bits need one scale and mask for 'z'.*do not share.*or set free_bits=0"):
        ELBO(free_bits=0.1).differentiable_loss(*latent_weighted(a, b), X)


def test_free_bits_need_one_mask() -> None:
    pair = Both("masked")
    with pytest.raises(ValueError, match="free bits need one scale and mask for 'z'.*by the very same tensor"):
        ELBO(free_bits=0.1).differentiable_loss(pair.model, pair.guide, X)


@pytest.mark.parametrize("free_bits", [-0.1, math.nan, math.inf])
def test_free_bits_are_finite_and_not_negative(free_bits: float) -> None:
    with pytest.raises(ValueError, match="free_bits is at least 0 and finite, but received"):
        ELBO(free_bits=free_bits)


# annealing


def test_schedules_by_hand() -> None:
    linear = schedules.Linear(4, start=0.2)
    assert [linear(step) for step in (0, 1, 2, 4, 5, 1000)] == pytest.approx([0.2, 0.4, 0.6, 1.0, 1.0, 1.0])
    cyclical = schedules.Cyclical(8, rise=0.5)
    assert [cyclical(step) for step in range(10)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 0, 0.25])
    assert schedules.Cyclical(4, rise=1.0, start=0.5)(2) == pytest.approx(0.75)
    assert schedules.Constant()(10**9) == 1.0
    assert linear.describe() == {"class": "Linear", "num_steps": 4, "start": 0.2}


@pytest.mark.parametrize("num_steps", [0, -1, 1.5, True])
@pytest.mark.parametrize("make", [schedules.Linear, schedules.Cyclical])
def test_schedules_need_whole_steps_and_factors_up_to_1(make: Any, num_steps: Any) -> None:
    with pytest.raises(ValueError, match=f"{make.__name__} annealing takes a whole number of steps of at least 1"):
        make(num_steps)
    for start in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"{make.__name__} annealing starts at a factor between 0 and 1"):
            make(10, start=start)
    for rise in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="the rising share of a cycle lies in"):
            schedules.Cyclical(10, rise=rise)


def test_gradient_steps_are_counted_and_nothing_else_is() -> None:
    pair, objective = Both(), ELBO(annealing=schedules.Linear(4), beta=3.0)
    svi = SVI(pair.model, pair.guide, pyro.optim.SGD({"lr": 0.0}), loss=objective)
    found = []
    for step in range(6):
        assert objective.step == step
        torch.manual_seed(7)
        found.append(svi.step(X))
        svi.evaluate_loss(X)
        objective.differentiable_loss(pair.model, pair.guide, X)
        objective.loss(pair.model, pair.guide, X)
    reconstruction, kl = loss_parts(pair, X)
    factors = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    expected = [(reconstruction + 3.0 * factor * kl.sum()).item() for factor in factors]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_loss_on_other_data_moves_nothing() -> None:
    for make in EVERY.values():
        pyro.clear_param_store()
        pair, objective = Both(), make()
        before = [parameter.detach().clone() for parameter in pair.parameters()]
        loss = objective.loss(pair.model, pair.guide, X)
        assert not loss.requires_grad
        assert objective.step == 0
        assert all(parameter.grad is None for parameter in pair.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


def test_a_schedule_says_what_its_options_are() -> None:
    class Root(schedules.Schedule):
        def __init__(self, num_steps: int) -> None:
            self.num_steps = num_steps

        def __call__(self, step: int) -> float:
            return min(1.0, (step / self.num_steps) ** 0.5)

    with pytest.raises(TypeError, match=r"derive it as a @dataclass\(frozen=True\)"):
        ELBO(annealing=Root(30)).describe()


@pytest.mark.parametrize("kind", ["scaled", "subsampled", "handled"])
def test_sites_are_those_of_pyros_traces(kind: str) -> None:
    pair = Both(kind)
    programs = [poutine.scale(p, scale=0.5) if kind == "handled" else p for p in (pair.model, pair.guide)]
    torch.manual_seed(0)
    guide = poutine.trace(programs[1]).get_trace(X)
    model = poutine.trace(poutine.replay(programs[0], trace=guide)).get_trace(X)
    torch.manual_seed(0)
    drawn = sites_of(programs[1], X)
    replayed = sites_of(programs[0], X, drawn=drawn)
    for trace, sites in ((guide, drawn), (model, replayed)):
        expected = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
        assert sites.nodes.keys() == expected.keys()
        for name, site in expected.items():
            found = sites.nodes[name]
            assert torch.equal(found["value"], site["value"])
            for key in ("is_observed", "scale", "cond_indep_stack", "infer"):
                assert found[key] == site[key]
            assert type(found["fn"]) is type(site["fn"])


def test_sites_of_one_name_or_of_two_kinds_are_refused() -> None:
    def twice(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for _ in range(2):
                pyro.sample("z", dist.Normal(0.0, 1.0))

    def observing(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0), obs=x[:, 0])

    def latent(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(RuntimeError, match="several sample sites named 'z'"):
        sites_of(twice, X)
    with pytest.raises(RuntimeError, match="'z' is latent in the model but observed in the guide"):
        sites_of(latent, X, drawn=sites_of(observing, X))
    assert sites_of(observing, X, drawn=sites_of(latent, X)).nodes["z"]["value"].equal(X[:, 0])


def test_a_plate_that_takes_all_rows_has_their_numbers() -> None:
    rows: list[Tensor] = []

    def program(x: Tensor) -> None:
        with pyro.plate("outer", 2, dim=-2) as outer, pyro.plate("data", len(x), device="cpu") as inner:
            rows.extend([outer, inner])
            pyro.sample("z", dist.Normal(0.0, 1.0))
        for each in pyro.plate("one by one", 2):
            pyro.sample(f"z_{each}", dist.Normal(0.0, 1.0))
        with pyro.plate("some", 5, subsample_size=2) as some:
            rows.append(some)

    sites = sites_of(program, X).nodes
    assert [len(each) for each in rows] == [2, 12, 2]
    assert rows[1].equal(torch.arange(12))
    assert sites["z"]["value"].shape == (2, 12)
    assert sites["z"]["scale"] == 1
    assert {"z_0", "z_1", "some"} <= sites.keys()


def test_rows_of_a_plate_that_were_drawn_before_are_taken() -> None:
    x = torch.arange(6.0)
    seen: list[Tensor] = []

    def program(size: int | None, data: Tensor = x) -> Callable[[], None]:
        def run() -> None:
            with pyro.plate("data", len(data), subsample_size=size) as rows:
                seen.append(rows)

        return run

    sites_of(program(None), drawn=sites_of(program(2)))
    assert seen[0].equal(seen[1])
    with pytest.raises(ValueError, match="different subsample_size in the model and guide"):
        sites_of(program(2), drawn=sites_of(program(None)))
    sites_of(program(None), drawn=sites_of(program(None)))
    assert seen[-1].equal(torch.arange(6))


def test_a_plate_of_a_name_that_is_taken_is_refused() -> None:
    def twice() -> None:
        for _ in range(2):
            with pyro.plate("data", 3):
                pass

    def alike() -> None:
        with pyro.plate("z", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    for program, name in ((twice, "data"), (alike, "z")):
        with pytest.raises(RuntimeError, match=f"several sample sites named '{name}'"):
            sites_of(program)


def test_programs_in_several_threads_leave_pyros_plates_as_they_were() -> None:
    draw = SubsampleMessenger._subsample
    first, second = whole_plates(), whole_plates()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert SubsampleMessenger._subsample is draw


def test_sites_of_a_program_that_fails_leave_no_handler() -> None:
    draw = SubsampleMessenger._subsample
    with pytest.raises(ZeroDivisionError):
        sites_of(lambda: 1 / 0)
    assert not pyro.poutine.runtime._PYRO_STACK
    assert SubsampleMessenger._subsample is draw
