"""The diffusion model of examples/diffusion.py against plain torch and, for Gaussian data, the exact log p(x)."""

from __future__ import annotations

import importlib.util
import math
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

import pyrovae
from pyrovae import likelihoods
from pyrovae.objectives import Objective

STEPS = 6
STATED = {"ks": (1, 50), "show_progress": False}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "diffusion.py"
    spec = importlib.util.spec_from_file_location("diffusion_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def levels(num: int = 3) -> Tensor:
    return torch.arange(num * 4.0).reshape(num, 1, 2, 2) % 5


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (-0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log())).flatten(-3).sum(-1)


def mean_loss(vae: torch.nn.Module, loss: Objective, x: Tensor, num: int = 40) -> tuple[float, float]:
    """Return the mean of the loss per datum, each datum 100 times in a minibatch, and its standard error."""
    x = x[torch.randperm(100 * len(x)) % len(x)]
    losses = [loss.loss(partial(vae.model, x), partial(vae.guide, x)) / len(x) for _ in range(num)]
    values = torch.stack(losses)
    return values.mean().item(), values.std().item() / math.sqrt(num)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_term_agrees_with_a_plain_loop(example: ModuleType, schedule: str) -> None:
    torch.manual_seed(0)
    vae = example.Diffusion(likelihoods.Categorical((1, 2, 2), 5), schedule, STEPS).double()
    x, ab = levels(), vae.alpha_bar.flatten()
    assert (1 - ab[1]).sqrt().item() == pytest.approx(2 / 4, abs=1e-3)  # one level
    record = pyrovae.particles(vae.model, vae.guide, x, num_particles=7)
    x_0, z = x / 2 - 1, {t: record.z[f"x_{t}"] for t in range(1, STEPS + 1)}
    log_guide = log_normal(z[STEPS], ab[-1].sqrt() * x_0, 1 - ab[-1])
    log_prior = log_normal(z[STEPS], torch.zeros(()), torch.ones(()))
    for t in range(STEPS, 1, -1):
        # q(x_(t-1) | x_t, x_0) by Bayes' rule: precisions and their weighted means add up
        alpha = ab[t] / ab[t - 1]
        variance = 1 / (1 / (1 - ab[t - 1]) + alpha / (1 - alpha))
        time = vae.embedding.weight[t].expand(7, 3, -1)
        noise = (1 - ab[t]).sqrt() * z[t] + ab[t].sqrt() * vae.network(torch.cat([z[t].flatten(2), time], -1))
        guess = (z[t] - (1 - ab[t]).sqrt() * noise) / ab[t].sqrt()
        means = [
            variance * (ab[t - 1].sqrt() * start / (1 - ab[t - 1]) + alpha.sqrt() * z[t] / (1 - alpha))
            for start in (x_0, guess)
        ]
        log_guide = log_guide + log_normal(z[t - 1], means[0], variance)
        log_prior = log_prior + log_normal(z[t - 1], means[1], variance)
    grid = torch.linspace(-1, 1, 5)
    logits = -0.5 * (z[1][..., None] - ab[1].sqrt() * grid) ** 2 / (1 - ab[1])
    chosen = logits.log_softmax(-1).gather(-1, x.long().expand(7, 3, 1, 2, 2)[..., None])
    for ours, theirs in ((record.log_guide, log_guide), (record.log_prior, log_prior)):
        assert (ours - theirs).abs().max() < 1e-8
    assert (record.log_likelihood - chosen.flatten(2).sum(-1)).abs().max() < 1e-8


def test_kl_of_a_step_is_the_difference_of_signal_to_noise_ratios(example: ModuleType) -> None:
    class Constant(example.Diffusion):
        def reverse_step(self, t: int | Tensor, x_t: Tensor) -> TorchDistribution:
            return self.forward_step(torch.zeros(1, 1, 1), t, x_t)  # the estimate of x_0 is 0

    vae = Constant(likelihoods.Categorical((1, 2, 2), 5), "cosine", STEPS).double()
    x, snr = levels(), (vae.alpha_bar / (1 - vae.alpha_bar)).flatten()
    found = pyrovae.evaluate(vae.model, vae.guide, x, **STATED)
    assert set(found.kl_methods.values()) == {"closed form"}
    square = (x / 2 - 1).flatten(1).square().sum(1)
    for t in range(2, STEPS + 1):
        exact = 0.5 * (snr[t - 1] - snr[t]) * square
        assert (found.per_datum[f"KL of x_{t - 1}"] - exact).abs().max() < 1e-8
    total = sum(found.per_datum[f"KL of x_{t}"].mean() for t in range(1, STEPS)).item()
    mean, error = mean_loss(vae, example.OneStep(vae, "ELBO"), x)
    assert 0 < error < 0.01 * total
    assert abs(mean - total) < 4 * error


def test_simple_loss_is_half_the_squared_error_of_the_noise(example: ModuleType) -> None:
    class Silent(example.Diffusion):
        def reverse_step(self, t: int | Tensor, x_t: Tensor) -> TorchDistribution:
            return self.forward_step(x_t / self.alpha_bar[t].sqrt(), t, x_t)  # the estimate of the noise is 0

    vae = Silent(likelihoods.Categorical((1, 2, 2), 5), "linear", STEPS).double()
    mean, error = mean_loss(vae, example.OneStep(vae, "simple"), levels())
    assert 0 < error < 0.05
    assert abs(mean - 0.5 * 4) < 4 * error


def test_every_weight_is_log_p_of_gaussian_data_with_the_optimal_linear_denoiser(example: ModuleType) -> None:
    """x_0 ~ N(0, I) has log p(x) in closed form, and E[x_0 | x_t] = sqrt(alpha_bar_t) x_t."""

    class Linear(example.Diffusion):
        def reverse_step(self, t: int, x_t: Tensor) -> TorchDistribution:
            alpha = self.alpha_bar[t] / self.alpha_bar[t - 1]  # p(x_(t-1) | x_t) of the joint distribution
            return Normal(alpha.sqrt() * x_t, (1 - alpha).sqrt()).to_event(3)

        def decode(self, x_1: Tensor) -> TorchDistribution:
            return Normal(4 + 4 * self.alpha_bar[1].sqrt() * x_1, 4 * (1 - self.alpha_bar[1]).sqrt()).to_event(3)

    vae = Linear(likelihoods.Categorical((1, 2, 2), 9), "cosine", STEPS).double()  # with 9 levels x is 4 + 4 x_0
    x = 4 + 4 * torch.randn(40, 1, 2, 2)
    weights = pyrovae.log_weights(vae.model, vae.guide, x, num_particles=20)
    assert (weights - log_normal(x, torch.tensor(4.0), torch.tensor(16.0))).abs().max() < 1e-9
