"""Gaps equal their closed forms, and looking for them leaves no trace."""

from __future__ import annotations

import json
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import LinearGaussian, ModelGuide, TwoLayers, linear_gaussian, make_vae, pair_of
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from pyrovae import networks, posteriors, priors
from pyrovae.diagnostics import gaps
from pyrovae.diagnostics.refine import refine, start
from pyrovae.diagnostics.refit import own_parameters
from pyrovae.importance import UnconstrainedLatents, scoring_context
from pyrovae.results import Estimate, Gaps
from pyrovae.results.record import to_plain
from pyrovae.testing import fit_guide, log_evidence, small_vae

QUICK: dict[str, Any] = {"num_particles": 50, "num_steps": 30, "refit_epochs": 2}


def crossed(seed: int) -> LinearGaussian:
    """Return a linear-Gaussian model of three latent dimensions whose posterior is correlated."""
    generator = torch.Generator().manual_seed(seed)
    return LinearGaussian(torch.randn(5, 3, generator=generator), torch.randn(5, generator=generator), 0.8)


def divergence(mean: Tensor, scale: Tensor, exact: torch.distributions.MultivariateNormal) -> Tensor:
    """Return KL(N(mean, scale^2) || exact), ``(B,)``."""
    q = torch.distributions.MultivariateNormal(mean, scale_tril=torch.diag_embed(scale.expand_as(mean)))
    return torch.distributions.kl_divergence(q, exact)


def diagonal_gaps(truth: LinearGaussian, x: Tensor, *, offset: float, widen: float) -> tuple[float, float]:
    """Return the amortization and the approximation gap of the guide of `pair_of`, in closed form."""
    exact = truth.posterior(x)
    precision = torch.linalg.inv(exact.covariance_matrix).diagonal(dim1=-2, dim2=-1)
    best = divergence(exact.mean, precision.rsqrt(), exact)
    guide = divergence(exact.mean + offset, widen * exact.variance.sqrt(), exact)
    return (guide - best).mean().item(), best.mean().item()


def close(step: Estimate, value: float) -> bool:
    """Tell whether an estimate lies within four standard errors of a value."""
    return abs(step.value - value) <= 4 * step.se_monte_carlo


def test_gaps_of_a_correlated_posterior_equal_their_closed_forms() -> None:
    truth = crossed(5)
    x = truth.sample(30, seed=5)
    expected = diagonal_gaps(truth, x, offset=0.3, widen=1.5)
    assert min(expected) > 0.2
    found = gaps(*pair_of(truth, offset=0.3, widen=1.5), x, num_particles=3000)
    assert found.amortization.value == pytest.approx(expected[0], rel=0.02)
    assert found.approximation.value == pytest.approx(expected[1], rel=0.02)
    assert found.total.value == pytest.approx(sum(expected), rel=0.02)
    assert found.amortization.se_monte_carlo < 0.02 * expected[0]
    assert found.bound.label == "L_6000"
    assert found.overfitting.value is None
    assert "no parameters of the guide were found" in str(found)


def test_nothing_is_missing_where_the_guide_is_the_exact_posterior() -> None:
    truth = linear_gaussian()
    x = truth.sample(25)
    found = gaps(*pair_of(truth), x)
    assert abs(found.approximation.value) < 1e-5  # the gradient is free of noise there
    for step in (found.amortization, found.total):
        assert close(step, 0.0)
        assert step.se_monte_carlo < 0.03
    assert found.refined.value == pytest.approx(truth.log_prob(x).mean().item(), abs=1e-5)


def test_a_full_covariance_makes_the_amortization_gap_negative_by_what_it_gains() -> None:
    truth = crossed(0)
    x = truth.sample(20)
    model, _ = pair_of(truth)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            exact = truth.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.mean, exact.covariance_matrix))

    _, best = diagonal_gaps(truth, x, offset=0.0, widen=1.0)
    found = gaps(model, guide, x, num_particles=2000, num_steps=400)
    assert close(found.amortization, -best) or found.amortization.value == pytest.approx(-best, rel=0.02)
    assert found.approximation.value == pytest.approx(best, rel=0.02)
    assert close(found.total, 0.0)
    assert "can be negative, as it is here" in str(found)
    assert found.share(found.approximation) is None
    assert found.bound.value == pytest.approx(truth.log_prob(x).mean().item(), abs=0.01)


