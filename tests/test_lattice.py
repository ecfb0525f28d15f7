"""Combinations of parts in a model whose log p(x) is known by quadrature.

Every part occurs in one of the combinations that run by default; every prior with every posterior is slow.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from conftest import menu, small_part
from torch import Tensor

from pyrovae import Training, evaluate, fit, likelihoods, load, networks, posteriors, priors
from pyrovae.objectives import ELBO
from pyrovae.results import Evaluation
from pyrovae.testing import fit_guide, log_evidence, small_vae
from pyrovae.vae import VAE

LIKELIHOODS, PRIORS, POSTERIORS = (
    {part.__name__: part for part in menu(room)} for room in (likelihoods, priors, posteriors)
)
COVER = list(zip(LIKELIHOODS, itertools.cycle(PRIORS), itertools.cycle(POSTERIORS)))
SLOW = [*COVER, *itertools.product(("Bernoulli", "Gaussian"), PRIORS, POSTERIORS)]


def make(likelihood: str, prior: str, posterior: str) -> VAE:
    x_given_z, z_given_x = small_part(LIKELIHOODS[likelihood], (4,)), small_part(POSTERIORS[posterior], 2)
    encoder = networks.MLPEncoder((4,), z_given_x.param_shape, hidden=(16,))
    z = small_part(PRIORS[prior], *((encoder, z_given_x) if prior == "Vamp" else (2,)))
    return small_vae(likelihood=x_given_z, prior=z, posterior=z_given_x, encoder=encoder)


@pytest.mark.parametrize("names", COVER, ids="-".join)
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
@pytest.mark.parametrize("names", sorted({*SLOW}), ids="-".join)
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
