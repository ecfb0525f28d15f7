"""Random small models with a known log p(x): no bound exceeds it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from conftest import evaluate, pair_from
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
        lambda: dist.Uniform(torch.tensor(0.0), 1.0),
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


LIKELIHOODS: list[Callable[[Tensor], Any]] = [  # of logits, means or log-rates (..., NUM_PIXELS)
    lambda at: dist.Bernoulli(logits=at).to_event(1),
    lambda at: likelihoods.Bernoulli((NUM_PIXELS,))(at.unsqueeze(-1)),
    lambda at: dist.Normal(at, 0.7).to_event(1),
    lambda at: dist.Poisson(at.clamp(max=4).exp()).to_event(1),
]


def check_bounds(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    weight, bias, slope = torch.randn(3, NUM_PIXELS)
    distribution, support = random.choice(LIKELIHOODS), random.choice(list(PRIORS))
    prior, guide_of = random.choice(PRIORS[support])(), random.choice(GUIDES[support])

    def p_x(z: Tensor, _: Tensor | None = None) -> Any:
        return distribution((z.unsqueeze(-1) * weight + bias).clamp(-30, 30))

    def q_z(x: Tensor) -> Any:
        random.seed(seed)  # the same numbers at every run of the guide
        return guide_of(x.clamp(-3, 3) @ slope)

    x = p_x(torch.rand(NUM_DATA)).sample()
    model, guide = pair_from(prior, p_x, q_z)
    scale = random.uniform(0.5, 2)  # no scale may reach a bound
    found = evaluate(poutine.scale(model, scale), guide, x, ks=(1, 10, 100), seed=seed)
    low, high, num = GRID[support]
    z = low + (high - low) / num * (torch.arange(num) + 0.5)
    log_joint = prior.log_prob(z) + p_x(z.unsqueeze(-1)).log_prob(x).T
    truth = log_joint.logsumexp(-1).mean().item() + math.log((high - low) / num)
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