@pytest.fixture(scope="module")
def bernoulli() -> tuple[Any, Tensor]:
    torch.set_default_dtype(torch.float64)
    vae = small_vae()
    x = vae.generate(24)
    fit_guide(vae, x, steps=60)
    return vae, x


def test_bounds_are_in_order_below_log_p(bernoulli: tuple[Any, Tensor]) -> None:
    vae, x = bernoulli
    exact = log_evidence(vae, x).mean().item()
    found = gaps(vae.model, vae.guide, x, num_steps=200)
    assert found.amortization.value > -4 * found.amortization.se_monte_carlo
    assert found.approximation.value > 4 * found.approximation.se_monte_carlo
    for bound in (found.elbo, found.refitted, found.refined, found.bound):
        assert bound.value < exact + 4 * bound.se_monte_carlo
    assert close(found.bound, exact)
    given = gaps(vae.model, vae.guide, x, bound=log_evidence(vae, x), bound_label="grid", num_steps=200, refit_epochs=0)
    assert given.bound.label == "grid"
    assert given.bound.value == pytest.approx(exact, abs=1e-12)
    assert given.refined == found.refined
    assert given.bound.se_monte_carlo is given.total.se_monte_carlo is None
    assert given.overfitting.why == "no refit of the guide was asked for; set refit_epochs"
    for name, high, low in (("amortization", "refined", "ELBO"), ("approximation", "bound", "refined")):
        difference = given.per_datum[high] - given.per_datum[low]
        step = getattr(given, name)
        assert step.value == pytest.approx(difference.mean().item())
        assert step.se_data == pytest.approx(difference.std().item() / math.sqrt(len(x)))


class LinearGuide(nn.Module):
    """A guide whose mean is linear in x, for a model that it does not share anything with."""

    def __init__(self, truth: LinearGaussian, weight: Tensor) -> None:
        super().__init__()
        self.truth, self.model = truth, pair_of(truth)[0]
        self.mean = nn.Linear(len(truth.bias), truth.weight.shape[1], bias=False)
        self.log_scale = nn.Parameter(truth.posterior(truth.bias).variance.sqrt().log())
        self.mean.weight.data = weight

    def guide(self, x: Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean(x - self.truth.bias), self.log_scale.exp()).to_event(1))


def test_over_fitting_shows_on_new_data_and_not_on_those_that_the_guide_was_fitted_to() -> None:
    truth = linear_gaussian(x_dim=8)
    train, test = truth.sample(5, seed=1), truth.sample(60, seed=2)
    mean = truth.posterior(train).mean
    weight = torch.linalg.lstsq(train - truth.bias, mean).solution.T  # of least norm: exact on the five
    pair = LinearGuide(truth, weight)
    options = {"num_particles": 300, "num_steps": 200}
    old = gaps(pair.model, pair.guide, train, refit_epochs=20, **options)
    new = gaps(pair.model, pair.guide, test, refit_epochs=500, **options)
    assert close(old.amortization, 0.0)
    assert abs(old.overfitting.value) < 0.02
    assert new.amortization.value > 1.0
    assert new.overfitting.value > 0.8 * new.amortization.value  # all of it could go away
    assert new.overfitting.value < new.amortization.value + 4 * new.amortization.se_monte_carlo
    assert new.refitted.value - new.elbo.value == pytest.approx(new.overfitting.value)
    assert new.overfitting.se_monte_carlo < 0.8 * new.amortization.se_monte_carlo * math.sqrt(2)
    assert f"{24 + 3} parameters of the guide were fitted" in str(new)


def state_of(module: nn.Module) -> list[Any]:
    """Return everything that a refit may not change."""
    tensors = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in module.parameters()]
    return [*tensors, [part.training for part in module.modules()]]


