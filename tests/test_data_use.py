"""Densities that depend on the values that they score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import guide_from, pair_from, program, standard_normal
from torch import Tensor, nn

import pyrovae
from pyrovae.results import Evaluation

WEIGHT = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -0.6]])
MISSING = -2.0
Program = Callable[[Tensor], None]


@pytest.fixture(autouse=True)
def _float32() -> None:
    torch.set_default_dtype(torch.float32)


guide = guide_from(lambda x: dist.Normal(x[:, :2] / 2, 0.9).to_event(1))


def model_of(
    mean: Callable[[Tensor, Tensor], Tensor] = lambda z, x: z @ WEIGHT,
    *,
    scale: Callable[[Tensor, Tensor], Any] = lambda mean, x: 0.5,
    prior: Callable[[Tensor], Tensor] = lambda x: torch.zeros(len(x), 2),
    value: Callable[[Tensor], Tensor] = lambda x: x,
    mask: Callable[[Tensor], Any] = lambda x: True,
) -> Program:
    """Return a model ``z ~ N(prior(x), I), value(x) ~ N(mean(z, x), scale(mean, x))``."""

    def body(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(prior(x), 1.0).to_event(1))
        loc = mean(z, x)
        pyro.sample("x", dist.Normal(loc, scale(loc, x)).mask(mask(x)).to_event(1), obs=value(x))

    return program(body)


def sequential(x: Tensor) -> None:
    """Draw z from a prior that depends on an element observed before it, as a variational recurrent network does."""
    pyro.sample("first", dist.Normal(0.0, 1.0), obs=x[:, 0])
    z = pyro.sample("z", dist.Normal(x[:, :1].expand(-1, 2), 1.0).to_event(1))
    pyro.sample("others", dist.Normal(z, 1.0).to_event(1), obs=x[:, 1:])


def counts(x: Tensor) -> None:
    """Observe counts with a total that the model computes itself."""
    shares = (pyro.sample("z", standard_normal(2)) @ WEIGHT).softmax(-1)
    pyro.sample("x", dist.Poisson(shares * (1 + x.abs().sum(-1, keepdim=True))).to_event(1), obs=x.abs().round())


def evaluate(model: Program, num_data: int = 40) -> Evaluation:
    torch.manual_seed(0)
    x = torch.randn(num_data, 2) @ WEIGHT + 0.5 * torch.randn(num_data, 3)
    x[::3, 1] = MISSING
    return pyrovae.evaluate(model, guide, x, ks=(1, 4), show_progress=False)


CAUSAL, SELF = torch.ones(3, 3).triu(1), torch.ones(3, 3).triu(0)
NORM = nn.BatchNorm1d(3, track_running_stats=False)
RIGHT = {
    "plain": model_of(),
    "autoregressive": model_of(lambda z, x: z @ WEIGHT + x @ CAUSAL),
    "autoregressive prior": program(sequential),
    "missing values": model_of(mask=lambda x: x != MISSING),
    "a prior that follows the elements": model_of(prior=lambda x: torch.stack([0 * x[:, 0], x[:, 0]], -1)),
}
WRONG = {
    "skip connection": (model_of(lambda z, x: z @ WEIGHT + 0.5 * x), "depends on the value that it scores"),
    "a mask that is off by one": (model_of(lambda z, x: z @ WEIGHT + x @ SELF), "depends on the value that it scores"),
    "optimal scale": (
        model_of(scale=lambda mean, x: (x - mean).square().mean(-1, keepdim=True).sqrt()),
        "depends on the value that it scores",
    ),
    "scale of the batch": (model_of(scale=lambda mean, x: (x - mean).square().mean().sqrt()), "depends on other data"),
    "total of counts": (program(counts), "depends on the value that it scores"),
    "prior made of x": (model_of(prior=lambda x: x[:, :2] + x[:, 1:]), "the prior of 'z' depends on 'x'"),
    "each given the others": (model_of(lambda z, x: z @ WEIGHT + x @ (1 - torch.eye(3))), "depend on each other"),
    "normalization over the batch": (model_of(lambda z, x: NORM(z @ WEIGHT)), "depends on other data"),
    "data standardized in the batch": (model_of(value=lambda x: (x - x.mean(0)) / x.std(0)), "depends on other data"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_models_whose_densities_have_an_integral_of_one_pass(name: str) -> None:
    evaluation = evaluate(RIGHT[name])
    assert evaluation.unnormalized is None
    assert evaluation.certified is not None
    assert "rest of" not in evaluation.density


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WRONG)
def test_models_that_see_the_value_they_score_have_no_bound(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, words = WRONG[name]
    evaluation = evaluate(model)
    assert words in (evaluation.unnormalized or "")
    assert evaluation.certified is None
    assert evaluation.recommendation.bound is None
    assert words in caplog.text
    assert words in evaluation.to_text(10_000)


def test_a_model_of_a_part_given_the_rest_says_so() -> None:
    model = model_of(lambda z, x: z @ WEIGHT[:, 1:] + x[:, :1], value=lambda x: x[:, 1:])
    evaluation = evaluate(model)
    assert evaluation.density == "p(x | rest of x)"
    assert evaluation.num_covariates == 1
    assert evaluation.unnormalized is None
    marginal = evaluate(model_of(lambda z, x: z @ WEIGHT[:, 1:], value=lambda x: x[:, 1:]))
    with pytest.raises(ValueError, match=r"differ in covariates"):
        pyrovae.compare({"given": evaluation, "marginal": marginal})


def test_values_made_of_x_are_not_called_x() -> None:
    evaluation = evaluate(model_of(lambda z, x: z @ WEIGHT / 100, value=lambda x: x / 100))
    assert evaluation.density == "p(observed x)"
    assert "log p(observed x) is at least" in str(evaluation.recommendation)
    assert evaluate(model_of(lambda z, x: z @ WEIGHT[:, 1:], value=lambda x: x[:, 1:])).density == "p(x)"


def test_values_that_the_model_draws_are_not_called_coupled() -> None:
    """The number of random numbers behind a Poisson draw depends on the data before it."""
    drawn = evaluate(model_of(value=lambda x: torch.poisson(x.abs())))
    assert drawn.unnormalized is None
    assert drawn.observed is not None
    assert drawn.observed.what == "values that the model draws itself"


def test_training_warns_too(caplog: pytest.LogCaptureFixture) -> None:
    encoder = nn.Linear(3, 2)
    trained = guide_from(lambda x: dist.Normal(encoder(x), 0.9).to_event(1))
    for model, words in (WRONG["skip connection"], (RIGHT["autoregressive"], None)):
        caplog.clear()
        pyrovae.fit(model, trained, torch.randn(20, 3), epochs=1, show_progress=False)
        assert ("is no bound on log p(x)" in caplog.text) == (words is not None)


def test_data_of_one_number_are_changed_too() -> None:
    pair = pair_from(
        lambda _: standard_normal(2),
        lambda z, x: dist.Normal(z[..., 0] + 0.5 * x, 1.0),
        lambda x: dist.Normal(x.unsqueeze(-1).expand(-1, 2) / 2, 0.9).to_event(1),
    )
    evaluation = pyrovae.evaluate(*pair, torch.randn(20), ks=(1, 4), show_progress=False)
    assert "depends on the value that it scores" in (evaluation.unnormalized or "")


def test_a_single_datum_is_changed_too() -> None:
    assert evaluate(WRONG["skip connection"][0], num_data=1).unnormalized is not None
