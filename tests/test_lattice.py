"""The lattice: parts in combination, in a model whose log p(x) is known by quadrature."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pyrovae import Training, evaluate, fit, likelihoods, load, networks, posteriors, priors
from pyrovae.likelihoods import Likelihood
from pyrovae.objectives import ELBO
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.testing import fit_guide, log_evidence, small_vae
from pyrovae.vae import VAE

LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "Bernoulli": lambda: likelihoods.Bernoulli((4,)),
    "Categorical": lambda: likelihoods.Categorical((3,), 4),
    "ContinuousBernoulli": lambda: likelihoods.ContinuousBernoulli((4,)),
    "DiscretizedLogistic": lambda: likelihoods.DiscretizedLogistic((3,), 6),
    "DiscretizedLogisticMixture": lambda: likelihoods.DiscretizedLogisticMixture((3,), 6, num_components=2),
    "Gaussian": lambda: likelihoods.Gaussian((4,), scale=0.7, learn_scale=True),
    "HeteroscedasticGaussian": lambda: likelihoods.HeteroscedasticGaussian((3,)),
    "Laplace": lambda: likelihoods.Laplace((3,), scale=0.7, learn_scale=True),
    "NegativeBinomial": lambda: likelihoods.NegativeBinomial((3,)),
    "Poisson": lambda: likelihoods.Poisson((3,)),
    "StudentT": lambda: likelihoods.StudentT((3,), scale=0.7, learn_scale=True),
}
PRIORS: dict[str, Callable[[nn.Module, Posterior], Prior]] = {
    "DiagonalNormal": lambda encoder, posterior: priors.DiagonalNormal(2),
    "Flow": lambda encoder, posterior: priors.Flow(2),
    "MixtureOfGaussians": lambda encoder, posterior: priors.MixtureOfGaussians(2, num_components=3),
    "StandardNormal": lambda encoder, posterior: priors.StandardNormal(2),
    "StudentT": lambda encoder, posterior: priors.StudentT(2),
    "Vamp": lambda encoder, posterior: priors.Vamp(encoder, posterior, num_components=3),
}
POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "DiagonalNormal": lambda: posteriors.DiagonalNormal(2),
    "FullNormal": lambda: posteriors.FullNormal(2),
    "IAF": lambda: posteriors.IAF(2),
    "LowRankNormal": lambda: posteriors.LowRankNormal(2, rank=1),
}
DEFAULT = ("StandardNormal", "DiagonalNormal")
EVERY_PAIR = itertools.product(("Bernoulli", "Gaussian"), PRIORS, POSTERIORS)
EVERY_TRIPLE = sorted(itertools.product(LIKELIHOODS, PRIORS, POSTERIORS))
CORE = {(likelihood, *DEFAULT) for likelihood in LIKELIHOODS} | set(random.Random(0).sample(EVERY_TRIPLE, 10))
COMBINATIONS = [
    pytest.param(names, id="-".join(names), marks=() if names in CORE else pytest.mark.slow)
    for names in sorted(CORE | set(EVERY_PAIR))
]


def made(likelihood: str, prior: str, posterior: str) -> VAE:
    x_given_z, z_given_x = LIKELIHOODS[likelihood](), POSTERIORS[posterior]()
    encoder = networks.MLPEncoder(x_given_z.x_shape, z_given_x.param_shape, hidden=(16,))
    return small_vae(
        likelihood=x_given_z, prior=PRIORS[prior](encoder, z_given_x), posterior=z_given_x, encoder=encoder
    )


def test_the_lattice_has_every_part() -> None:
    for menu, room, base in [
        (LIKELIHOODS, likelihoods, "Likelihood LevelLikelihood LocationLikelihood"),
        (PRIORS, priors, "Prior"),
        (POSTERIORS, posteriors, "Posterior"),
    ]:
        assert set(menu) == set(room.__all__) - set(base.split())


@pytest.mark.parametrize("names", COMBINATIONS)
def test_lattice(names: tuple[str, str, str], tmp_path: Path) -> None:
    vae = made(*names)
    x = vae.generate(6, seed=1)
    before = evaluate(vae.model, vae.guide, x, ks=(1, 5, 500), show_progress=False)
    truth = log_evidence(vae, x).mean().item()
    ordered_below(before, truth)

    vae.zero_grad()
    with torch.enable_grad():
        ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name

    fit_guide(vae, x)
    truth = log_evidence(vae, x).mean().item()  # anew: a prior that shares the encoder has moved
    after = evaluate(vae.model, vae.guide, x, ks=(1, 5, 500, 20_000), show_progress=False)
    ordered_below(after, truth)
    assert after.iwae[-1].value == pytest.approx(truth, abs=0.02)

    fit(
        vae.model, vae.guide, x, training=Training(epochs=1, device="cpu"), folder=tmp_path / "run", show_progress=False
    )
    trained = evaluate(vae.model, vae.guide, x, ks=(1, 5), show_progress=False)
    loaded = load(tmp_path / "run").vae
    again = evaluate(loaded.model, loaded.guide, x, ks=(1, 5), show_progress=False)
    assert [e.value for e in again.estimates] == [e.value for e in trained.estimates]
    assert again.kl_methods == trained.kl_methods


def ordered_below(evaluation: object, truth: float) -> None:
    """Assert ELBO <= L_5 <= L_500 <= truth within four Monte Carlo standard errors."""
    rungs = [evaluation.elbo, *evaluation.iwae[1:]]
    values = [rung.value for rung in rungs] + [truth]
    for rung, low, high in zip(rungs, values, values[1:], strict=False):
        assert low <= high + 4 * rung.se_monte_carlo + 1e-9, (rung.label, values)