def check_same(module: nn.Module, before: list[Any]) -> None:
    *tensors, modes = before
    assert modes == [part.training for part in module.modules()]
    for (parameter, value, gradient, required), now in zip(tensors, module.parameters(), strict=True):
        assert now is parameter
        assert torch.equal(now.detach(), value)
        assert now.grad is gradient
        assert now.requires_grad is required


class Failing(nn.Module):
    """An encoder that fails when it has been run a number of times in evaluation mode."""

    def __init__(self, inner: nn.Module, after: int, error: type[BaseException]) -> None:
        super().__init__()
        self.inner, self.left, self.error = inner, after, error
        self.x_shape = inner.x_shape

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise self.error("the encoder fails")
        return self.inner(x)


@pytest.mark.parametrize(("after", "error"), [(12, KeyboardInterrupt), (26, RuntimeError), (10_000, RuntimeError)])
def test_everything_is_as_before_also_after_an_exception(after: int, error: type[BaseException]) -> None:
    vae = make_vae()
    for parameter in vae.encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    vae.decoder.requires_grad_(requires_grad=False)
    vae.likelihood.eval()
    vae.encoder = Failing(vae.encoder, after, error)
    x = torch.bernoulli(torch.full((6, 1, 8, 8), 0.5))
    before, stream, names = state_of(vae), torch.get_rng_state(), set(pyro.get_param_store())

    def run() -> Gaps:
        return gaps(vae.model, vae.guide, x, num_particles=50, num_steps=5, refit_epochs=20)

    if after == 10_000:
        assert run().overfitting.value > 0
    else:
        with pytest.raises(error, match="the encoder fails"):
            run()
    check_same(vae, before)
    assert torch.equal(stream, torch.get_rng_state())
    assert set(pyro.get_param_store()) == names


