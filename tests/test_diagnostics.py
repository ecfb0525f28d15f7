"""Is the guide any good: k-hat and the ladder's verdict against exact values, latent variables against closed forms."""

from __future__ import annotations

import importlib
import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from conftest import (
    LinearGaussian,
    ModelGuide,
    TwoLayers,
    exact_guide,
    guide_from,
    linear_gaussian,
    make_vae,
    pair_from,
    pair_of,
    scalar_pair,
    standard_normal,
)
from torch import Tensor

from pyrovae import bounds, diagnostics
from pyrovae.diagnostics import information, psis
from pyrovae.diagnostics.weight_summary import assess, read_ladder
from pyrovae.importance.sampling import log_weights, particles
from pyrovae.results import Estimate, Latents, Weights
from pyrovae.results.record import from_plain, to_plain
from pyrovae.results.tightness import Quantiles

KS = (1, 5, 50, 500, 5000)


def pareto_weights(k: float, total: int = 400) -> Tensor:
    """Return log-weights at the quantiles of a Pareto tail: those of the reference table for K = 400."""
    return -k * (1 - (torch.arange(total) + 0.5) / total).log()


def judged(weights: Tensor, ks: Sequence[int] = KS, **settings: float) -> Weights:
    """Return the record of log-weights ``(K, N)``, after a trip through JSON."""
    per_datum = diagnostics.weight_diagnostics(weights)
    per_datum |= {f"L_{k}": bound for k, bound in zip(ks, bounds.iwae(weights, ks), strict=True)}
    record = diagnostics.summarize_weights(per_datum, ks=ks, **settings)
    assert from_plain(Weights, json.loads(json.dumps(to_plain(record), allow_nan=False))) == record
    assert record.verdict in str(record)
    return record


def covered(value: float | None, error: float | None, truth: float) -> bool:
    assert value is not None
    assert error is not None
    return abs(value - truth) < 1.96 * error


# k-hat


@pytest.mark.parametrize(
    ("k", "khat"), [(0.1, 0.17447490), (0.3, 0.33560832), (0.5, 0.49649375), (0.7, 0.65740044), (1.0, 0.89886879)]
)
def test_khat_of_the_reference_table(k: float, khat: float) -> None:
    weights = pareto_weights(k)
    assert diagnostics.pareto_khat(weights).item() == pytest.approx(khat, abs=1e-8)
    shuffled = weights[torch.randperm(400)] - 1000.0
    assert diagnostics.pareto_khat(shuffled).item() == pytest.approx(khat, abs=1e-8)
    assert diagnostics.pareto_khat(shuffled.float()).dtype == torch.float64


