"""Annealed importance sampling and bidirectional Monte Carlo against known log p(x)."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import (
    LinearGaussian,
    ModelGuide,
    guide_from,
    likelihood_of,
    linear_gaussian,
    make_vae,
    model_from,
    pair_from,
    pair_of,
    posterior_of,
    program,
    standard_normal,
)
from torch import Tensor

import pyrovae
from pyrovae import bounds, diagnostics, likelihoods, priors
from pyrovae.bounds import annealed_importance as bdmc_file
from pyrovae.bounds import hmc as hmc_file
from pyrovae.bounds.hmc import Kernel, Path, transition
from pyrovae.importance import UnconstrainedLatents, scoring_context, simulate
from pyrovae.results import AnnealingSettings, Sandwich
from pyrovae.testing import log_evidence, small_vae


def excess(values: Tensor) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(values.numel())


def check_sandwich(
    pair: ModelGuide, *args: Tensor, exact: Callable[..., Tensor], width: float, **options: Any
) -> tuple[Sandwich, Tensor]:
    """Check that the bounds of simulated data lie on their sides of log p, no further apart than the width.

    Returns the bounds and log p of each datum, a function of the simulated arguments.
    """
    batches: list[tuple[Tensor, ...]] = []

    def recorded(*args: Any) -> Any:
        simulated, z = simulate(*args)
        batches.append(simulated)
        return simulated, z

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bdmc_file, "simulate", recorded)
        sandwich = bounds.bdmc(*pair, *args, **options)
    truth = exact(*(torch.cat(parts)[: sandwich.num_data] for parts in zip(*batches, strict=True)))
    low, low_error = excess(sandwich.per_datum["AIS"] - truth)
    high, high_error = excess(sandwich.per_datum["BDMC"] - truth)
    assert low < 4 * low_error + 1e-9
    assert high > -4 * high_error - 1e-9
    gap, error = excess(sandwich.per_datum["BDMC"] - sandwich.per_datum["AIS"])
    assert sandwich.gap.value == pytest.approx(gap)
    assert gap < width + 4 * error + 1e-9
    return sandwich, truth


def kernel_of(
    pair: ModelGuide, x: Tensor, *, steps: list[float], num_leapfrog: int = 2
) -> tuple[UnconstrainedLatents, Kernel]:
    """Return transitions with given step sizes, in units of 1."""
    with scoring_context(*pair, (x,), modules=()) as found:
        space = UnconstrainedLatents(found, (x,), torch.arange(len(x)))
    path = Path(space, chunk_size=2**20)
    sizes = torch.tensor(steps).reshape(-1, 1, 1).expand(-1, len(x), 1)
    return space, Kernel(path, torch.ones(len(x), space.dim), sizes, num_leapfrog)


# ---- the chains


def test_weights_of_coarse_steps_have_mean_p() -> None:
    truth = linear_gaussian(latent_dim=2, x_dim=3, scale=1.5)
    x = truth.sample(4)
    exact = truth.log_prob(x)
    _, kernel = kernel_of(pair_of(truth, offset=0.5, widen=1.3), x, steps=[0.9, 1.3, 1.1])
    with torch.no_grad():
        forward, accepted = kernel.forward(30_000)
        backward, accepted_back = kernel.backward(truth.posterior(x).sample((30_000,)))
    assert 0.3 < accepted.mean() < 0.85  # coarse enough that the correction matters
    assert 0.3 < accepted_back.mean() < 0.85
    for ratio in ((forward - exact).exp(), (exact - backward).exp()):
        mean, error = excess(ratio)
        assert error < 0.01
        assert abs(mean - 1) < 4 * error
    assert forward.var() > 0.01


def test_transition_leaves_the_path_invariant() -> None:
    truth, beta = LinearGaussian(torch.tensor([[1.0]]), torch.zeros(1), 0.8), 0.4
    x = torch.tensor([[1.0]])
    _, kernel = kernel_of(pair_of(truth, offset=0.7, widen=1.5), x, steps=[1.0], num_leapfrog=1)
    posterior = truth.posterior(x)
    start_mean, start_precision = posterior.mean.item() + 0.7, 1 / (1.5**2 * posterior.variance.item())
    precision = (1 - beta) * start_precision + beta * (1 + 1 / 0.64)
    mean = ((1 - beta) * start_mean * start_precision + beta / 0.64) / precision
    state = kernel.path.at(mean + torch.randn(200_000, 1, 1) / math.sqrt(precision))
    for stride in (0.6, 1.2):
        moved, accepted = transition(kernel.path, state, beta, torch.full((1, 1), stride), 1)
        assert accepted.mean() < 0.97
        for power in (1, 2, 4):
            difference = (moved.u - mean) ** power - (state.u - mean) ** power
            shift, error = excess(difference)
            assert abs(shift) < 4 * error
        assert torch.allclose(moved.log_density(beta), kernel.path.at(moved.u).log_density(beta))
        assert torch.allclose(moved.slope(beta), -precision * (moved.u - mean))
        assert (moved.u != state.u).float().mean().item() == pytest.approx(accepted.mean().item(), abs=0.01)


# ---- bounds against known log p(x)


@pytest.mark.parametrize(("offset", "widen"), [(0.0, 1.0), (0.2, 0.6)])
def test_linear_gaussian_lies_between(offset: float, widen: float) -> None:
    truth = linear_gaussian()
    pair = pair_of(truth, offset=offset, widen=widen)
    sandwich, exact = check_sandwich(pair, truth.sample(60), exact=truth.log_prob, width=0.1, num_temperatures=12)
    if (offset, widen) == (0.0, 1.0):
        assert sandwich.per_datum["BDMC"].sub(exact).abs().max() < 1e-9


def vamp() -> dict[str, Any]:
    plain = small_vae()
    prior = priors.Vamp(plain.encoder, plain.posterior, num_components=3, data=torch.rand(3, 4))
    return {"prior": prior, "encoder": plain.encoder, "posterior": plain.posterior}


@pytest.mark.parametrize("parts", [vamp, lambda: {"likelihood": likelihoods.Categorical((2,), 4)}])
def test_parts_lie_between(parts: Callable[[], dict[str, Any]]) -> None:
    vae = small_vae(**parts())
    x, exact = vae.decode(torch.randn(24, 2)).sample(), functools.partial(log_evidence, vae)
    check_sandwich((vae.model, vae.guide), x, exact=exact, width=0.2, num_temperatures=10)


def test_two_layers_lie_between() -> None:
    """B ~ N(0, I), a ~ N(b, I), x ~ N(a, I), and a guide that draws a first."""

    def model(x: Tensor) -> None:
        b = pyro.sample("b", standard_normal(3))
        a = pyro.sample("a", dist.Normal(b, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(a, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.5 * x, 0.9).to_event(1))
        pyro.sample("b", dist.Normal(0.4 * a, 0.8).to_event(1))

    exact = dist.Normal(torch.zeros(3), math.sqrt(3)).to_event(1).log_prob
    check_sandwich((program(model), program(guide)), torch.zeros(40, 3), exact=exact, width=0.1, num_temperatures=12)


def test_constrained_latents_lie_between() -> None:
    p_z = dist.LogNormal(torch.tensor(0.0), 1.0)
    pair = pair_from(p_z, lambda z, _: dist.Normal(z.log(), 0.5), lambda x: dist.LogNormal(0.7 * x, 0.6))
    exact = dist.Normal(0.0, math.sqrt(1.25)).log_prob
    check_sandwich(pair, torch.zeros(40), exact=exact, width=0.1, num_temperatures=12)


def test_angles_lie_between() -> None:
    """Chains that leave [-pi, pi], where torch's density goes on, would lose a part of p(x)."""
    p_z = dist.VonMises(torch.tensor(0.0), torch.tensor(0.5))
    pair = pair_from(p_z, lambda z, _: dist.Normal(z, 1.5), lambda x: dist.VonMises(0 * x, 0.7))

    def exact(x: Tensor) -> Tensor:
        z = torch.linspace(-math.pi, math.pi, 20_001)
        joint = p_z.log_prob(z) + dist.Normal(z, 1.5).log_prob(x.unsqueeze(-1))
        return joint.logsumexp(1) + (z[1] - z[0]).log()

    check_sandwich(pair, torch.zeros(60), exact=exact, width=0.05, num_temperatures=20, num_chains=4)