def by_hand() -> ModelGuide:
    """Return a pair whose guide is made of parameters of the store, one of them positive."""

    def model(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("guide slope", torch.tensor(0.2))
        scale = pyro.param("guide scale", torch.tensor(0.3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, scale))

    return model, guide


@pytest.mark.parametrize("stored", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_refit_moves_parameters_of_the_store_and_puts_them_back(stored: bool) -> None:  # noqa: FBT001
    model, guide = by_hand()
    x = torch.linspace(-3, 3, 32)
    if stored:
        model(x)
        guide(x)
    before = {name: (p, p.detach().clone()) for name, p in pyro.get_param_store().named_parameters()}
    found = gaps(model, guide, x, num_particles=300, refit_epochs=300)
    assert found.overfitting.value > 0.2
    assert found.overfitting.value < found.amortization.value + 4 * found.amortization.se_monte_carlo
    assert "2 parameters of the guide" in str(found)
    after = dict(pyro.get_param_store().named_parameters())
    assert set(after) == set(before) == ({"slope", "guide slope", "guide scale"} if stored else set())
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter.detach(), value)
        assert parameter.grad is None


def test_parameters_of_the_guide_alone_are_found() -> None:
    vae = make_vae()
    x = torch.bernoulli(torch.full((4, 1, 8, 8), 0.5))

    def own() -> tuple[set[int], int, str | None]:
        with scoring_context(vae.model, vae.guide, (x,), modules=()) as pair:
            found, shared, why = own_parameters(pair, (x,))
        return {id(parameter) for parameter in found}, shared, why

    encoder = [id(parameter) for parameter in vae.encoder.parameters()]
    assert own() == (set(encoder), 0, None)
    next(vae.encoder.parameters()).requires_grad = False
    assert own() == (set(encoder[1:]), 0, None)
    for parameter in vae.encoder.parameters():
        parameter.requires_grad = False
    assert own() == (set(encoder), 0, None)
    assert not any(parameter.requires_grad for parameter in vae.encoder.parameters())


def test_a_vamp_prior_shares_the_guide_so_that_there_is_no_refit() -> None:
    encoder, posterior = networks.MLPEncoder((4,), (2, 2), hidden=(4,)), posteriors.DiagonalNormal(2)
    prior = priors.Vamp(encoder, posterior, num_components=5)
    vae = small_vae(prior=prior, encoder=encoder, posterior=posterior)
    found = gaps(vae.model, vae.guide, vae.generate(6), **QUICK)
    assert found.overfitting.value is None
    assert found.overfitting.why == "the guide shares all its parameters with the model, which is held fixed"
    assert "over-fitting" in str(found).splitlines()[-1]
    assert found.refined.value is not None


def test_a_flow_is_told_from_a_diagonal_gaussian() -> None:
    torch.manual_seed(3)
    vae = small_vae(posterior=posteriors.IAF(2, num_layers=2))
    for layer in vae.posterior.layers:
        nn.init.normal_(layer.layers[-1].weight, std=0.5)
    found = gaps(vae.model, vae.guide, vae.generate(8), num_particles=200, num_steps=100, refit_epochs=1)
    assert "The guide is not a diagonal Gaussian over the unconstrained latent vector" in str(found)
    assert found.overfitting.value is not None
    assert found.bound.label == "L_400"


@pytest.mark.slow
def test_two_layers() -> None:
    pair = TwoLayers(bottom_up=True)
    x = torch.bernoulli(torch.full((12, 4), 0.5))
    before = state_of(pair)
    found = gaps(pair.model, pair.guide, x, num_particles=1000, num_steps=200, refit_epochs=10)
    check_same(pair, before)
    assert "not a diagonal Gaussian" in str(found)
    assert found.overfitting.value > 0
    bounds = (found.elbo, found.refined, found.bound)
    assert found.bound.value > max(bound.value for bound in bounds[:2])
    own = {id(p) for layer in (pair.q1, pair.q2) for p in layer.parameters()}
    with scoring_context(pair.model, pair.guide, (x,), modules=()) as structure:
        assert {id(p) for p in own_parameters(structure, (x,))[0]} == own


def log_normal(*, positive: bool) -> ModelGuide:
    """Return a pair over z > 0, or the same one over u = log z."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if positive:
                log_z = pyro.sample("z", dist.LogNormal(torch.tensor(0.2), 0.9)).log()
            else:
                log_z = pyro.sample("z", dist.Normal(torch.tensor(0.2), 0.9))
            pyro.sample("x", dist.Normal(log_z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        kind = dist.LogNormal if positive else dist.Normal
        with pyro.plate("data", len(x)):
            pyro.sample("z", kind(0.5 * x, 0.7))

    return model, guide


def test_a_positive_latent_variable_has_the_gaps_of_its_logarithm() -> None:
    x = torch.linspace(-1, 2, 10)
    options = {"num_particles": 400, "num_steps": 200}
    over_z, over_u = (gaps(*log_normal(positive=positive), x, **options) for positive in (True, False))
    for name in ("elbo", "refined", "bound", "amortization"):
        ours, theirs = getattr(over_z, name), getattr(over_u, name)
        assert ours.value == pytest.approx(theirs.value, abs=1e-9)
    exact = dist.Normal(0.2, math.sqrt(0.9**2 + 0.5**2)).log_prob(x)
    assert over_z.refined.value == pytest.approx(exact.mean().item(), abs=1e-5)
    assert "not a diagonal Gaussian" not in str(over_z)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_batches_only_other_draws(bernoulli: tuple[Any, Tensor]) -> None:
    vae, x = bernoulli
    options = {"num_particles": 500, "num_steps": 100, "refit_epochs": 2}
    torch.manual_seed(5)
    first = gaps(vae.model, vae.guide, x, **options)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    assert gaps(vae.model, vae.guide, x, **options) == first
    other, parts = (gaps(vae.model, vae.guide, x, **options, **more) for more in ({"seed": 1}, {"batch_size": 7}))
    for found in (other, parts):
        assert found.elbo.value != first.elbo.value
        for ours, theirs in zip(found.estimates, first.estimates, strict=True):
            error = math.hypot(ours.se_monte_carlo, theirs.se_monte_carlo)
            assert abs(ours.value - theirs.value) < 4 * error + 0.002
    twice = gaps(vae.model, vae.guide, x[:4].repeat(2, 1), batch_size=4, num_particles=50, num_steps=20, refit_epochs=0)
    for values in twice.per_datum.values():
        assert (values[:4] != values[4:]).all()
    short = gaps(vae.model, vae.guide, x[:7], batch_size=7, num_particles=500, num_steps=100, refit_epochs=0)
    assert torch.equal(short.per_datum["refined"], parts.per_datum["refined"][:7])


@pytest.mark.slow
def test_a_pair_that_draws_its_own_rows() -> None:
    truth = linear_gaussian()
    x = truth.sample(10)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ truth.weight.T + truth.bias, truth.scale).to_event(1), obs=x[rows])

    def guide(x: Tensor) -> None:
        bias = pyro.param("bias", torch.zeros(3))
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            exact = truth.posterior(x[rows])
            pyro.sample("z", dist.Normal(exact.mean + bias, exact.variance.sqrt()).to_event(1))

    found = gaps(model, guide, x, num_particles=200, num_steps=200, refit_epochs=5)
    assert (found.per_datum["refined"] - truth.log_prob(x)).abs().max() < 0.01
    assert abs(found.overfitting.value) < 0.05


def test_a_single_datum_has_monte_carlo_errors_alone(bernoulli: tuple[Any, Tensor]) -> None:
    vae, x = bernoulli
    found = gaps(vae.model, vae.guide, x[:1], **QUICK)
    for estimate in found.estimates:
        assert estimate.se_data is None
        assert estimate.se_monte_carlo > 0
    assert str(found).splitlines()[-1] == "a single datum has no standard error"
    one = gaps(vae.model, vae.guide, x[:2], num_particles=1, num_steps=3, refit_epochs=1)
    assert one.elbo.se_monte_carlo is None
    assert one.bound.label == "L_2"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_particles": 0}, "`num_particles` must be an integer >= 1, got 0"),
        ({"refit_epochs": -1}, "`refit_epochs` must be an integer >= 0, got -1"),
        (
            {"bound_variances": torch.zeros(3)},
            r"bound_variances belong to the bound, .* received \(3,\) and no bound",
        ),
        (
            {"bound": torch.zeros(3), "bound_variances": torch.zeros(2)},
            r"one for each of the 3 data, but received \(2,\)",
        ),
        ({"batch_size": True}, "`batch_size` must be an integer >= 1, got True"),
        ({"bound": torch.zeros(2)}, r"one value for each of the 3 data, shape \(3,\), but received \(2,\)"),
        ({"bound": -3.0}, "but received float; give for instance per_datum"),
        ({"x": torch.zeros(0, 4)}, "the data set is empty; give at least one datum"),
        ({"x": torch.full((3, 4), math.nan)}, "the data hold 12 values that are NaN or infinite"),
        ({"x": torch.full((3, 4), 0.5)}, "Bernoulli scores data that are 0 or 1"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    vae = small_vae()
    options = {"x": torch.ones(3, 4), **QUICK, **change}
    x = options.pop("x").to(torch.get_default_dtype())
    with pytest.raises(ValueError, match=words):
        gaps(vae.model, vae.guide, x, **options)


def test_values_that_are_not_finite_are_counted() -> None:
    truth = linear_gaussian()
    x = truth.sample(5)
    bound = truth.log_prob(x)
    bound[2] = math.nan
    found = gaps(*pair_of(truth), x, bound=bound, **QUICK)
    assert found.bound.value is found.total.value is found.approximation.value is None
    assert found.amortization.value is not None
    assert "1 of 5 data have a value that is not finite" in str(found)
    json.dumps(to_plain(found), allow_nan=False)


def test_a_refinement_that_stops_early_says_so_and_a_long_one_does_not() -> None:
    truth = crossed(0)
    x = truth.sample(20)
    pair = pair_of(truth, offset=3.0)
    early, late = (gaps(*pair, x, num_particles=100, num_steps=steps, num_starts=1) for steps in (40, 400))
    assert "The refinement was still rising" in str(early)
    assert "The refinement was still rising" not in str(late)


def two_modes(slope: float, scale: float) -> ModelGuide:
    """Return a pair whose posterior has two unlike modes, its guide being on the lesser one, which is the lower."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z**2 + slope * z, scale), obs=x)

    def guide(x: Tensor) -> None:
        mode = -(slope + (slope**2 + 4 * x).sqrt()) / 2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mode, scale / (2 * mode + slope).abs()))

    return model, guide


