"""Tests of differences between models of several training seeds."""

import math

import pytest
import torch
from scipy.stats import ttest_rel
from torch import Tensor

from pyrovae.results.estimates import Difference
from pyrovae.results.training_seeds import (
    difference_over_seeds,
    holm,
    num_data_needed,
    num_seeds_needed,
    pool_seed_effects,
)

NUM_REPEATED = 2000
MORE_NUMBERS = (2, 2, 300), (3, 5, 100)  # of seeds of two models, and of data


def simulate(num_seeds: int, num_data: int, *, seed: float, datum: float, interaction: float) -> Tensor:
    """Return values ``(repetitions, seeds, data)`` of a model with mean 0; arguments are standard deviations."""
    seeds = seed * torch.randn(NUM_REPEATED, num_seeds, 1, dtype=torch.float64)
    data = datum * torch.randn(NUM_REPEATED, 1, num_data, dtype=torch.float64)
    return seeds + data + interaction * torch.randn(NUM_REPEATED, num_seeds, num_data, dtype=torch.float64)


@pytest.mark.parametrize("numbers", [(3, 3, 20), *(pytest.param(n, marks=pytest.mark.slow) for n in MORE_NUMBERS)])
@pytest.mark.parametrize("effects", [(0.1, 1.0, 1.0), (0.2, 1.0, 3.0), (0.5, 1.0, 0.5), (0.2, 0.1, 0.0)])
def test_intervals_over_seeds_and_data_cover(numbers: tuple[int, ...], effects: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    seed, datum, interaction = effects
    shared = 20 * torch.randn(NUM_REPEATED, 1, numbers[2], dtype=torch.float64)
    pairs = [
        simulate(num_seeds, numbers[2], seed=seed, datum=datum, interaction=interaction) + shared
        for num_seeds in numbers[:2]
    ]
    differences = [difference_over_seeds(ours, theirs) for ours, theirs in zip(*pairs, strict=True)]
    marked = sum(difference.low > 0 or difference.high < 0 for difference in differences) / NUM_REPEATED
    assert 0.015 < marked < 0.075  # 2 to 8 % leave the intervals, up to the error of 2,000 repetitions
    assert marked == sum(difference.p_value < 0.05 for difference in differences) / NUM_REPEATED


def test_one_seed_each_is_the_paired_difference() -> None:
    ours, theirs = torch.randn(2, 50, dtype=torch.float64)
    difference = difference_over_seeds(ours[None], theirs[None])
    assert difference == Difference.over_data(ours, theirs)
    assert difference.p_value == pytest.approx(ttest_rel(ours.numpy(), theirs.numpy()).pvalue)


def test_error_is_exact_without_interaction() -> None:
    seeds, data = torch.tensor([1.0, 2.0, 6.0]), torch.randn(40, dtype=torch.float64)
    theirs = torch.zeros(1, 40, dtype=torch.float64)
    difference = difference_over_seeds(seeds[:, None] + data, theirs)
    assert difference.mean == pytest.approx(3 + data.mean().item())
    assert difference.se == pytest.approx(math.sqrt(7 / 3 + data.var().item() / 40))  # 7: variance of 1, 2, 6


def test_values_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(5,\) and \(6,\)"):
        difference_over_seeds(torch.zeros(2, 5), torch.zeros(2, 6))


def test_holm_adjusts_in_the_order_of_the_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))  # statsmodels gives the same
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([]) == ()


def test_numbers_needed_have_the_power_they_promise() -> None:
    torch.manual_seed(0)
    sd, difference = 3.0, 0.2
    num_data = num_data_needed(sd, difference)
    found = sum(
        Difference.over_data(difference + sd * torch.randn(num_data), torch.zeros(num_data)).p_value < 0.05
        for _ in range(1000)
    )
    assert found / 1000 == pytest.approx(0.8, abs=0.04)
    num_seeds = num_seeds_needed(0.15, difference)
    ours = difference + 0.15 * torch.randn(1000, num_seeds)
    theirs = 0.15 * torch.randn(1000, num_seeds)
    error = ((ours.var(1) + theirs.var(1)) / num_seeds).sqrt()
    found = ((ours.mean(1) - theirs.mean(1)).abs() / error > 2.1009).float().mean()  # t of 18 degrees of freedom
    assert num_seeds == 10
    assert found > 0.75
    assert num_seeds_needed(0.15, difference, error=0.2) is None


@pytest.mark.parametrize("numbers", [(1, 5), (1, 1)])
def test_a_single_seed_varies_as_the_seeds_of_others(numbers: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pairs = [simulate(num_seeds, 50, seed=0.3, datum=0.3, interaction=0.3) for num_seeds in (*numbers, 4)]
    marked = sum(
        difference_over_seeds(ours, theirs, pooled=pool_seed_effects((ours, theirs, third))).p_value < 0.05
        for ours, theirs, third in zip(*pairs, strict=True)
    )
    assert 0.015 < marked / NUM_REPEATED < 0.075
