"""Tests of the bound that an evaluation recommends."""

from dataclasses import replace

import pytest
import torch
from conftest import linear_gaussian, pair_of

from pyrovae import Checks, evaluate
from pyrovae.results import Evaluation
from pyrovae.results.observed_data import DRAWN, MASKED
from pyrovae.results.recommendation import recommend

CHECKS = Checks(num_annealed=40, num_simulated=5, num_refined=0, num_encoded=0, num_temperatures=4, num_chains=4)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    truth = linear_gaussian()
    torch.set_default_dtype(torch.float64)
    try:
        return evaluate(*pair_of(truth, offset=0.3), truth.sample(40), ks=(1, 50), checks=CHECKS)
    finally:
        torch.set_default_dtype(torch.float32)


def with_gain(evaluation: Evaluation, gain: float | None, *, num_annealed: int, se: float | None = 0.01) -> Evaluation:
    """Return an evaluation in which AIS is higher than L_K by a gain, on the first of the data."""
    checked = evaluation.checked
    over_data = None if se is None else 100.0  # large, as for heavy-tailed data
    difference = replace(checked.higher.difference, mean=gain, se=over_data)
    higher = replace(checked.higher, difference=difference, se_monte_carlo=se)
    annealing = replace(checked.annealing, num_data=num_annealed)
    return replace(evaluation, checked=replace(checked, higher=higher, annealing=annealing))


def test_enough_particles_give_an_estimate_with_the_digits_of_the_table(evaluation: Evaluation) -> None:
    weights = replace(evaluation.weights, verdict="K is enough", num_above=0, tolerance=2.0)
    found = recommend(with_gain(replace(evaluation, weights=weights), 0, num_annealed=40))
    assert found.bound == "L_50"
    assert f"log p(x) is estimated as {evaluation.iwae[-1].value:.3f} nats per datum (40 data" in found.sentence
    gap = evaluation.checked.sandwich.gap
    words = f"On simulated data BDMC - AIS is {gap.value:.3f} +- {gap.se_data:.3f} nats."
    assert (
        found.reason
        == f"K is enough as far as the guide's draws reach. On all of these data AIS is not higher. {words}"
    )
    assert found.questions == (found.questions[0],)
    assert "training seeds" in found.questions[0]


@pytest.mark.parametrize(
    ("gap", "se"), [(None, None), (0.04, 0.01), (0.06, 0.0), (0.04, None), (-0.3, 0.01), (0.02, 0.01)]
)
def test_only_simulated_data_make_a_bound_an_estimate(evaluation: Evaluation, gap: float | None, se: float) -> None:
    """A mode that the guide misses raises neither AIS nor k-hat."""
    checked, weights = evaluation.checked, replace(evaluation.weights, verdict="K is enough", tolerance=0.05)
    sandwich = replace(checked.sandwich, gap=replace(checked.sandwich.gap, value=gap, se_data=se))
    sandwiches = (sandwich, None) if gap is None else (sandwich,)
    for given in sandwiches:
        found = recommend(
            with_gain(
                replace(evaluation, weights=weights, checked=replace(checked, sandwich=given)), 0, num_annealed=40
            )
        )
        assert ("is estimated as" in found.sentence) == (gap == 0.02)
        assert ("is at least" in found.sentence) == (gap != 0.02)
        asked = any(question.startswith("Does the guide miss a mode?") for question in found.questions)
        assert asked == (given is None)


@pytest.mark.parametrize("verdict", ["K is not enough", "K may not be enough", "not asymptotic", "unknown"])
def test_too_few_particles_give_a_lower_bound(evaluation: Evaluation, verdict: str) -> None:
    weights = replace(evaluation.weights, verdict=verdict, num_above=20, num_unavailable=0, threshold=0.5)
    found = recommend(with_gain(replace(evaluation, weights=weights), 0, num_annealed=40))
    assert "is at least" in found.sentence
    assert "K above 50" in found.questions[0]
    assert "above 0.50 for 50.0 % of the data" in found.questions[1]