def arviz_khat(weights: Tensor) -> float:
    """Return the k-hat of whichever ArviZ is installed: the sign of its argument and its tail changed with 1.0."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"[\s\S]*ArviZ is undergoing", category=FutureWarning)
        arviz = importlib.import_module("arviz")
    if arviz.__version__.startswith("0."):
        return float(arviz.psislw(weights.numpy().copy())[1])
    return float(importlib.import_module("arviz_stats.base").array_stats.psislw(-weights.numpy())[1])


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_khat_is_that_of_arviz(spread: float) -> None:
    weights = spread * torch.randn(400) - 80  # all versions of ArviZ cut the tail of so many alike
    assert diagnostics.pareto_khat(weights).item() == pytest.approx(arviz_khat(weights), abs=1e-11)


def test_khat_of_a_batch_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = 3 * torch.randn(60, 2, 3)
    khat = diagnostics.pareto_khat(weights)
    alone = [diagnostics.pareto_khat(column).item() for column in weights.reshape(60, -1).T]
    assert khat.shape == (2, 3)
    assert khat.flatten().tolist() == pytest.approx(alone, abs=1e-12)
    monkeypatch.setattr(psis, "CHUNK", 1)
    assert torch.equal(diagnostics.pareto_khat(weights), khat)


def test_khat_where_there_is_none() -> None:
    weights = torch.randn(100, 6)
    weights[:, 1] = -3.5
    weights[7, 2] = math.nan
    weights[:, 3] = -math.inf
    weights[1:, 4] = -math.inf
    weights[0, 5] = math.inf
    khat = diagnostics.pareto_khat(weights)
    assert khat.isfinite().tolist() == [True, False, False, False, False, False]
    assert khat.isnan().tolist() == [False, False, True, True, False, True]
    assert (khat[1].item(), khat[4].item()) == (-math.inf, math.inf)
    assert diagnostics.pareto_khat(weights[:24, 0]).isnan()
    assert diagnostics.pareto_khat(weights[:25, 0]).isfinite()


def test_khat_of_ties_and_of_zeros_among_the_largest() -> None:
    assert diagnostics.pareto_khat(torch.randn(100).mul(3).round()).isfinite()  # ties where the tail begins
    few = torch.full((100,), -math.inf)
    few[:7] = torch.randn(7)
    torch.testing.assert_close(diagnostics.pareto_khat(few - 5), diagnostics.pareto_khat(few), rtol=1e-12, atol=0.0)
    assert diagnostics.pareto_khat(few).isfinite()
    assert diagnostics.pareto_khat(1e-13 * torch.randn(100)) == -math.inf


def test_khat_threshold_is_a_formula_of_k() -> None:
    assert diagnostics.khat_threshold(100) == pytest.approx(0.5)
    assert diagnostics.khat_threshold(10_000) == 0.7
    assert diagnostics.khat_threshold(1000) == pytest.approx(2 / 3)


# functions of the weights


def test_sizes_and_variances_of_four_weights() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).log().unsqueeze(1) - 700
    assert diagnostics.effective_sample_size(weights).item() == pytest.approx(10 / 3)
    assert diagnostics.largest_weight(weights).item() == pytest.approx(0.4)
    assert diagnostics.relative_variance(weights).item() == pytest.approx(5 / 3 / 2.5**2)
    assert diagnostics.bias_estimate(weights).item() == pytest.approx(5 / 3 / 2.5**2 / 8)


# the verdict


def test_exact_guide_is_enough() -> None:
    truth = linear_gaussian()
    record = judged(log_weights(*pair_of(truth), truth.sample(20), num_particles=500), KS[:4])
    assert record.verdict == "K is enough"
    assert record.num_constant == 20
    assert record.bias == pytest.approx(0.0, abs=1e-12)
    assert record.ess.median == pytest.approx(500)


def test_moderate_guide_is_enough_and_its_gap_is_known() -> None:
    weights = log_weights(*scalar_pair(0.3, 0.36), torch.full((100,), 1.5), num_particles=5000)
    record = judged(weights)
    assert record.verdict == "K is enough"
    assert record.bias == pytest.approx(0.0690 / 5000, rel=0.02)
    assert record.extrapolated == pytest.approx(0.0690 / 5000, rel=0.1)
    assert record.power == pytest.approx(1.0, abs=4 * record.power_error)
    assert record.num_above == 0
    assert judged(weights, tolerance=1e-6).verdict == "K is not enough"


def test_narrow_likelihood_is_seen_to_be_loose() -> None:
    """The guide misses the posterior by more than the width of the likelihood."""
    generator = torch.Generator().manual_seed(0)
    truth = LinearGaussian(torch.randn(20, 10, generator=generator), torch.zeros(20), 0.1)
    offset, x = 0.1 * torch.randn(20, 10, generator=generator), truth.sample(20)
    guide = guide_from(lambda x, offset: dist.Normal(truth.posterior(x).mean + offset, 0.05).to_event(1))
    model = pair_of(truth)[0]
    weights = log_weights(lambda x, _: model(x), guide, x, offset, num_particles=5000)
    assert (truth.log_prob(x) - bounds.iwae(weights)[0]).mean() > 10
    record = judged(weights)
    assert "L_5000 is loose" in record.reason
    assert record.num_above == 20
    assert record.verdict == "not asymptotic"
    assert record.power + 2 * record.power_error < 0.5


def test_heavy_tails_of_few_data_do_not_count_and_of_many_do() -> None:
    light, heavy = torch.randn(5000, 100) / 2, pareto_weights(0.9, 5000)[torch.randperm(5000), None]
    for num_heavy, verdict in ((2, "K is enough"), (12, "unknown"), (51, "K is not enough")):
        record = judged(torch.cat([heavy.expand(-1, num_heavy), light[:, num_heavy:]], 1), tolerance=1.0)
        assert (record.verdict, record.num_above) == (verdict, num_heavy)
        assert f"{num_heavy}.0 % of the data" in record.reason


@pytest.mark.parametrize(
    ("ks", "reason"),
    [
        ((1,), "a single particle does not show"),
        ((1, 4, 20), "K being below 25"),
        ((1, 5000), "it takes three rungs"),
    ],
)
def test_too_little_to_tell(ks: tuple[int, ...], reason: str) -> None:
    record = judged(0.1 * torch.randn(ks[-1], 30), ks)
    assert record.verdict == "unknown"
    assert reason in record.reason


def test_what_is_not_finite_is_counted_and_named() -> None:
    weights = torch.randn(500, 10)
    weights[3, 0] = math.nan
    weights[:, 1] = -math.inf
    weights[3, 2] = math.inf
    record = judged(weights, KS[:4])
    assert (record.num_nan, record.num_zero, record.num_unavailable) == (2, 1, 3)
    assert record.verdict == "unknown"
    assert "3 of 10 data have a L_500 that is not finite" in record.reason
    assert record.bias is None
    assert record.khat.median is not None


@pytest.mark.parametrize("power", [0.2, 0.6, 1.0])
def test_ladder_finds_the_power_and_the_gap(power: float) -> None:
    ks = (5, 50, 200, 5000)
    rates = 1 + 0.1 * torch.rand(40)
    ladder = read_ladder({k: -80 - rates * k**-power for k in ks})
    assert ladder["power"] == pytest.approx(power, abs=1e-9)
    used = power if power < 1 else 1.0
    assert ladder["extrapolated"] == pytest.approx(rates.mean().item() * 5000**-used, rel=1e-6)


def test_a_gap_above_the_tolerance_is_named_and_called_a_least_one_where_weights_are_unreliable() -> None:
    weights = judged(0.1 * torch.randn(500, 100), KS[:4])
    numbers = {"increment": 0.2, "power": 0.34, "power_error": 0.1, "extrapolated": 0.06, "bias": 0.07}
    weights = replace(weights, **numbers)
    few = Quantiles(1.0, 1.9, 2.0)
    for doubt in ({}, {"ess": few}, {"num_above": 10}, {"num_unavailable": 100, "threshold": None}):
        verdict, reason = assess(replace(weights, **doubt), KS[:4])
        assert verdict == "K is not enough"
        assert reason.startswith(f"{'at least' if doubt else 'about'} 0.0700 nats are missing in the mean of L_500")


@pytest.mark.parametrize(("num_sites", "ks"), [(300, (5, 10)), (300, (5, 50)), (1, (1, 5, 10))])
def test_weights_that_do_not_measure_their_gap_give_a_least_one(num_sites: int, ks: tuple[int, ...]) -> None:
    scale = 1.16 * num_sites**0.5  # the weights have mean 1, so that log p(x) is 0
    record = judged(scale * torch.randn(ks[-1], 50) - scale**2 / 2, ks, tolerance=0.01)
    assert (record.ess.median < 2) == (num_sites > 1)
    assert record.verdict == "K is not enough"
    assert "at least" in record.reason or "loose" in record.reason
    assert "about" not in record.reason


# standard errors


def test_intervals_of_bounds_cover() -> None:
    """At fixed data for E[L_K], and over the data for the mean of L_K in the population."""
    spread, ks = 0.5, (1, 10, 100)
    blocks = spread * torch.randn(100, 20_000)
    expected = bounds.iwae(blocks, ks).mean(1).tolist()  # errors a tenth of those of an interval, and less
    assert diagnostics.pareto_khat(blocks[:, :50]).median() < 0.5
    hits = torch.zeros(2, len(ks))
    for _ in range(200):
        means = torch.randn(30)
        weights = means + spread * torch.randn(100, 30)
        for i, (k, values) in enumerate(zip(ks, bounds.iwae(weights, ks), strict=True)):
            found = Estimate.over_data("IWAE", k, values, bounds.monte_carlo_variances(weights, k))
            hits[0, i] += covered(found.value, found.se_monte_carlo, means.mean().item() + expected[i])
            hits[1, i] += covered(found.value, found.se_data, expected[i])
    assert ((hits >= 180) & (hits <= 198)).all(), hits


@pytest.mark.slow
def test_interval_of_the_mutual_information_covers() -> None:
    truth = LinearGaussian(torch.tensor([[1.0]]), torch.zeros(1), 1.0)
    exact = 0.5 * math.log(2)
    hits = 0
    for seed in range(200):
        found = diagnostics.latents(*pair_of(truth), truth.sample(100, seed=seed), num_draws=2, seed=seed)
        hits += covered(found.information.value, found.information.se_data, exact)
    assert 180 <= hits <= 198


# latent variables


def told(pair: ModelGuide, x: Tensor, *covariates: Tensor, **settings: int) -> Latents:
    """Return the record, after a trip through JSON."""
    record = diagnostics.latents(*pair, x, *covariates, **settings)
    assert from_plain(Latents, json.loads(json.dumps(to_plain(record), allow_nan=False))) == record
    assert record.verdict in str(record)
    assert record.information.value <= record.ceiling
    if record.information_above.value is not None:
        assert 0 <= record.information.value <= record.information_above.value
        assert record.information_above.value <= max(record.kl.value, 0.0)
    if record.marginal_kl.value is not None:
        assert record.marginal_kl.value == pytest.approx(record.kl.value - record.information.value)
    return record


def test_three_of_ten_units_are_active() -> None:
    weight = torch.zeros(12, 10)
    weight[:, [1, 4, 8]] = 2 * torch.linalg.qr(torch.randn(12, 3))[0]
    truth = LinearGaussian(weight, torch.zeros(12), 0.7)
    record = told(pair_of(truth), truth.sample(300))
    assert {unit.name for unit in record.units if unit.active} == {"z[1]", "z[4]", "z[8]"}
    assert [unit.active for unit in record.units] == [True] * 3 + [False] * 7
    posterior = 0.49 / 4.49
    for unit in record.units[:3]:
        assert abs(unit.activity - (1 - posterior)) < 4 * unit.activity_error
        assert unit.variance == pytest.approx(posterior, rel=0.05)
        assert unit.verdict == "active, near the prior"
    for unit in record.units[3:]:
        assert abs(unit.activity) < 5 * unit.activity_error
        assert unit.kl == pytest.approx(0.0, abs=1e-12)
        assert unit.verdict == "collapsed onto the prior"
    assert sum(unit.kl for unit in record.units) == pytest.approx(record.kl.value)


def test_kl_without_a_closed_form() -> None:
    truth = linear_gaussian()
    centers = dist.Normal(torch.tensor([[-1.0] * 3, [1.0] * 3]), 1.0).to_event(1)
    prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), centers)
    model, _ = pair_from(prior, lambda z, _: dist.Normal(z @ truth.weight.T, 1.0).to_event(1), lambda _: None)
    pair, x = (model, pair_of(truth)[1]), truth.sample(50)
    record, draws = told(pair, x), particles(*pair, x, num_particles=5000)
    terms = draws.log_guide - draws.log_prior  # (5000, 50)
    error = terms.var(0).sum().div(16).sqrt().item() / 50
    assert record.kl.se_monte_carlo == pytest.approx(error, rel=0.2)
    assert abs(record.kl.value - terms.mean().item()) < 4 * error
    assert all(unit.kl is None for unit in record.units)
    assert record.marginal_kl.se_monte_carlo > record.kl.se_monte_carlo


@pytest.mark.parametrize(
    ("offset", "prior_verdict", "of_units"),
    [(0.0, "fits", "near the prior"), (1.0, "does not fit", "away from the prior")],
)
def test_codes_on_the_prior_and_away_from_it(offset: float, prior_verdict: str, of_units: str) -> None:
    truth = linear_gaussian()
    x = truth.sample(1000)
    record = told(pair_of(truth, offset=offset), x)
    exact = 0.5 * ((truth.weight**2).sum(0) / truth.scale**2).log1p().sum().item()  # I(x; z), as W is orthogonal
    assert (record.verdict, record.prior_verdict) == ("not collapsed", prior_verdict)
    assert {unit.verdict for unit in record.units} == {f"active, {of_units}"}
    assert abs(record.information.value - exact) < 4 * record.information.se_data
    assert record.information.value < record.information_above.value < record.information.value + 0.1
    shift = 3 * offset**2 / 2  # KL between the codes' N(offset, I) and the prior
    assert abs(record.marginal_kl.value - shift) < 0.05 + 4 * record.marginal_kl.se_data * offset
    prior, guide = standard_normal(3), truth.posterior(x)
    kl = dist.kl.kl_divergence(dist.Normal(guide.mean + offset, guide.variance.sqrt()).to_event(1), prior)
    assert record.kl.value == pytest.approx(kl.mean().item(), abs=1e-9)
    assert record.kl.se_data == pytest.approx(kl.std().item() / math.sqrt(1000))
    assert record.units[0].misfit == pytest.approx(offset**2 / 2, abs=0.2)


@pytest.mark.parametrize(("location", "where"), [(0.0, " onto the prior"), (2.0, ", away from the prior")])
def test_one_code_for_all_is_a_collapse(location: float, where: str) -> None:
    """q(z) is that code with and without any of the data, so that both bounds of I(x; z) are 0."""
    truth = linear_gaussian()
    guide = guide_from(lambda x: dist.Normal(torch.full((len(x), 3), location), 1.0).to_event(1))
    record = told((pair_of(truth)[0], guide), truth.sample(100))
    assert (record.verdict, record.reason) == ("collapsed", "I(x; z) is 0.000 nats and no unit is active")
    assert record.prior_verdict == ("does not fit" if location else "fits")
    assert record.information.value == 0.0
    assert record.information_above.value == pytest.approx(0.0, abs=1e-12)
    assert record.marginal_kl.value == pytest.approx(3 * location**2 / 2)
    assert {unit.verdict for unit in record.units} == {f"collapsed{where}"}


def test_codes_that_do_not_overlap_reach_the_ceiling() -> None:
    truth = linear_gaussian(scale=0.01)
    record = told(pair_of(truth), truth.sample(50))
    assert record.information.value == pytest.approx(math.log(50), abs=1e-3)
    assert record.ceiling == pytest.approx(math.log(50))
    assert (record.verdict, record.prior_verdict) == ("not collapsed", "undecided")
    assert record.information_above.value == record.kl.value  # each code left out of q(z) says 1,000 nats and more


def test_moments_of_units_decide_where_codes_do_not_overlap() -> None:
    """I(x; z) is at its ceiling, so that q(z) by its codes is 0 to 10 nats from the prior."""
    truth = linear_gaussian(scale=0.01)
    record = told(pair_of(truth, offset=2.0), truth.sample(200))
    assert record.prior_verdict == "does not fit"
    least, most = (float(text) for text in re.findall(r"\d+\.\d+", record.prior_reason))
    assert least == pytest.approx(3 * 2.0**2 / 2, rel=0.1)  # of N(2, I) from N(0, I)
    assert most == pytest.approx(record.marginal_kl.value, abs=1e-3)


def test_few_codes_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = linear_gaussian()
    x = truth.sample(600)
    whole = told(pair_of(truth), x)
    monkeypatch.setattr(information, "MAX_DENSITIES", (300 * 100, 300 * 100))
    monkeypatch.setattr(information, "MAX_AGGREGATE", 300)
    part = told(pair_of(truth), x)
    assert (part.num_aggregate, part.num_codes) == (300, 100)
    assert (whole.num_aggregate, whole.num_codes) == (600, 6000)
    assert part.information.se_data > 1.5 * whole.information.se_data
    assert abs(part.information.value - whole.information.value) < 4 * part.information.se_data + 0.1
    assert part.information.se_monte_carlo is None


def test_two_layers() -> None:
    pair = TwoLayers(bottom_up=True)
    x = torch.bernoulli(torch.full((80, 4), 0.5))
    record = told((pair.model, pair.guide), x)
    assert {unit.name for unit in record.units} == {"z1[0]", "z1[1]", "z1[2]", "z2[0]", "z2[1]"}
    expected = bounds.elbo(pair.model, pair.guide, x.repeat(50, 1)).kl.mean().item()
    assert abs(record.kl.value - expected) < 5 * record.kl.se_monte_carlo
    assert sum(unit.kl for unit in record.units) == pytest.approx(record.kl.value)


def test_prior_given_covariates_has_no_marginal_kl() -> None:
    truth = linear_gaussian()
    x, c = truth.sample(100), torch.randn(100, 3)
    pair = pair_from(
        lambda _, c: dist.Normal(c, 1.0).to_event(1),
        lambda z, *_: dist.Normal(z @ truth.weight.T, 1.0).to_event(1),
        lambda x, c: dist.Normal(c + x[..., :3], 1.0).to_event(1),
    )
    record = told(pair, x, c)
    assert record.num_covariates == 1
    assert record.marginal_kl.value is None
    assert "the prior differs between data" in record.marginal_kl.why
    assert all(unit.misfit is None for unit in record.units)
    assert abs(record.kl.value - 0.5 * (x[:, :3] ** 2).sum(1).mean().item()) < 1e-9


def test_joint_guide_has_no_kl_by_unit() -> None:
    truth = linear_gaussian()
    x, (model, guide) = truth.sample(100), pair_of(truth)
    joint = exact_guide(truth)
    record, units = told((model, joint), x), told((model, guide), x)
    assert all(unit.kl is None for unit in record.units)
    assert "'z' is a joint distribution" in record.why_units
    assert abs(record.kl.value - units.kl.value) < 5 * (record.kl.se_monte_carlo or 1e-9) + 1e-9
    assert record.units[0].activity > record.units[1].activity > record.units[2].activity


def test_pairs_of_other_layouts_say_the_same() -> None:
    truth = linear_gaussian()
    x = truth.sample(50)

    def p_x(z: Tensor, _: Tensor) -> Any:
        assert z.ndim == 2, "this decoder refuses an axis of particles"
        return dist.Normal(z @ truth.weight.T + truth.bias, truth.scale).to_event(1)

    concatenating = pair_from(standard_normal(3), p_x, lambda _: None)[0], pair_of(truth)[1]
    plain = told(pair_of(truth), x)
    other = told(concatenating, x)
    assert other.kl.value == pytest.approx(plain.kl.value)
    assert other.kl.se_data == pytest.approx(plain.kl.se_data)
    kls = ({unit.name: unit.kl for unit in record.units} for record in (plain, other))
    assert next(kls) == pytest.approx(next(kls))
    assert abs(other.information.value - plain.information.value) < 6 * plain.information.se_monte_carlo


def test_vae_and_random_streams() -> None:
    vae = make_vae()
    x = torch.bernoulli(torch.full((40, 1, 8, 8), 0.5))
    before = torch.get_rng_state()
    first, again = (told((vae.model, vae.guide), x, seed=1) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first == again
    assert told((vae.model, vae.guide), x, seed=2) != first


def test_too_little_for_a_variance() -> None:
    truth = linear_gaussian()
    with pytest.raises(ValueError, match="at least 2 data, but received 1"):
        diagnostics.latents(*pair_of(truth), truth.sample(1))