def test_simulated_gap_is_unbiased_over_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / v has mean 1 / p(x) only if z is a draw of the posterior and no transition knows it."""
    truth = linear_gaussian(latent_dim=2, x_dim=3, scale=1.5)
    monkeypatch.setattr(hmc_file, "ACCEPTANCE", 0.5)
    pair, few = pair_of(truth, offset=0.2, widen=1.3), {"num_chains": 1, "num_temperatures": 3, "batch_size": 4000}
    sandwich, exact = check_sandwich(pair, truth.sample(4000), exact=truth.log_prob, width=1.0, **few)
    assert sandwich.acceptance < 0.7
    for ratio in (sandwich.per_datum["AIS"] - exact, exact - sandwich.per_datum["BDMC"]):
        mean, error = excess(ratio.exp())
        assert error < 0.04
        assert abs(mean - 1) < 4 * error


def test_nothing_but_the_upper_bound_sees_the_simulated_z(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = linear_gaussian()
    pair, x = pair_of(truth, widen=1.4), truth.sample(5)
    before = bounds.bdmc(*pair, x, num_temperatures=4)

    def displaced(*args: Any) -> Any:
        simulated, z = simulate(*args)
        return simulated, {name: value + 1 for name, value in z.items()}

    monkeypatch.setattr(bdmc_file, "simulate", displaced)
    after = bounds.bdmc(*pair, x, num_temperatures=4)
    assert torch.equal(before.per_datum["AIS"], after.per_datum["AIS"])
    assert torch.equal(before.per_datum["acceptance"], after.per_datum["acceptance"])
    assert (after.per_datum["BDMC"] - before.per_datum["BDMC"]).abs().min() > 1e-3


# ---- what is random, and what is left as it was


def test_same_seed_same_numbers_and_batches_have_streams_of_their_own() -> None:
    truth = linear_gaussian()
    pair, x = pair_of(truth, widen=1.4), truth.sample(12)
    options = {"num_temperatures": 3, "num_chains": 4, "batch_size": 4}
    annealed = bounds.ais(*pair, x, **options)
    again = bounds.ais(*pair, x, **options)
    assert annealed == again
    assert all(torch.equal(annealed.per_datum[name], again.per_datum[name]) for name in annealed.per_datum)
    first = bounds.ais(*pair, x[:4], **options).per_datum["AIS"]
    assert torch.allclose(first, annealed.per_datum["AIS"][:4], rtol=1e-12)
    twice = bounds.ais(*pair, x[:4].repeat(2, 1), **options).per_datum["AIS"]
    assert torch.allclose(twice[:4], first, rtol=1e-12)
    assert (twice[4:] - first).abs().min() > 1e-6
    other = bounds.ais(*pair, x, **options, seed=1).per_datum["AIS"]
    assert (other - annealed.per_datum["AIS"]).abs().min() > 1e-6


def test_pilot_has_draws_of_its_own_and_finds_each_datum_its_steps() -> None:
    truth = linear_gaussian()
    exact = truth.posterior(torch.zeros(5)).variance.sqrt()
    widen = torch.tensor([1.0, 5.0]).repeat(15).unsqueeze(1)
    model = model_from(standard_normal(3), likelihood_of(truth))
    pair = model, guide_from(lambda x, widen: dist.Normal(truth.posterior(x).mean, widen * exact).to_event(1))
    args, settings = (truth.sample(30), widen), AnnealingSettings(num_temperatures=20)
    with scoring_context(*pair, args, modules=()) as programs, torch.no_grad():
        kernel, again, other = (
            hmc_file.frozen_kernel(programs, args, torch.arange(30), settings, number=number) for number in (0, 0, 1)
        )
        _, accepted = kernel.forward(50)
    assert torch.equal(kernel.steps, again.steps)
    assert not torch.equal(kernel.steps, other.steps)
    assert kernel.scale == pytest.approx(widen * exact, rel=0.5)
    assert kernel.steps[-1, ::2].mean() > 2 * kernel.steps[-1, 1::2].mean()
    assert 0.8 < accepted.min() <= accepted.max() < 0.97


def test_chunks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae()
    x = torch.bernoulli(torch.full((6, 1, 8, 8), 0.5))
    whole = bounds.bdmc(vae.model, vae.guide, x, num_temperatures=4, num_chains=4, batch_size=6)
    monkeypatch.setattr(hmc_file, "rows_per_chunk", lambda *_, **__: 18)
    pieces = bounds.bdmc(vae.model, vae.guide, x, num_temperatures=4, num_chains=4, batch_size=6)
    for name, value in whole.per_datum.items():
        assert torch.allclose(value, pieces.per_datum[name], rtol=1e-8)


def test_a_pair_that_does_not_broadcast_lies_between() -> None:
    truth = linear_gaussian()
    shift = torch.linspace(-20, 20, 9).unsqueeze(1)
    x, weight = truth.sample(9) + shift, torch.cat([truth.weight.T, torch.ones(1, 5)])
    posterior = posterior_of(truth, widen=1.3)
    pair = pair_from(
        standard_normal(3),
        lambda z, x, shift: dist.Normal(torch.cat([z, shift], 1) @ weight + truth.bias, truth.scale).to_event(1),
        lambda x, shift: posterior(x - shift),
    )
    options = {"num_temperatures": 8, "num_chains": 16}
    annealed = bounds.ais(*pair, x, shift, **options)
    assert (annealed.per_datum["AIS"] - truth.log_prob(x - shift)).abs().max() < 0.5
    assert annealed.bound.value - truth.log_prob(x - shift).mean().item() < 4 * annealed.bound.se_monte_carlo

    def exact(x: Tensor, given: Tensor) -> Tensor:
        assert torch.equal(given, shift.repeat(3, 1)[:20])
        return truth.log_prob(x - given)

    check_sandwich(pair, x, shift, exact=exact, width=0.1, num_data=20, **options)


# ---- data simulated from the model


def simulated(p_x: Callable[..., Any], observe: Callable[..., Any], *args: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """Return simulated arguments and z of a model that observes a function of x."""
    model = program(
        lambda *args: pyro.sample("x", p_x(pyro.sample("z", standard_normal(2)), *args), obs=observe(*args))
    )
    with scoring_context(model, guide_from(lambda *_: standard_normal(2)), args, modules=()) as programs:
        return simulate(programs, args, torch.arange(len(args[0])))


def repeated(z: Tensor, shape: tuple[int, ...], scale: Any = 0.1) -> Any:
    loc = z.repeat_interleave(2, -1).reshape(*z.shape[:-1], *shape)
    return dist.Normal(loc, scale).to_event(len(shape))


@pytest.mark.parametrize("observe", [lambda x: x, lambda x: x.flatten(1), lambda x: x.mT, lambda x: x[:, [0, 1]]])
def test_simulated_data_take_the_place_of_the_argument(observe: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(5, 2, 2)
    kept, shape = x.clone(), observe(x).shape[1:]
    (new,), z = simulated(lambda z, _: repeated(z, shape), observe, x)
    assert torch.equal(x, kept)
    distance = (observe(new) - z["z"][0].repeat_interleave(2, -1).reshape(5, *shape)).abs()
    assert 0.02 < distance.mean() < 0.2


def test_several_observed_sites_and_parts_of_an_argument() -> None:
    def p_x(z: Tensor, x: Tensor, y: Tensor) -> Any:
        pyro.sample("left", dist.Normal(z[..., :1], 0.01).to_event(1), obs=x[:, :1])
        pyro.sample("y", dist.Normal(pyro.deterministic("mean", z.sum(-1)), 0.01), obs=y)
        return dist.Normal(z[..., 1], 0.01)

    x, y = torch.full((50, 3), 7.0), torch.zeros(50)
    (new_x, new_y), z = simulated(p_x, lambda x, _: x[:, 1], x, y)
    assert (new_x[:, :2] - z["z"][0]).abs().max() < 0.05
    assert torch.equal(new_x[:, 2], x[:, 2])
    assert (new_y - z["z"][0].sum(-1)).abs().max() < 0.05
    assert (z["z"].std() - 1).abs() < 0.3


@pytest.mark.parametrize(
    ("scale", "observe", "message"),
    [
        (lambda _: 0.1, lambda x: 2 * x, r"what 'x' observes is not an argument of the model .* write obs=x"),
        (lambda _: 0.1, lambda x: x[:, [0, 2, 1, 3]], r"what 'x' observes is not an argument of the model .* write"),
        (lambda x: x.abs() + 0.1, lambda x: x, r"the probability of 'x' changes when simulated data"),
        (lambda _: 0.1, lambda x: x.abs(), r"'x' does not observe the simulated data .* but something made of them"),
    ],
)
def test_models_that_cannot_be_simulated_are_refused(scale: Any, observe: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulated(lambda z, x: repeated(z, (4,), scale(x)), observe, torch.rand(5, 4))


# ---- numbers that are not finite, and records


class Patchy(dist.Normal):
    """A likelihood that is 0 left of 0, NaN right of 3, and NaN of any z for x > 50."""

    def log_prob(self, value: Tensor) -> Tensor:
        level = torch.where(self.loc > 0, super().log_prob(value + self.loc), -math.inf)
        return torch.where((self.loc > 3) | (value > 50), math.nan, level)


@pytest.mark.filterwarnings("ignore:Encountered")
def test_proposals_that_are_not_finite_are_rejected() -> None:
    x = torch.cat([torch.zeros(40), torch.full((2,), 60.0)])
    p_z, q_z = dist.Normal(torch.tensor(0.0), 1.0), dist.Normal(torch.tensor(0.0), 1.5)
    pair = pair_from(p_z, lambda z, _: Patchy(z, 1.0), lambda x: q_z.expand([len(x)]))
    annealed = bounds.ais(*pair, x, num_temperatures=8, num_chains=64)
    normal = dist.Normal(0.0, 1.0)
    exact = (normal.log_prob(torch.tensor(0.0)) + math.log(normal.cdf(torch.tensor(3.0)) - 0.5)).item()
    mean, error = excess(annealed.per_datum["AIS"][:40] - exact)
    assert abs(mean) < 4 * error
    assert error < 0.05
    assert annealed.num_not_finite == 2
    assert annealed.num_lost > 2 * 64 - 1
    assert annealed.per_datum["acceptance"][:40].min() > 0.3
    assert annealed.bound.value is None
    json.dumps(asdict(annealed) | {"per_datum": None}, allow_nan=False)


def test_a_weight_that_is_lost_loosens_the_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 / v of a chain that meets NaN counts as zero."""
    truth, weights, backward = linear_gaussian(), [], Kernel.backward

    def losing(kernel: Kernel, u: Tensor) -> tuple[Tensor, Tensor]:
        log_weights, acceptance = backward(kernel, u)
        weights.append(log_weights.clone())
        log_weights[0] = math.nan
        return log_weights, acceptance

    monkeypatch.setattr(Kernel, "backward", losing)
    sandwich = bounds.bdmc(*pair_of(truth, widen=1.2), truth.sample(3), num_chains=4, num_temperatures=2)
    assert torch.allclose(sandwich.per_datum["BDMC"], math.log(4) - (-weights[0][1:]).logsumexp(0))
    assert sandwich.num_lost == 3


