"""Pairs with known answers, and the state that no test may change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.diagnostics import gaps
from pyrovae.evaluation import checks
from pyrovae.likelihoods import Likelihood

ModelGuide = tuple[Callable[..., None], Callable[..., None]]


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run every test in float64, with an empty store and a fixed stream, and on the CPU unless it is for a GPU."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that it starts
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """Probabilistic principal components: z ~ N(0, I), x = W z + b + s e with e ~ N(0, I).

    ``log p(x) = log N(x; b, W W^T + s^2 I)``, and ``q(z | x) = N(M^-1 W^T (x - b), s^2 M^-1)`` with
    ``M = W^T W + s^2 I``, which is diagonal where the columns of W are orthogonal.

    *Probabilistic principal component analysis (Tipping, Bishop 1999)*, https://doi.org/10.1111/1467-9868.00196

    Args:
        weight: W, ``(P, D)``.
        bias: b, ``(P,)``.
        scale: s, standard deviation of the noise.

    """

    weight: Tensor
    bias: Tensor
    scale: float

    def sample(self, num_data: int, *, seed: int = 0) -> Tensor:
        """Draw data ``(num_data, P)``."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num_data, self.weight.shape[1], generator=generator, dtype=self.weight.dtype)
        noise = torch.randn(num_data, self.weight.shape[0], generator=generator, dtype=self.weight.dtype)
        return z @ self.weight.T + self.bias + self.scale * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of data ``(N, P)``: ``(N,)``, nats."""
        noise = self.scale**2 * torch.eye(len(self.bias), dtype=self.weight.dtype)
        return MultivariateNormal(self.bias, self.weight @ self.weight.T + noise).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return p(z | x) of data ``(N, P)``, of event shape ``(D,)``."""
        precision = self.weight.T @ self.weight + self.scale**2 * torch.eye(
            self.weight.shape[1], dtype=self.weight.dtype
        )
        covariance = torch.linalg.inv(precision)
        mean = (x - self.bias) @ self.weight @ covariance
        return MultivariateNormal(mean, self.scale**2 * covariance)


@pytest.fixture
def quick_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refine in few steps where `evaluate` splits the gap, in tests of other facts."""
    monkeypatch.setattr(checks, "gaps", functools.partial(gaps, num_steps=10))


def linear_gaussian(*, latent_dim: int = 3, x_dim: int = 5, scale: float = 0.7, seed: int = 0) -> LinearGaussian:
    """Return a linear-Gaussian model with orthogonal columns, whose posterior is diagonal."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(x_dim, latent_dim, generator=generator, dtype=torch.float64))
    lengths = torch.linspace(0.5, 2.0, latent_dim, dtype=torch.float64)
    bias = torch.randn(x_dim, generator=generator, dtype=torch.float64)
    return LinearGaussian(q * lengths, bias, scale)


def pair_of(truth: LinearGaussian, *, offset: float = 0.0, widen: float = 1.0) -> ModelGuide:
    """Return the model as a Pyro pair whose guide is the exact posterior, shifted and widened."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(truth.weight.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ truth.weight.T + truth.bias, truth.scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        exact = truth.posterior(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(exact.mean + offset, widen * exact.variance.sqrt()).to_event(1))

    return model, guide


def scalar_pair(q_mean: float, q_variance: float, *, pixels: bool = False) -> ModelGuide:
    """Return the one-dimensional pairs of the reference table: a Gaussian one, and one with three Bernoulli pixels."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            if pixels:
                logits = z.unsqueeze(-1) * torch.tensor([2.0, -1.0, 0.5]) + torch.tensor([0.5, 0.0, -1.0])
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
            else:
                pyro.sample("x", dist.Normal(0.5 + 2.0 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.tensor(q_mean), q_variance**0.5))

    return model, guide


def make_vae(latent_dim: int = 3, likelihood: Likelihood | None = None) -> VAE:
    """Return a small VAE, of binary images of 8 x 8 if no likelihood is given."""
    likelihood = likelihoods.Bernoulli((1, 8, 8)) if likelihood is None else likelihood
    posterior = posteriors.DiagonalNormal(latent_dim)
    return VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, hidden=(8,)),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(likelihood.x_shape, posterior.param_shape, hidden=(8,)),
        posterior=posterior,
    )


class TwoLayers(nn.Module):
    """Two stochastic layers: the model goes z2 -> z1 -> x, the guide z1 -> z2 or z2 -> z1."""

    def __init__(self, *, bottom_up: bool) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.to_z1, self.to_x = nn.Linear(2, 3), nn.Linear(3, 4)
        self.q1, self.q2 = nn.Linear(4 if bottom_up else 6, 3), nn.Linear(3 if bottom_up else 4, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.to_z1(z2), 0.8).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.to_x(z1)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            if self.bottom_up:
                z1 = pyro.sample("z1", dist.Normal(self.q1(x), 0.6).to_event(1))
                pyro.sample("z2", dist.Normal(self.q2(z1), 0.7).to_event(1))
            else:
                z2 = pyro.sample("z2", dist.Normal(self.q2(x), 0.7).to_event(1))
                rows = torch.cat([x.expand(*z2.shape[:-1], -1), z2], -1)
                pyro.sample("z1", dist.Normal(self.q1(rows), 0.6).to_event(1))