def best_gaussian(x: Tensor, slope: float, scale: float) -> Tensor:
    """Return the largest ELBO of a Gaussian over the z of `two_modes`, by quadrature on a grid of Gaussians."""
    nodes, weights = (torch.tensor(value) for value in hermegauss(40))
    mean, log_scale = torch.linspace(-3, 3, 301)[:, None, None], torch.linspace(-4, 0.5, 91)[:, None]
    z = mean + log_scale.exp() * nodes  # (means, scales, nodes)
    found = []
    for each in x:
        log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2 + slope * z, scale).log_prob(each)
        elbo = (log_joint * weights).sum(-1) / weights.sum() + log_scale[:, 0] + 0.5 * math.log(2 * math.pi * math.e)
        found.append(elbo.amax())
    return torch.stack(found)


def test_the_best_gaussian_is_found_on_whichever_mode_it_lies() -> None:
    x = torch.linspace(1.0, 4.0, 6)
    exact = best_gaussian(x, 1.0, 0.3)
    one, several = (
        gaps(*two_modes(1.0, 0.3), x, num_steps=200, refit_epochs=0, num_starts=starts) for starts in (1, 3)
    )
    assert (exact - one.per_datum["refined"]).min() > 0.9
    assert (exact - several.per_datum["refined"]).abs().max() < 0.1
    assert several.amortization.value == pytest.approx((exact - several.per_datum["ELBO"]).mean().item(), abs=0.02)
    assert "For 6 of 6 data the best Gaussian was reached from a draw of the prior" in str(several)
    assert several.settings["num_starts"] == 3
    truth = linear_gaussian()
    assert "several modes" not in str(gaps(*pair_of(truth, offset=0.3), truth.sample(20), **QUICK | {"num_steps": 100}))