def test_slopes_that_explode_are_rejected() -> None:
    """A likelihood of z^5 throws coarse trajectories to infinity."""
    pair = pair_from(
        standard_normal(2),
        lambda z, _: dist.Normal(z.pow(5).sum(-1), 0.05),
        lambda x: dist.Normal(torch.zeros(len(x), 2), 2.0).to_event(1),
    )
    _, kernel = kernel_of(pair, torch.tensor([0.0, 1.0]), steps=[1.0, 1.0], num_leapfrog=30)
    with torch.no_grad():
        weights, accepted = kernel.forward(500)
    assert accepted.max() < 0.5
    assert weights.isfinite().all()


def test_one_datum() -> None:
    truth = linear_gaussian()
    pair, x = pair_of(truth, widen=1.2), truth.sample(1)
    annealed = bounds.ais(*pair, x, num_temperatures=1, num_chains=1)  # importance sampling with one draw
    assert (annealed.bound.se_data, annealed.bound.se_monte_carlo, annealed.acceptance) == (None, None, None)
    sandwich = bounds.bdmc(*pair, x, num_temperatures=5)
    errors = (sandwich.lower.se_monte_carlo, sandwich.upper.se_monte_carlo)
    assert max(errors) < sandwich.gap.se_monte_carlo < math.hypot(*errors) + 1e-12


