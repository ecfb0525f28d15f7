"""Random small models with a known log p(x): no bound exceeds it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import ModelGuide, evaluate
from pyro import poutine
from torch import Tensor

from pyrovae import likelihoods

NUM_DATA, NUM_PIXELS = 4, 3
GRID = {  # midpoints that cover almost all mass of the priors below
    "real": (-40.0, 40.0, 40_000),
    "positive": (0.0, 80.0, 40_000),
    "unit": (0.0, 1.0, 20_000),
}
PRIORS: dict[str, list[Callable[[], Any]]] = {
    "real": [
        lambda: dist.Normal(_number(-1, 1), _number(0.5, 2)),
        lambda: dist.Laplace(_number(-1, 1), _number(0.5, 1)),
        lambda: dist.StudentT(torch.tensor(8.0), _number(-1, 1), _number(0.5, 1)),
        lambda: dist.Logistic(_number(-1, 1), _number(0.3, 1)),
    ],
    "positive": [
        lambda: dist.LogNormal(_number(-1, 0.5), _number(0.3, 0.8)),
        lambda: dist.Gamma(_number(1, 4), _number(1, 2)),
        lambda: dist.Exponential(_number(0.5, 2)),
    ],
    "unit": [
        lambda: dist.Beta(_number(1, 4), _number(1, 4)),
        lambda: dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)),
    ],
}
GUIDES: dict[str, list[Callable[[Tensor], Any]]] = {  # of location (B,), with draws in the support of the prior
    "real": [
        lambda m: dist.Normal(m, _number(0.3, 1.5)),
        lambda m: dist.Laplace(m, _number(0.3, 1)),
        lambda m: dist.StudentT(torch.tensor(5.0), m, _number(0.3, 1)),
        lambda m: dist.LogNormal(0.3 * m, 0.5),  # a part of the support: a bound all the same
    ],
    "positive": [
        lambda m: dist.LogNormal(0.3 * m, _number(0.3, 1)),
        lambda m: dist.Gamma(_number(1, 4).expand_as(m), (0.3 * m).exp()),
        lambda m: dist.Beta(2 + 0 * m, 2.0),
    ],
    "unit": [
        lambda m: dist.Beta((0.3 * m).exp() + 0.5, _number(0.8, 3)),
        lambda m: dist.Uniform(0.2 * m.sigmoid(), torch.tensor(0.9)),
    ],
}


def _number(low: float, high: float) -> Tensor:
    return torch.tensor(random.uniform(low, high))


def _likelihood(kind: str, z: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """Return p(x | z) for z of any shape, over ``NUM_PIXELS`` elements."""
    at = (z.unsqueeze(-1) * weight + bias).clamp(-30, 30)
    match kind:
        case "bernoulli":
            return dist.Bernoulli(logits=at).to_event(1)
        case "ours":
            return likelihoods.Bernoulli((NUM_PIXELS,))(at.unsqueeze(-1))
        case "normal":
            return dist.Normal(at, 0.7).to_event(1)
        case "poisson":
            return dist.Poisson(at.clamp(max=4).exp()).to_event(1)
    raise AssertionError(kind)


def _models(
    seed: int,
) -> tuple[Callable[[Callable[[Tensor], Any], Any], ModelGuide], Callable[[Any, str], Tensor], Tensor]:
    """Return a maker of model and guide, log p(x) by quadrature, and data drawn from some z."""
    kind = random.choice(["bernoulli", "ours", "normal", "poisson"])
    torch.manual_seed(seed)
    weight, bias, slope = torch.randn(NUM_PIXELS), torch.randn(NUM_PIXELS), torch.randn(NUM_PIXELS)
    x = _likelihood(kind, torch.rand(NUM_DATA), weight, bias).sample()

    def make(guide_of: Callable[[Tensor], Any], prior: Any) -> ModelGuide:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior)
                pyro.sample("x", _likelihood(kind, z, weight, bias), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", guide_of(x.clamp(-3, 3) @ slope))

        return model, guide

    def log_evidence(prior: Any, support: str) -> Tensor:
        low, high, num = GRID[support]
        width = (high - low) / num
        z = low + width * (torch.arange(num) + 0.5)
        log_joint = prior.log_prob(z) + _likelihood(kind, z.unsqueeze(-1), weight, bias).log_prob(x).T
        return log_joint.logsumexp(-1) + math.log(width)

    return make, log_evidence, x


def check_bounds(seed: int) -> None:
    random.seed(seed)
    make, log_evidence, x = _models(seed)
    support = random.choice(list(PRIORS))
    prior, guide_of = random.choice(PRIORS[support])(), random.choice(GUIDES[support])
    scale = random.uniform(0.5, 2)  # no scale may reach a bound
    model, guide = make(guide_of, prior)
    random.seed(seed)  # the same numbers at every run of the guide

    def seeded(x: Tensor) -> None:
        random.seed(seed)
        guide(x)

    found = evaluate(poutine.scale(model, scale), seeded, x, ks=(1, 10, 100), seed=seed)
    truth = log_evidence(prior, support).mean().item()
    for estimate in (found.elbo, *found.iwae):
        assert estimate.value is not None
        assert estimate.value <= truth + 4 * (estimate.se_monte_carlo or 0) + 1e-6, (seed, estimate, truth)


@pytest.mark.parametrize("block", range(6))
def test_no_bound_exceeds_the_evidence(block: int) -> None:
    for seed in range(8 * block, 8 * (block + 1)):
        check_bounds(seed)


@pytest.mark.slow
def test_no_bound_exceeds_the_evidence_of_240_models() -> None:
    for seed in range(1000, 1240):
        check_bounds(seed)
