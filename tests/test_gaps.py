"""Gaps equal their closed forms, and looking for them leaves no trace."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import LinearGaussian, ModelGuide, exact_guide, linear_gaussian, make_vae, pair_from, pair_of
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

from pyrovae import networks, posteriors, priors
from pyrovae.diagnostics import gaps
from pyrovae.diagnostics.refine import refine, start
from pyrovae.importance import UnconstrainedLatents, scoring_context
from pyrovae.results import Estimate
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
    _, best = diagonal_gaps(truth, x, offset=0.0, widen=1.0)
    found = gaps(pair_of(truth)[0], exact_guide(truth), x, num_particles=2000, num_steps=400)
    assert close(found.amortization, -best) or found.amortization.value == pytest.approx(-best, rel=0.02)
    assert found.approximation.value == pytest.approx(best, rel=0.02)
    assert close(found.total, 0.0)
    assert "The amortization gap is negative: the guide has a wider family" in str(found)


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
    assert given.refined == found.refined
    assert given.bound.se_monte_carlo is given.total.se_monte_carlo is None
    assert given.overfitting.why == "no refit of the guide was asked for; set refit_epochs"
    for name, high, low in (("amortization", "refined", "ELBO"), ("approximation", "bound", "refined")):
        difference = given.per_datum[high] - given.per_datum[low]
        step = getattr(given, name)
        assert step.value == pytest.approx(difference.mean().item())
        assert step.se_data == pytest.approx(difference.std().item() / math.sqrt(len(x)))


def test_over_fitting_shows_on_new_data_and_not_on_those_that_the_guide_was_fitted_to() -> None:
    truth = linear_gaussian(x_dim=8)
    train, test = truth.sample(5, seed=1), truth.sample(60, seed=2)
    exact_on_train = torch.linalg.lstsq(train - truth.bias, truth.posterior(train).mean).solution

    def guide(x: Tensor) -> None:
        weight = pyro.param("weight", exact_on_train)
        scale = pyro.param("scale", truth.posterior(truth.bias).variance.sqrt(), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - truth.bias) @ weight, scale).to_event(1))

    model, options = pair_of(truth)[0], {"num_particles": 300, "num_steps": 200}
    old = gaps(model, guide, train, refit_epochs=20, **options)
    new = gaps(model, guide, test, refit_epochs=500, **options)
    assert close(old.amortization, 0.0)
    assert abs(old.overfitting.value) < 0.02
    assert new.amortization.value > 1.0
    assert 0.8 * new.amortization.value < new.overfitting.value  # all of it could go away
    assert new.overfitting.value < new.amortization.value + 4 * new.amortization.se_monte_carlo
    assert new.refitted.value - new.elbo.value == pytest.approx(new.overfitting.value)
    assert f"{24 + 3} parameters of the guide were fitted" in str(new)


def state_of(module: nn.Module) -> tuple[list[Any], list[Tensor]]:
    """Return everything that a refit may not change."""
    objects = [(id(p), p.grad, p.requires_grad) for p in module.parameters()]
    return [*objects, [part.training for part in module.modules()]], [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize(("after", "error"), [(12, KeyboardInterrupt), (26, RuntimeError), (None, None)])
def test_everything_is_as_before_also_after_an_exception(after: int | None, error: type[BaseException] | None) -> None:
    vae, runs = make_vae(), itertools.count()
    for parameter in vae.encoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    vae.decoder.requires_grad_(requires_grad=False)
    vae.likelihood.eval()

    def fail(*_: Any) -> None:
        if next(runs) == after:
            raise error("the encoder fails")

    vae.encoder.register_forward_pre_hook(fail)
    x = torch.bernoulli(torch.full((6, 1, 8, 8), 0.5))
    (objects, values), stream, names = state_of(vae), torch.get_rng_state(), set(pyro.get_param_store())
    with pytest.raises(error, match="the encoder fails") if error else contextlib.nullcontext():
        assert gaps(vae.model, vae.guide, x, num_particles=50, num_steps=5, refit_epochs=20).overfitting.value > 0
    assert state_of(vae)[0] == objects
    assert all(map(torch.equal, state_of(vae)[1], values))
    assert torch.equal(stream, torch.get_rng_state())
    assert set(pyro.get_param_store()) == names


def by_hand() -> ModelGuide:
    """Return a pair whose guide is made of parameters of the store, one of them positive."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(pyro.param("slope", torch.tensor(1.5)) * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("guide scale", torch.tensor(0.3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("guide slope", torch.tensor(0.2)) * x, scale))

    return model, guide