def test_bounds_that_contradict_each_other_are_not_certified() -> None:
    truth = linear_gaussian()
    found = bounds.bdmc(*pair_of(truth, widen=1.2), truth.sample(5), num_temperatures=4, num_chains=4)
    for value, contradicts in ((-0.34, True), (-0.14, False), (0.34, False)):
        text = str(replace(found, gap=replace(found.gap, value=value, se_data=0.075, se_monte_carlo=0.065)))
        assert ("contradict each other: upper - lower is -0.340 +- 0.075 nats" in text) == contradicts
        assert ("with 95 % confidence" in text) != contradicts


def test_what_is_masked_stays_as_it_was_given() -> None:
    """A guide that reads missing data must not learn z from draws that stand in their place."""
    truth = linear_gaussian(latent_dim=2, x_dim=4)
    seen = torch.arange(400) % 2 == 0
    model = model_from(standard_normal(2), lambda z, x, seen: likelihood_of(truth)(z).mask(seen))
    pair = model, guide_from(posterior_of(truth, widen=1.3))
    found = bounds.bdmc(*pair, truth.sample(400), seen, num_chains=4, num_temperatures=6)
    missing = found.per_datum["BDMC"][~seen]  # log p of nothing is 0
    assert missing.mean() > -4 * missing.std() / len(missing) ** 0.5
    assert found.gap.value > -4 * found.gap.se_data