def test_higher_annealing_takes_the_place_of_the_ladder_if_it_is_of_all_data(evaluation: Evaluation) -> None:
    found = recommend(with_gain(evaluation, 2.0, num_annealed=40))
    assert found.bound == "AIS"
    assert f"is at least {evaluation.checked.annealing.bound.value:.3f} nats" in found.sentence
    assert "bits per dimension" not in found.sentence
    assert "2.000 nats on all of these data" in found.reason
    partly = recommend(with_gain(evaluation, 2.0, num_annealed=7))
    assert partly.bound == "L_50"
    assert "2.000 nats on the first 7 of these data" in partly.reason
    assert partly.questions[0] == "What is AIS on all data? Evaluate with num_annealed=40."


@pytest.mark.parametrize(
    ("gain", "se", "words"),
    [
        (0.0, 0.01, " On all of these data AIS is not higher."),
        (-0.3, 0.01, " On all of these data AIS is not higher."),
        (0.25, 0.01, " On all of these data AIS is higher by 0.250 +- 0.010 nats."),
        (2.0, None, " On all of these data AIS is higher by 2.000 nats."),
        (None, None, ""),
    ],
)
def test_annealing_that_does_not_take_its_place_is_compared_with_the_ladder(
    evaluation: Evaluation, gain: float | None, se: float | None, words: str
) -> None:
    weights = replace(evaluation.weights, verdict="K is enough", tolerance=0.3)
    found = recommend(with_gain(replace(evaluation, weights=weights), gain, num_annealed=40, se=se))
    assert found.bound == "L_50"
    assert found.reason.startswith(
        f"K is enough as far as the guide's draws reach.{words} On simulated data BDMC - AIS is "
    )


def test_a_density_its_transform_and_the_observed_values_are_named(evaluation: Evaluation) -> None:
    changes = {"base_measure": "Lebesgue", "bits_per_dimension": 2.5, "data": "digits/train", "num_data": 1}
    masked = replace(evaluation.observed, what=MASKED, num_elements=3)
    found = recommend(replace(evaluation, data_transform={"class": "Dequantization"}, observed=masked, **changes))
    assert found.sentence.startswith("the log-density log p(x) is ")
    assert f"(1 datum of digits/train, dequantized; observed: {MASKED}, 3 elements of a datum; L_50" in found.sentence
    assert found.sentence.endswith("2.5000 bits per dimension of the stored values).")
    assert found.questions[0] == "Why training data? Evaluate the test data."
    found = recommend(replace(evaluation, data="digits/validation"))
    assert found.questions[0] == "Was the validation split used for early stopping? Report the test split."
    counted = recommend(
        replace(evaluation, **(changes | {"base_measure": "counting"}), data_transform={"class": "Mine"})
    )
    assert counted.sentence.startswith("log p(x) is ")
    assert "digits/train, transformed by Mine; L_50" in counted.sentence
    assert counted.sentence.endswith("2.5000 bits per dimension).")


def test_no_number_is_recommended_where_none_is_a_bound(evaluation: Evaluation) -> None:
    rung = replace(evaluation.iwae[-1], value=None, why="a weight is NaN")
    for faulty, reason in (
        (replace(evaluation, unnormalized="its masks depend on z"), "p(x) is not normalized (its masks depend on z)"),
        (replace(evaluation, observed=replace(evaluation.observed, what=DRAWN)), "draws its observations itself"),
        (replace(evaluation, iwae=(rung,)), "L_50 has no value (a weight is NaN)"),
    ):
        found = recommend(faulty)
        assert found.bound is None
        assert found.sentence.startswith("nothing: no number of this evaluation is a bound on log p(x), since ")
        assert reason in found.sentence
        printed = " ".join(str(faulty).split())
        assert printed.endswith(f"{found.sentence} a referee would ask {found.questions[0]}") == (not faulty.warnings)


def test_an_evaluation_without_checks_asks_for_them(evaluation: Evaluation) -> None:
    found = recommend(replace(evaluation, checked=None, data="mnist/test[:40]"))
    assert any("independent method" in question for question in found.questions)
    assert len(found.questions) <= 3
    assert "not known" in recommend(replace(evaluation, checked=None, weights=None)).reason
