"""What a model observes is part of what was evaluated: whole data however laid out, or a part of them, or others."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ModelGuide, evaluate, guide_from, make_vae, program, standard_normal
from torch import Tensor

import pyrovae
from pyrovae import likelihoods
from pyrovae.results import Evaluation, compare

HALF = torch.tensor([True, False, True, False])
OTHER_HALF = torch.tensor([False, True, True, False])
Observe = Callable[..., None]


def observing(observe: Observe, *, dim: int = -1) -> ModelGuide:
    """Return a pair whose z says nothing of x, so that every bound is log p(x); ``observe`` has the observed sites."""

    def guide(*_: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))

    return program(lambda *args: (guide(), observe(*args)), dim=dim), program(guide, dim=dim)


def evaluated(pair: ModelGuide, data: Any, **options: Any) -> Evaluation:
    return evaluate(*pair, data, ks=(1, 2), **options)


def sample(value: Tensor, name: str = "x", mask: Tensor | None = None) -> None:
    """Observe a value under a standard normal distribution."""
    fn = dist.Normal(torch.zeros(value.shape[1:]), 1.0)
    pyro.sample(name, (fn if mask is None else fn.mask(mask)).to_event(value.ndim - 1), obs=value)


def masked(mask: Tensor) -> Observe:
    return lambda x: sample(x, mask=mask)


def in_a_plate(x: Tensor) -> None:
    with pyro.plate("pixels", 64, dim=-2):
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=x.flatten(1).T)


def halves(x: Tensor) -> None:
    sample(x[..., 4:, :].double(), "lower")
    sample(x[..., :4, :].double(), "upper")


def one_by_one(x: Tensor) -> None:
    for i, column in enumerate(x.flatten(1).T):
        sample(column, f"x_{i}")


def under_a_mask_of_ones(x: Tensor) -> None:
    with pyro.poutine.mask(mask=torch.ones(len(x), dtype=torch.bool)):
        sample(x, mask=torch.ones(1, 8, 8, dtype=torch.bool))


LAYOUTS: dict[str, Observe] = {
    "flat": lambda x: pyro.sample("pixels", dist.Laplace(torch.zeros(64), 1.0).to_event(1), obs=x.flatten(1)),
    "image": sample,
    "channels last": lambda x: sample(x.permute(0, 2, 3, 1)),
    "in a plate": in_a_plate,
    "halves": halves,
    "one by one": one_by_one,
    "under a mask of ones": under_a_mask_of_ones,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_data_are_the_same_however_they_are_laid_out(name: str) -> None:
    x = torch.rand(11, 1, 8, 8)
    vae = make_vae(likelihood=likelihoods.Gaussian((1, 8, 8)))
    ours = evaluate(vae.model, vae.guide, x, ks=(1, 2))
    found = evaluated(observing(LAYOUTS[name]), x, batch_size=4)
    assert ours.observed.what == "x"
    assert ours.observed.num_elements == 64.0
    assert found.observed == ours.observed
    assert len(compare({"VAE": ours, "by hand": found}).blocks) == 1


def masked_in_a_plate(x: Tensor) -> None:
    with pyro.plate("columns", 4, dim=-1), pyro.poutine.mask(mask=HALF):
        pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0), obs=x)


def first_two(x: Tensor) -> None:
    sample(x[:, :2])


def test_another_part_or_other_values_are_told_apart() -> None:
    x = torch.randn(9, 4)
    models = {
        "whole": sample,
        "first": first_two,
        "half": masked(HALF),
        "other half": masked(OTHER_HALF),
        "scaled": lambda x: sample(2 * x),
        "twice": lambda x: (sample(x), sample(x, "again")),
        "last": lambda x: sample(x[:, 2:]),
    }
    found = {name: evaluated(observing(observe), x, batch_size=5) for name, observe in models.items()}
    assert len({each.data_hash for each in found.values()}) == 1
    assert len({each.observed.hash for each in found.values()}) == len(models)
    assert {name: each.observed.num_elements for name, each in found.items()} == {
        "whole": 4.0, "first": 2.0, "half": 2.0, "other half": 2.0, "scaled": 4.0, "twice": 8.0, "last": 2.0,
    }  # fmt: skip
    assert [len(block.rows) for block in compare(found, blocks=True).blocks] == [1] * len(models)
    # the same part by other means
    assert evaluated(observing(masked_in_a_plate, dim=-2), x).observed.hash == found["half"].observed.hash
    assert evaluated(observing(masked(torch.tensor([True, True, False, False]))), x).observed.hash == (
        found["first"].observed.hash
    )


def test_a_comparison_of_different_parts_is_refused_and_says_which() -> None:
    x = torch.randn(9, 4)
    parts = {"a": sample, "b": masked(HALF), "c": first_two}
    found = {name: evaluated(observing(observe), x) for name, observe in parts.items()}
    with pytest.raises(ValueError, match="but these differ in observed values ") as refused:
        compare(found | {"again": found["a"]})
    for words in (
        "(a, again: x, 4 elements of a datum, sha256 ",
        "b: x where it is not masked, 2 elements",
        "c: a part of x, or x and values made of it",
    ):
        assert words in str(refused.value)
    assert "observed" not in str(found["a"])
    assert "observed: x where it is not masked, 2 elements of a datum" in str(found["b"])


@pytest.mark.parametrize("batch_size", [3, 50])
def test_bits_are_over_the_elements_that_are_scored(batch_size: int) -> None:
    """Masks that travel with the data leave another number of each; log p(x) is a sum over what they leave."""
    x = torch.poisson(torch.full((20, 4), 2.0))
    keep = torch.rand(20, 4) < 0.6
    keep[0] = False

    def observe(x: Tensor, keep: Tensor) -> None:
        pyro.sample("x", dist.Poisson(torch.full((4,), 2.0)).mask(keep).to_event(1), obs=x)

    found = evaluated(observing(observe), (x, keep.double().bool()), batch_size=batch_size)
    log_probs = dist.Poisson(2.0).log_prob(x)
    assert found.iwae[-1].value == pytest.approx((log_probs * keep).sum(1).mean().item())
    assert found.observed.what == "x where it is not masked"
    assert found.observed.num_elements == pytest.approx(keep.sum().item() / 20)
    assert found.bits_per_dimension == pytest.approx(-log_probs[keep].mean().item() / math.log(2))
    column = evaluated(observing(lambda x: pyro.sample("x", dist.Poisson(2.0), obs=x[:, 1])), x)
    assert column.bits_per_dimension == pytest.approx(-log_probs[:, 1].mean().item() / math.log(2))
    nothing = evaluated(observing(observe), (x, torch.zeros_like(keep)))
    assert (nothing.observed.num_elements, nothing.bits_per_dimension) == (0.0, None)


def test_a_letter_of_a_one_hot_distribution_is_one_dimension() -> None:
    letters = torch.randint(4, (10, 20))
    x, logits = torch.nn.functional.one_hot(letters, 4).double(), torch.zeros(20, 4)
    keep = torch.rand(20) < 0.5
    one_hot = dist.OneHotCategorical(logits=logits)
    found = {
        "one-hot": (one_hot.to_event(1), x),
        "masked": (one_hot.mask(keep).to_event(1), x),
        "number": (dist.Categorical(logits=logits).to_event(1), letters),
        "independent": (dist.Bernoulli(logits=torch.zeros(20, 4)).to_event(2), x),
        "counts": (dist.Multinomial(20, logits=torch.zeros(4)), x.sum(1)),
    }
    bits = {
        name: evaluated(observing(lambda x, fn=fn: pyro.sample("x", fn, obs=x)), x).bits_per_dimension
        for name, (fn, x) in found.items()
    }
    expected = {"one-hot": 2.0, "masked": 2.0, "number": 2.0, "independent": 1.0, "counts": None}
    assert bits == {name: value and pytest.approx(value) for name, value in expected.items()}


def test_bits_of_dequantized_data_take_the_volume_of_what_is_scored() -> None:
    split = pyrovae.data.digits().for_form("continuous").test.first(12)
    x, keep = split.fixed(), torch.rand(1, 8, 8) < 0.5

    def observe(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(torch.zeros(1, 8, 8), 1.0).mask(keep).to_event(3), obs=x)

    found = evaluated(observing(observe), split)
    log_probs, count = dist.Normal(0.0, 1.0).log_prob(x)[:, keep], int(keep.sum())
    assert found.log_abs_det_jacobian == pytest.approx(-count * math.log(17))
    assert found.bits_per_dimension == pytest.approx(-(log_probs - math.log(17)).mean().item() / math.log(2))
    twofold = evaluated(observing(lambda x: sample(2 * x)), split)
    assert (twofold.log_abs_det_jacobian, twofold.bits_per_dimension) == (None, None)
    entire = evaluated(observing(sample), split)
    assert entire.log_abs_det_jacobian == pytest.approx(-64 * math.log(17))
    bits = -(entire.iwae[-1].value - 64 * math.log(17)) / (64 * math.log(2))
    assert entire.bits_per_dimension == pytest.approx(bits)
    assert evaluated(observing(sample), x).bits_per_dimension is None  # values without their transform
    levels = dataclasses.replace(entire, base_measure="counting", data_hash="levels")
    shared = "code lengths of the same stored values"
    assert shared in str(compare({"density": entire, "levels": levels}, blocks=True))
    assert shared not in str(compare({"density": found, "levels": levels}, blocks=True))


@pytest.mark.parametrize(
    "observe", [lambda x: sample(x + torch.rand_like(x)), lambda x: sample(x, mask=torch.rand(x.shape) < 0.5)]
)
def test_values_that_the_model_draws_are_like_no_others(observe: Observe) -> None:
    x = torch.randn(9, 4)
    state = torch.get_rng_state()
    found, again = (evaluated(observing(observe), x) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert found.observed.what == "values that the model draws itself"
    assert found.bits_per_dimension is None
    assert compare({"a": found, "b": again}).blocks[0].rows, "one program, one stream"
    with pytest.raises(ValueError, match=r"b: values that the model draws itself, "):
        compare({"a": evaluated(observing(sample), x), "b": found})


def test_observed_values_that_depend_on_z_are_drawn() -> None:
    model = program(lambda x: sample(x - pyro.sample("z", standard_normal(4))))
    pair = model, guide_from(lambda x: standard_normal(4).expand([len(x)]))
    assert evaluated(pair, torch.randn(5, 4)).observed.what == "values that the model draws itself"


def test_a_factor_does_not_say_what_it_scores() -> None:
    x = torch.randn(5, 4)
    found = evaluated(observing(lambda x: pyro.factor("x", -x.square().sum(1))), x)
    assert found.observed is None
    with pytest.raises(ValueError, match=r"a: .*observed values not known, .*; b: .*x, 4 elements of a datum"):
        compare({"a": found, "b": evaluated(observing(sample), x)})


def test_an_evaluation_from_before_this_was_recorded_is_read() -> None:
    x = torch.randn(5, 4)
    found = evaluated(observing(sample), x)
    plain = json.loads(found.to_json())
    assert Evaluation.from_json(json.dumps(plain), found.per_datum) == found
    plain["observed"] = {"what": "x", "num_elements": 4.0, "hash": found.observed.hash}
    assert Evaluation.from_json(json.dumps(plain), found.per_datum) == found
    del plain["observed"]
    old = Evaluation.from_json(json.dumps(plain), found.per_datum)
    assert old == dataclasses.replace(found, observed=None)
    assert compare({"a": old, "b": old}).blocks[0].rows
    with pytest.raises(ValueError, match=r"a: observed values not known; b: x, "):
        compare({"a": old, "b": found})


# names of numbers


def joint(x: Tensor, y: Tensor) -> None:
    sample(x)
    sample(y, "y")


def given_y(x: Tensor, y: Tensor) -> None:
    pyro.sample("x", dist.Normal(y.unsqueeze(-1).expand(-1, 4), 1.0).to_event(1), obs=x)


def given_x(x: Tensor, y: Tensor) -> None:
    pyro.sample("label", dist.Normal(x.sum(-1), 1.0), obs=y)


def scaled_and_labelled(x: Tensor, y: Tensor) -> None:
    sample(2 * x)
    pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), obs=(y > 0).double())


def test_rows_that_are_all_equal_do_not_hide_an_observation() -> None:
    data = (torch.ones(4, 4), torch.ones(4))
    assert evaluated(observing(joint), data).density == "p(x, y)"
    assert evaluated(observing(given_y), data).density == "p(x | c)"


@pytest.mark.parametrize(
    ("observe", "density", "num_given", "what"),
    [
        (joint, "p(x, y)", 0, "x"),
        (given_y, "p(x | c)", 1, "x"),
        (given_x, "p(label | x)", 4, "x"),
        (scaled_and_labelled, "p(observed x, y)", 0, "values made of x"),
        (lambda x, y: sample(y, "label"), "p(label)", 0, "x"),
        (lambda x, y: sample(torch.cat([x, y.unsqueeze(-1)], -1), "xy"), "p(xy)", 0, "x"),
    ],
)
def test_a_number_is_named_by_what_is_observed(observe: Observe, density: str, num_given: int, what: str) -> None:
    found = evaluated(observing(observe), (torch.randn(9, 4), torch.randn(9)), batch_size=4)
    assert found.density == density
    assert found.num_covariates == num_given
    assert found.observed.what == what
    assert f"Estimates of log {density}" in str(found)


def test_given_arguments_are_called_by_their_names() -> None:
    pair = observing(given_y)
    data = torch.randn(9, 4), torch.randn(9)
    assert evaluated(((lambda x, y: pair[0](x, y)), pair[1]), data).density == "p(x | y)"


def test_multinomial_counts_of_other_totals_are_conditioned_on_them() -> None:
    x = torch.tensor([[1.0, 2, 0], [1, 1, 1], [3, 0, 0], [0, 4, 1], [2, 0, 0]])

    def multinomial(x: Tensor) -> None:
        pyro.sample("x", dist.Multinomial(int(x.sum(-1).max()), probs=torch.ones(3) / 3), obs=x)

    def poisson(x: Tensor) -> None:
        pyro.sample("x", dist.Poisson(torch.ones(3)).to_event(1), obs=x)

    def compound(x: Tensor) -> None:
        pyro.sample("x", dist.DirichletMultinomial(torch.ones(3), x.sum(-1)), obs=x)

    def both(x: Tensor) -> None:
        pyro.sample("total", dist.Poisson(3.0 * x.new_ones(())), obs=x.sum(-1))
        multinomial(x)

    densities = {f: evaluated(observing(f), x, batch_size=2).density for f in (multinomial, poisson, compound, both)}
    assert list(densities.values()) == ["p(x | total)", "p(x)", "p(x | total)", "p(total, x)"]
    assert evaluated(observing(multinomial), x[:3]).density == "p(x)"  # one total is one of the model's parameters
    found = evaluated(observing(multinomial), x)
    assert "for log p(x) observe the total too" in " ".join(str(found).split())
    with pytest.raises(ValueError, match=r"differ in covariates \(a: 1 covariates; b: 0 covariates\)"):
        compare({"a": found, "b": evaluated(observing(poisson), x)})


def test_bits_do_not_mix_pixels_and_labels() -> None:
    def observe(x: Tensor, y: Tensor) -> None:
        pyro.sample("x", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1), obs=x)
        pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)), obs=y)

    def derived(x: Tensor) -> None:
        observe(x, x[:, 0] * x[:, 1])

    x = torch.bernoulli(torch.full((9, 5), 0.5))
    assert evaluated(observing(observe), (x[:, :4], x[:, 4])).bits_per_dimension is None
    assert evaluated(observing(derived), x[:, :4]).bits_per_dimension is None


def test_values_that_look_discrete_are_counted() -> None:
    x = torch.arange(200.0).reshape(50, 4)
    found = evaluated(observing(sample), (x % 17) / 16)
    assert found.observed.num_values == 17
    assert "the data look discrete (distinct values: 17)" in str(found)
    assert evaluated(observing(sample), x).observed.num_values is None
    sparse = torch.randn(50, 4) * (torch.rand(50, 4) > 0.9)  # most are 0, the others are all different
    assert evaluated(observing(sample), sparse).observed.num_values is None