def test_a_guide_narrower_than_the_prior_has_no_upper_bound() -> None:
    """Chains that cannot reach the z that a datum came from would be too low, by 0.5 nats here."""
    narrow = dist.Uniform(torch.tensor(-1.0), 1.0)
    pair = pair_from(dist.Normal(torch.tensor(0.0), 1.0), lambda z, _: dist.Normal(z, 1.0), lambda x: narrow)
    assert bounds.ais(*pair, torch.zeros(50), num_temperatures=4, num_chains=2).bound.value < math.log(0.3)
    with pytest.raises(ValueError, match="the prior draws 'z' outside the support of the guide"):
        bounds.bdmc(*pair, torch.zeros(50), num_temperatures=4, num_chains=2)


@pytest.mark.parametrize("bound", [bounds.ais, bounds.bdmc])
def test_a_guide_that_leaves_the_support_of_the_prior_is_refused(bound: Callable[..., Any]) -> None:
    p_z = dist.Exponential(torch.tensor(1.0))
    pair = pair_from(p_z, lambda z, _: dist.Normal(z, 0.5), lambda x: dist.Normal(x - 0.25, 0.5))
    with pytest.raises(ValueError, match="support"):
        bound(*pair, torch.rand(200))


def test_a_guide_without_a_density_of_given_z_is_told() -> None:
    planar = pyro.distributions.transforms.Planar(2)
    pair = pair_from(
        standard_normal(2),
        lambda z, _: dist.Normal(z, 0.5).to_event(1),
        lambda x: dist.TransformedDistribution(dist.Normal(x, 0.5).to_event(1), [planar]),
    )
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="no density of a z that it did not draw"):
        bounds.ais(*pair, x, modules=[planar])
    checks = pyrovae.Checks(num_annealed=4, num_simulated=4, num_refined=0, num_encoded=0)
    found = pyrovae.evaluate(*pair, x, ks=(1, 10), checks=checks, modules=[planar], show_progress=False)
    assert {"AIS", "BDMC"} <= set(found.checked.left_out)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("method", ["ais", "gaps"])