def test_a_refit_that_makes_the_guide_worse_is_no_over_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrovae.diagnostics.refit.LEARNING_RATE", 3.0)
    model, guide = by_hand()
    found = gaps(model, guide, torch.linspace(-3, 3, 32), **QUICK)
    assert found.overfitting.value < 0
    assert "The over-fitting is negative: the refit ended with a lower ELBO" in " ".join(str(found).split())


def test_the_error_of_a_given_bound_is_carried() -> None:
    truth = linear_gaussian()
    x = truth.sample(20)
    options = {"bound": truth.log_prob(x), **QUICK}
    for variances in (torch.full((20,), 0.04), torch.tensor([[0.01], [0.04]]).expand(2, 20)):
        found = gaps(*pair_of(truth), x, bound_variances=variances, **options)
        assert found.bound.se_monte_carlo == pytest.approx(0.2 / math.sqrt(20))
        for step, other in ((found.approximation, found.refined), (found.total, found.elbo)):
            assert step.se_monte_carlo == pytest.approx(math.hypot(found.bound.se_monte_carlo, other.se_monte_carlo))


def test_a_bound_below_the_refined_gaussian_is_named() -> None:
    truth = crossed(0)
    x = truth.sample(20)
    found = gaps(*pair_of(truth), x, bound=truth.log_prob(x) - 2, num_particles=200, num_steps=60)
    assert found.approximation.value < -1
    assert "The bound lies below the refined Gaussian's ELBO" in str(found)


def test_refinement_leaves_out_what_is_not_finite() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            bad = torch.where((x > 0) & (z > 1.0), math.nan, 1.0)
            pyro.sample("x", dist.Normal(z * bad, 1.0, validate_args=False), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5))

    x = torch.tensor([-1.0, 1.0])
    with scoring_context(model, guide, (x,), modules=()) as pair, torch.no_grad():
        space = UnconstrainedLatents(pair, (x,), torch.arange(2))
        q, history = refine(space, start(space), num_steps=150)
    assert q.mean.isfinite().all()
    assert q.mean[0].item() == pytest.approx(-0.5, abs=1e-3)
    assert q.scale[0].item() == pytest.approx(0.5**0.5, abs=1e-3)
    assert history[:, 1].isnan().any()
    assert not history[:, 0].isnan().any()