def test_a_refit_moves_parameters_of_the_store_and_puts_them_back() -> None:
    model, guide = by_hand()
    x = torch.linspace(-3, 3, 32)
    model(x)
    guide(x)
    before = {name: (p, p.detach().clone()) for name, p in pyro.get_param_store().named_parameters()}
    found = gaps(model, guide, x, num_particles=300, refit_epochs=300)
    assert found.overfitting.value > 0.2
    assert "2 parameters of the guide" in str(found)
    after = dict(pyro.get_param_store().named_parameters())
    assert set(after) == set(before) == {"slope", "guide slope", "guide scale"}
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter.detach(), value)
        assert parameter.grad is None


def test_a_vamp_prior_shares_the_guide_so_that_there_is_no_refit() -> None:
    encoder, posterior = networks.MLPEncoder((4,), (2, 2), hidden=(4,)), posteriors.DiagonalNormal(2)
    prior = priors.Vamp(encoder, posterior, num_components=5)
    vae = small_vae(prior=prior, encoder=encoder, posterior=posterior)
    found = gaps(vae.model, vae.guide, vae.generate(6), **QUICK)
    assert found.overfitting.value is None
    assert found.overfitting.why == "the guide shares all its parameters with the model, which is held fixed"


def test_a_positive_latent_variable_has_the_gaps_of_its_logarithm() -> None:
    x = torch.linspace(-1, 2, 10)
    options = {"num_particles": 400, "num_steps": 200}
    p_z, p_u = (kind(torch.tensor(0.2), 0.9) for kind in (dist.LogNormal, dist.Normal))
    over_z = pair_from(p_z, lambda z, _: dist.Normal(z.log(), 0.5), lambda x: dist.LogNormal(0.5 * x, 0.7))
    over_u = pair_from(p_u, lambda u, _: dist.Normal(u, 0.5), lambda x: dist.Normal(0.5 * x, 0.7))
    over_z, over_u = (gaps(*pair, x, **options) for pair in (over_z, over_u))
    for name in ("elbo", "refined", "bound", "amortization"):
        ours, theirs = getattr(over_z, name), getattr(over_u, name)
        assert ours.value == pytest.approx(theirs.value, abs=1e-9)
    exact = dist.Normal(0.2, math.sqrt(0.9**2 + 0.5**2)).log_prob(x)
    assert over_z.refined.value == pytest.approx(exact.mean().item(), abs=1e-5)


def test_the_same_seed_gives_the_same_numbers_and_batches_only_other_draws(bernoulli: tuple[Any, Tensor]) -> None:
    vae, x = bernoulli
    stream, options = torch.get_rng_state(), {"num_particles": 500, "num_steps": 100, "refit_epochs": 1}
    first, again, parts = (gaps(vae.model, vae.guide, x, batch_size=size, **options) for size in (200, 200, 7))
    assert torch.equal(stream, torch.get_rng_state())
    assert again == first
    for ours, theirs in zip(parts.estimates, first.estimates, strict=True):
        assert ours.value != theirs.value
        assert abs(ours.value - theirs.value) < 4 * math.hypot(ours.se_monte_carlo, theirs.se_monte_carlo) + 0.002
    twice = gaps(vae.model, vae.guide, x[:4].repeat(2, 1), batch_size=4, **QUICK)
    assert (twice.per_datum["refined"][:4] != twice.per_datum["refined"][4:]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_particles": 0}, "`num_particles` of .* must be an integer >= 1, got 0"),
        ({"bound": torch.zeros(2)}, r"one value for each of the 3 data, shape \(3,\), but received \(2,\)"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], words: str) -> None:
    truth = linear_gaussian()
    with pytest.raises(ValueError, match=words):
        gaps(*pair_of(truth), truth.sample(3), **QUICK | change)