def test_a_gradient_that_is_cut_is_told(cut: bool, method: str, caplog: pytest.LogCaptureFixture) -> None:  # noqa: FBT001
    truth = linear_gaussian()
    p_x = lambda z, _: dist.Normal(z.detach() @ truth.weight.T if cut else torch.zeros(5), 1.0).to_event(1)  # noqa: E731
    pair = pair_from(standard_normal(3), p_x, lambda x: dist.Normal(truth.posterior(x).mean, 1.0).to_event(1))
    with caplog.at_level(logging.WARNING, logger="pyrovae"):
        if method == "ais":
            bounds.ais(*pair, truth.sample(5), num_chains=2, num_temperatures=2, batch_size=2)
        else:
            diagnostics.gaps(*pair, truth.sample(5), num_particles=10, num_steps=2, refit_epochs=0)
    assert sum("passes no gradient to z" in record.message for record in caplog.records) == cut


@pytest.mark.parametrize("program", ["model", "guide"])
def test_a_density_that_differs_from_run_to_run_is_refused(program: str) -> None:
    def dropped(value: Tensor, name: str) -> Tensor:
        return torch.dropout(value, 0.5, train=name == program)

    pair = pair_from(
        standard_normal(3),
        lambda z, _: dist.Normal(dropped(z, "model"), 1.0).to_event(1),
        lambda x: dist.Normal(dropped(x, "guide"), 1.0).to_event(1),
    )
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="two runs at the same z differ"):
        bounds.ais(*pair, x)
    evaluation = pyrovae.evaluate(*pair, x, ks=(1, 10), checks=pyrovae.Checks(), show_progress=False)
    assert "AIS" in evaluation.checked.left_out


def test_draws_in_unconstrained_coordinates_have_their_own_density() -> None:
    """The unconstrained coordinate of a log-normal z is u = log z, which is normal."""
    x = torch.linspace(-1, 1, 4)
    p_z, q_z = dist.LogNormal(torch.tensor(0.0), 1.0), lambda x: dist.LogNormal(x, 0.5)
    with scoring_context(*pair_from(p_z, lambda z, _: dist.Normal(z, 1.0), q_z), (x,), modules=()) as programs:
        space = UnconstrainedLatents(programs, (x,), torch.arange(4))
        u, log_guide = space.draw(3)
        torch.testing.assert_close(log_guide, dist.Normal(x, 0.5).log_prob(u.squeeze(-1)))
        torch.testing.assert_close(log_guide, space.log_guide(u))
