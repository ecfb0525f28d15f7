"""Combinations of parts in a model whose log p(x) is known by quadrature.

Eight random combinations run by default; every prior with every posterior, and every likelihood, are slow.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from pyrovae import Training, evaluate, fit, likelihoods, load, networks, posteriors, priors
from pyrovae.likelihoods import Likelihood
from pyrovae.objectives import ELBO
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.results import Evaluation
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
    "Flow": lambda encoder, posterior: priors.Flow(2, hidden=(16,)),
    "MixtureOfGaussians": lambda encoder, posterior: priors.MixtureOfGaussians(2, num_components=3),
    "StandardNormal": lambda encoder, posterior: priors.StandardNormal(2),
    "StudentT": lambda encoder, posterior: priors.StudentT(2),
    "Vamp": lambda encoder, posterior: priors.Vamp(encoder, posterior, num_components=3),
}
POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "DiagonalNormal": lambda: posteriors.DiagonalNormal(2),
    "FullNormal": lambda: posteriors.FullNormal(2),
    "IAF": lambda: posteriors.IAF(2, hidden=(16,)),
    "LowRankNormal": lambda: posteriors.LowRankNormal(2, rank=1),
}
EVERY = sorted(itertools.product(LIKELIHOODS, PRIORS, POSTERIORS))
SAMPLE = random.Random(0).sample(EVERY, 8)
SLOW = [(name, "StandardNormal", "DiagonalNormal") for name in LIKELIHOODS]
SLOW += itertools.product(("Bernoulli", "Gaussian"), PRIORS, POSTERIORS)


def make(likelihood: str, prior: str, posterior: str) -> VAE:
    x_given_z, z_given_x = LIKELIHOODS[likelihood](), POSTERIORS[posterior]()
    encoder = networks.MLPEncoder(x_given_z.x_shape, z_given_x.param_shape, hidden=(16,))
    return small_vae(
        likelihood=x_given_z, prior=PRIORS[prior](encoder, z_given_x), posterior=z_given_x, encoder=encoder
    )


def test_every_part_is_combined() -> None:
    for menu, room, base in [
        (LIKELIHOODS, likelihoods, "Likelihood LevelLikelihood LocationLikelihood"),
        (PRIORS, priors, "Prior"),
        (POSTERIORS, posteriors, "Posterior"),
    ]:
        assert set(menu) == set(room.__all__) - set(base.split())


@pytest.mark.parametrize("names", SAMPLE, ids="-".join)
def test_bounds_gradients_and_run_folder(names: tuple[str, str, str], tmp_path: Path) -> None:
    vae = make(*names)
    x = vae.generate(6, seed=1)
    check_order(evaluate(vae.model, vae.guide, x, ks=(1, 5, 500), show_progress=False), log_evidence(vae, x))
    ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    folder = tmp_path / "run"
    fit(vae.model, vae.guide, x, training=Training(epochs=1, device="cpu"), folder=folder, show_progress=False)
    trained = evaluate(vae.model, vae.guide, x, ks=(1, 5), show_progress=False)
    loaded = load(folder).vae
    again = evaluate(loaded.model, loaded.guide, x, ks=(1, 5), show_progress=False)
    assert [e.value for e in again.estimates] == [e.value for e in trained.estimates]
    assert again.kl_methods == trained.kl_methods


@pytest.mark.slow
@pytest.mark.parametrize("names", sorted({*SLOW, *SAMPLE}), ids="-".join)
def test_bounds_reach_log_evidence_after_a_fit_of_the_guide(names: tuple[str, str, str]) -> None:
    vae = make(*names)
    x = vae.generate(6, seed=1)
    fit_guide(vae, x)
    evidence = log_evidence(vae, x)  # after the fit: a prior that shares the encoder has changed
    evaluation = evaluate(vae.model, vae.guide, x, ks=(1, 5, 500, 20_000), show_progress=False)
    check_order(evaluation, evidence)
    assert evaluation.iwae[-1].value == pytest.approx(evidence.mean().item(), abs=0.02)


def check_order(evaluation: Evaluation, evidence: Tensor) -> None:
    """Assert ELBO <= L_5 <= L_500 <= log p(x) within four Monte Carlo standard errors."""
    rungs = [evaluation.elbo, *evaluation.iwae[1:]]
    values = [rung.value for rung in rungs] + [evidence.mean().item()]
    for rung, low, high in zip(rungs, values, values[1:], strict=False):
        assert low <= high + 4 * rung.se_monte_carlo + 1e-9, (rung.label, values)