def test_values_that_are_not_finite_are_counted() -> None:
    truth = linear_gaussian()
    bound = torch.zeros(5)
    bound[2] = math.nan
    found = gaps(*pair_of(truth), truth.sample(5), bound=bound, **QUICK)
    assert found.bound.value is found.total.value is found.approximation.value is None
    assert found.amortization.value is not None
    assert "1 of 5 data have a value that is not finite" in str(found)
    json.dumps(to_plain(found), allow_nan=False)


def test_limits_of_the_optimizations_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = crossed(0)
    x = truth.sample(20)
    early, late = (
        str(gaps(*pair_of(truth, offset=3.0), x, num_particles=100, num_steps=steps, num_starts=1))
        for steps in (40, 400)
    )
    assert ("still rising" in early, "still rising" in late) == (True, False)
    low = gaps(*pair_of(truth), x, bound=truth.log_prob(x) - 2, num_particles=200, num_steps=60)
    assert low.approximation.value < -1
    assert "The bound lies below the refined Gaussian's ELBO" in str(low)
    monkeypatch.setattr("pyrovae.diagnostics.refine.REFIT_RATE", 3.0)
    worse = gaps(*by_hand(), torch.linspace(-3, 3, 32), **QUICK)
    assert worse.overfitting.value < 0
    assert "The gain of a refit is negative" in str(worse)


def two_modes(slope: float, scale: float) -> ModelGuide:
    """Return a pair whose posterior has two unlike modes, its guide being on the lesser one, which is the lower."""

    def q_z(x: Tensor) -> Any:
        mode = -(slope + (slope**2 + 4 * x).sqrt()) / 2
        return dist.Normal(mode, scale / (2 * mode + slope).abs())

    return pair_from(dist.Normal(torch.zeros(()), 1.0), lambda z, _: dist.Normal(z**2 + slope * z, scale), q_z)


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


def test_the_error_of_a_given_bound_is_carried() -> None:
    truth = linear_gaussian()
    x = truth.sample(20)
    options = {"bound": truth.log_prob(x), **QUICK}
    for variances in (torch.full((20,), 0.04), torch.tensor([[0.01], [0.04]]).expand(2, 20)):
        found = gaps(*pair_of(truth), x, bound_variances=variances, **options)
        assert found.bound.se_monte_carlo == pytest.approx(0.2 / math.sqrt(20))
        for step, other in ((found.approximation, found.refined), (found.total, found.elbo)):
            assert step.se_monte_carlo == pytest.approx(math.hypot(found.bound.se_monte_carlo, other.se_monte_carlo))


def test_refinement_leaves_out_what_is_not_finite() -> None:
    def p_x(z: Tensor, x: Tensor) -> Any:
        return dist.Normal(z * torch.where((x > 0) & (z > 1.0), math.nan, 1.0), 1.0, validate_args=False)

    pair = pair_from(dist.Normal(torch.tensor(0.0), 1.0), p_x, lambda x: dist.Normal(x / 2, 0.5))
    x = torch.tensor([-1.0, 1.0])
    with scoring_context(*pair, (x,), modules=()) as programs, torch.no_grad():
        space = UnconstrainedLatents(programs, (x,), torch.arange(2))
        q, history = refine(space, start(space), num_steps=150)
    assert q.mean.isfinite().all()
    assert q.mean[0].item() == pytest.approx(-0.5, abs=1e-3)
    assert q.scale[0].item() == pytest.approx(0.5**0.5, abs=1e-3)
    assert history[:, 1].isnan().any()
