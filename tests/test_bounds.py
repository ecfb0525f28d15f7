"""Bounds against closed forms and exact values."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from conftest import TwoLayers, evaluate, pair_from, scalar_pair, standard_normal

from pyrovae import bounds
from pyrovae.importance.sampling import log_weights, particles
from pyrovae.results import Estimate

ONE_AND_A_HALF = torch.tensor([1.5])
ONE = torch.ones(1, dtype=torch.float64)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [
        ([0.0, math.log(2), math.log(3)], 0.69314718),
        ([-math.inf, 0.0], -0.69314718),
        ([-1000.0, -1000.0 + math.log(3)], -999.30685282),
        ([-math.inf, -math.inf], -math.inf),
    ],
)
def test_log_mean_exp(log_weights: list[float], expected: float) -> None:
    assert bounds.log_mean_exp(torch.tensor(log_weights)).item() == pytest.approx(expected, abs=5e-9)


def test_ladder_of_four_weights() -> None:
    ladder = bounds.iwae(torch.tensor([1.0, 2.0, 3.0, 4.0]).log(), ks=(1, 2, 4))
    assert ladder.tolist() == pytest.approx([0.79451346, 0.82911404, 0.91629073], abs=5e-9)


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ((0.3, 0.36), {1: -1.95476416, 2: -1.86896039, 3: -1.85079452}),
        pytest.param((0.1, 0.04), {1: -2.45337645, 2: -2.36757268, 3: -2.31977852}, marks=pytest.mark.slow),
    ],
)
def test_expectations_of_the_reference_table(q: tuple[float, float], expected: dict[int, float]) -> None:
    weights = log_weights(*scalar_pair(*q), ONE_AND_A_HALF, num_particles=1_800_000)[:, 0]
    for k, bound in expected.items():
        mean, error = mean_and_error(bounds.log_mean_exp(weights.unflatten(0, (-1, k)), 1))
        assert error < 1e-3
        assert abs(mean - bound) < 4 * error


class Tempered(dist.LogNormal):
    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().log_prob(value)


def folded(mean: float) -> Any:
    return dist.FoldedDistribution(dist.Normal(mean * ONE, 1.0))


@pytest.mark.parametrize(
    ("q", "p", "method"),
    [
        (dist.HalfNormal(ONE), dist.HalfNormal(1.7 * ONE), "closed form"),
        (dist.HalfCauchy(ONE), dist.HalfCauchy(1.7 * ONE), "closed form"),
        (dist.LogNormal(ONE, 1.0), dist.LogNormal(0 * ONE, 1.3), "closed form"),
        (folded(0.5), folded(0.0), "the transform of FoldedDistribution is not one-to-one"),
        (folded(0.5), dist.HalfNormal(ONE), "the transform of FoldedDistribution is not one-to-one"),
        (dist.LogNormal(ONE, 1.0), Tempered(0 * ONE, 1.3), "Tempered overrides log_prob"),
    ],
)
def test_a_closed_form_is_that_of_the_densities(q: Any, p: Any, method: str) -> None:
    pair = pair_from(
        lambda x: p.expand([len(x), 1]).to_event(1),
        lambda z, x: standard_normal(1),
        lambda x: q.expand([len(x), 1]).to_event(1),
    )
    terms = bounds.elbo(*pair, torch.zeros(2, 1))
    assert terms.methods == {"z": method}
    if method == "closed form":
        t = torch.linspace(-40, 40, 100_001)
        log_q, log_p = q.log_prob(t.exp()), p.log_prob(t.exp())
        expected = ((log_q + t).exp() * (log_q - log_p)).sum() * (t[1] - t[0])
        assert terms.kl[0].item() == pytest.approx(expected.item(), abs=1e-9)


def test_ladder_is_monotone_for_every_datum() -> None:
    ladder = bounds.iwae(3 * torch.randn(600, 40), ks=(1, 2, 6, 60, 600))
    assert (ladder.diff(dim=0) >= -1e-12).all()


@pytest.mark.parametrize(
    ("ks", "words"),
    [
        ((1, 4, 6), "each K must divide the next and be smaller.* received .*6"),
        ((1, 2, 2), "each K must divide the next and be smaller.* received .*2"),
        ((2, 1), "each K must divide the next and be smaller.* received .*1"),
        ((1, 4), "draw a multiple of 4"),
        *[(ks, "whole numbers of at least 1|must be integers") for ks in ((), (0,), (1.0, 2.0), (True,))],
    ],
)
def test_rungs_that_do_not_divide_are_refused(ks: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bounds.iwae(torch.zeros(6), ks=ks)


@pytest.mark.parametrize("bottom_up", [True, False])
def test_two_layers_elbo_is_the_mean_log_weight(bottom_up: bool) -> None:  # noqa: FBT001
    pair = TwoLayers(bottom_up=bottom_up)
    x = torch.bernoulli(torch.full((6, 4), 0.5))
    evaluation = evaluate(pair.model, pair.guide, x, ks=(1, 20_000))
    record = particles(pair.model, pair.guide, x, num_particles=20_000)
    per_particle = record.log_weights.mean(1)
    mean, error = mean_and_error(per_particle)
    assert abs(evaluation.elbo.value - mean) < 4 * math.hypot(error, evaluation.elbo.se_monte_carlo)
    expected = "'z2' comes before 'z1' in the model but not in the guide" if bottom_up else "closed form"
    assert evaluation.kl_methods == {"z2": "closed form", "z1": expected}


@pytest.mark.parametrize("k", [0.7, 1.2])
def test_monte_carlo_error_covers_where_weights_are_heavy_tailed(k: float) -> None:
    """30 data at a time, against the mean of L_512 over all of them, which is nearly exact."""
    rounds, num_data = 200, 30
    weights = k * torch.empty(512, rounds * num_data).exponential_()  # a Pareto tail
    values, variances = bounds.iwae(weights)[0], bounds.monte_carlo_variances(weights, 512)
    hits = 0
    for each, noise in zip(values.split(num_data), variances.split(num_data, 1), strict=True):
        found = Estimate.over_data("IWAE", 512, each, noise)
        hits += abs(found.value - values.mean().item()) < 1.96 * found.se_monte_carlo
    assert 180 <= hits <= 199
    errors = variances.sum(1).sqrt() / values.var().mul(len(values)).sqrt()
    assert errors[0] < 0.85  # the delta method alone
    assert 0.9 < errors[1] < 1.35


def test_an_error_is_finite_where_blocks_of_weights_are_zero() -> None:
    """Half of the weights of one datum are zero, so that its bound is finite and its blocks cannot be compared."""
    weights = torch.zeros(4, 3)
    weights[:2, 0] = -math.inf
    variances = bounds.monte_carlo_variances(weights, 4)
    assert variances.isfinite().all()
    estimate = Estimate.over_data("IWAE", 4, bounds.iwae(weights)[0], variances)
    assert estimate.se_monte_carlo == pytest.approx(variances[0].sum().sqrt().item() / 3)
    assert estimate.se_monte_carlo > 0


def test_monte_carlo_variance_of_several_blocks_is_that_of_their_mean() -> None:
    log_weights = torch.randn(12, 5)
    (found,) = bounds.monte_carlo_variances(log_weights, 1)
    torch.testing.assert_close(found, log_weights.var(0) / 12)
    blocks = bounds.log_mean_exp(log_weights.unflatten(0, (4, 3)), 1)
    (found,) = bounds.monte_carlo_variances(log_weights, 3)
    torch.testing.assert_close(found, blocks.var(0) / 4)


def test_elbo_averages_over_particles() -> None:
    terms = bounds.elbo(*scalar_pair(0.3, 0.36), ONE_AND_A_HALF, num_particles=200_000)
    assert terms.kl.item() == pytest.approx(0.23582562, abs=5e-9)
    assert (terms.reconstruction - terms.kl).item() == pytest.approx(-1.95476416, abs=0.015)  # five standard errors
