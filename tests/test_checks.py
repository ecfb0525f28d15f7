"""What an evaluation finds out beside its bounds, and on which data."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from conftest import ModelGuide, TwoLayers, evaluate, linear_gaussian, pair_from, pair_of

from pyrovae import Checks, bounds, diagnostics
from pyrovae.diagnostics import assess_with_checks, summarize_weights
from pyrovae.results import Estimate, Evaluation
from pyrovae.results.record import tensors_of

pytestmark = pytest.mark.usefixtures("quick_gaps")
CHAINS = {"num_chains": 4, "num_temperatures": 5}
FEW = Checks(num_annealed=6, num_simulated=5, num_refined=4, num_encoded=8, refit_epochs=1, **CHAINS)


def test_checks_are_those_of_the_functions_on_the_first_data() -> None:
    truth = linear_gaussian()
    x = truth.sample(12)
    model, guide = pair_of(truth, widen=1.3)
    found = evaluate(model, guide, x, ks=(1, 50), checks=FEW, seed=3)
    checked = found.checked
    assert checked is not None
    assert not checked.left_out
    annealed = bounds.ais(model, guide, x[:6], seed=3, **CHAINS)
    assert torch.equal(checked.annealing.per_datum["AIS"], annealed.per_datum["AIS"])
    assert checked.annealing.data == "the first 6 of tensors"
    assert checked.sandwich.num_data == 5
    assert checked.sandwich.lower.value == bounds.bdmc(model, guide, x[:5], seed=3, **CHAINS).lower.value
    assert checked.latents.information == diagnostics.latents(model, guide, x[:8], seed=3).information
    assert checked.gaps.num_data == 4
    assert torch.equal(checked.gaps.per_datum["ELBO"], diagnostics.gaps(model, guide, x[:4], seed=3).per_datum["ELBO"])
    # L_K beside AIS is that of the same data, and so is the difference
    same = found.per_datum["L_50"][:6]
    assert checked.same_data.value == pytest.approx(same.mean().item(), abs=1e-12)
    assert checked.higher.value == pytest.approx((annealed.per_datum["AIS"] - same).mean().item(), abs=1e-12)
    assert checked.same_data.value != found.iwae[-1].value


def test_the_gap_is_split_below_the_tighter_bound() -> None:
    """Where AIS is clearly higher than L_K it stands for log p(x), elsewhere L_K."""
    truth = linear_gaussian(latent_dim=5, x_dim=8, scale=0.2)
    x = truth.sample(10)
    few = Checks(num_annealed=10, num_simulated=0, num_refined=10, num_encoded=0, refit_epochs=0, **CHAINS)
    poor = evaluate(*pair_of(truth, offset=0.4, widen=0.5), x, ks=(1, 5), checks=few)
    exact = evaluate(*pair_of(truth), x, ks=(1, 5), checks=few)
    assert poor.checked.gaps.bound.label == "AIS"
    assert torch.equal(poor.checked.gaps.per_datum["bound"], poor.checked.annealing.per_datum["AIS"])
    assert poor.checked.gaps.bound.se_monte_carlo == pytest.approx(poor.checked.annealing.bound.se_monte_carlo)
    assert poor.checked.gaps.approximation.se_monte_carlo > poor.checked.gaps.bound.se_monte_carlo
    assert exact.checked.gaps.bound.label == "L_2000"  # five particles may not stand for log p(x)
    enough = evaluate(*pair_of(truth), x, ks=(1, 1000), checks=few)
    assert torch.equal(enough.checked.gaps.per_datum["bound"], enough.per_datum["L_1000"])
    assert enough.checked.gaps.bound.se_monte_carlo == enough.iwae[-1].se_monte_carlo


def one_of_two_modes(scale: float = 0.05) -> ModelGuide:
    """Return a pair whose posterior has two equal modes, its guide being exact on one of them.

    log p(x) = log 2 + log N(x; 0, 1 + scale^2) but for what the halves overlap, and every weight is half of p(x).
    """
    return pair_from(
        dist.Normal(torch.zeros(()), 1.0),
        lambda z, _: dist.Normal(z.abs(), scale),
        lambda x: dist.Normal(x / (1 + scale**2), scale / (1 + scale**2) ** 0.5),
    )


def test_a_mode_that_the_guide_never_visits_is_no_enough_where_bdmc_sees_it() -> None:
    x = torch.linspace(0.8, 2.0, 8)
    truth = math.log(2) + dist.Normal(0.0, (1 + 0.05**2) ** 0.5).log_prob(x)
    checks = Checks(num_annealed=8, num_simulated=8, num_refined=0, num_encoded=0, num_chains=4, num_temperatures=10)
    found = evaluate(*one_of_two_modes(), x, ks=(1, 5, 50, 500), checks=checks)
    missing = truth - found.per_datum["L_500"]
    torch.testing.assert_close(missing, torch.full_like(missing, math.log(2)))
    assert found.weights.verdict == "K may not be enough"
    assert found.weights.reason.startswith("BDMC leaves log p(x) of 8 simulated data open by ")
    assert found.checked.sandwich.gap.value > 10
    alone = summarize_weights(found.per_datum, ks=(1, 5, 50, 500))
    assert alone.verdict == "K is enough"
    # AIS that is above L_K beyond the noise says more
    annealing = found.checked.annealing
    for by, verdict in ((0.7, "K is not enough"), (0.04, "K may not be enough")):
        raised = replace(annealing, per_datum={"AIS": annealing.per_datum["AIS"] + by})
        higher = raised.compare_with("L_500", found.per_datum["L_500"])
        checked = replace(found.checked, higher=higher)
        assert assess_with_checks(alone, checked).verdict == verdict
    lost = replace(found.checked.sandwich, gap=Estimate("BDMC - AIS", 4, None, None, None, "inf"), num_not_finite=3)
    amended = assess_with_checks(alone, replace(found.checked, sandwich=lost))
    assert amended.verdict == "K may not be enough"
    assert "BDMC has no bounds for 3 of 8 simulated data" in amended.reason
    assert assess_with_checks(alone, replace(found.checked, sandwich=None)) == alone
    assert assess_with_checks(alone, None) == alone


def test_more_data_than_there_are_means_all_and_a_check_that_cannot_be_had_is_left_out() -> None:
    """The observed site holds a transform of x, so that data cannot be simulated; the rest goes on."""
    truth = linear_gaussian()
    model, guide = pair_of(truth)
    pair = (lambda x: model(x.exp())), (lambda x: guide(x.exp()))
    checks = Checks(num_annealed=100, num_simulated=3, num_refined=0, num_encoded=0, **CHAINS)
    found = evaluate(*pair, truth.sample(3), ks=(1, 5), checks=checks)
    assert found.checked.annealing.num_data == 3
    assert found.checked.annealing.data == "tensors"
    assert (found.checked.sandwich, found.checked.gaps, found.checked.latents) == (None, None, None)
    assert set(found.checked.left_out) == {"BDMC"}
    assert found.checked.left_out["BDMC"] in " ".join(str(found).split())


def test_an_evaluation_with_checks_comes_back_from_json() -> None:
    pair = TwoLayers(bottom_up=True)
    x = torch.bernoulli(torch.full((8, 4), 0.5))
    found = evaluate(pair.model, pair.guide, x, ks=(1, 5, 50), checks=FEW)
    text = found.to_json()
    json.loads(text, parse_constant=pytest.fail)
    tensors = tensors_of(found)
    assert {"ELBO", "khat", "checked/annealing/AIS", "checked/gaps/refined", "checked/latents/KL"} <= set(tensors)
    again = Evaluation.from_json(text, tensors)
    assert again == found
    assert str(again) == str(found)


def test_draws_and_not_the_data_decide_which_bound_of_these_data_is_higher() -> None:
    """AIS is higher for two of 40 data, by so much that the error over the data hides it."""
    truth = linear_gaussian()
    x = truth.sample(40)
    checks = Checks(num_annealed=40, num_simulated=0, num_refined=0, num_encoded=0, num_chains=4, num_temperatures=10)
    found = evaluate(*pair_of(truth, offset=0.3), x, ks=(1, 5, 50), checks=checks)
    annealing = found.checked.annealing
    same = annealing.per_datum["AIS"].clone()
    same[:2] -= torch.tensor([50.0, 1.0])
    hidden = annealing.compare_with("L_50", same, se_monte_carlo=0.02)
    assert hidden.value < 2 * hidden.se
    assert hidden.noise == pytest.approx(math.hypot(annealing.bound.se_monte_carlo, 0.02))
    assert hidden.exceeds(1.0)
    assert not hidden.exceeds(1.3)
    assert hidden.num_higher == int((annealing.per_datum["AIS"] > same).sum())
    assert "within two standard errors" not in str(hidden)
    noisy = annealing.compare_with("L_50", same, se_monte_carlo=1.0)
    assert not noisy.exceeds(0.0)
    assert "within two standard errors" in str(noisy)
    assert found.checked.higher.se_monte_carlo == pytest.approx(
        math.hypot(annealing.bound.se_monte_carlo, found.checked.same_data.se_monte_carlo)
    )
    loose = assess_with_checks(replace(found.weights, verdict="K is not enough"), found.checked)
    assert loose.reason.endswith("AIS is not clearly above L_50 on the same 40 data")
