"""MNIST from a local copy: its splits, and the ELBO of a published network."""

from __future__ import annotations

import pytest
import torch
from conftest import MNIST_ROOT as ROOT
from conftest import needs_mnist

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

pytestmark = needs_mnist


def test_splits_of_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.setenv("PYROVAE_DATA", str(ROOT))
    data = pyrovae.data.mnist(download=False, num_validation=400)
    assert str(data) == (
        "mnist: 59,600 + 400 + 10,000 (train + validation + test) of shape (1, 28, 28), uint8 (256 levels), Identity()"
    )
    grey = data.with_transform(pyrovae.data.transforms.Grey())
    assert grey.train.mean().mean().item() == pytest.approx(0.1307, abs=2e-4)
    assert data.test.labels is not None
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.validation.labels is not None
    assert data.validation.labels[-1] == 8
    with pytest.raises(ValueError, match=r"mnist/train: .* received shape \(0, 1, 28, 28\)"):
        pyrovae.data.mnist(root=ROOT, download=False, num_validation=60_000)


@pytest.mark.slow
def test_elbo_of_a_published_network() -> None:
    torch.set_default_dtype(torch.float32)
    data = pyrovae.data.mnist(root=ROOT, download=False, num_validation=400).for_form("binary")
    likelihood, posterior = likelihoods.Bernoulli(data.x_shape), posteriors.DiagonalNormal(50)
    vae = VAE(
        prior=priors.StandardNormal(50),
        decoder=networks.MLPDecoder(50, likelihood.param_shape),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
        posterior=posterior,
    )
    pyrovae.fit(vae.model, vae.guide, data.train, training=Training(epochs=20), show_progress=False)
    test = pyrovae.evaluate(vae.model, vae.guide, data.test, ks=(1,), show_progress=False)
    assert test.elbo.value > -102
    few = pyrovae.evaluate(vae.model, vae.guide, data.test.first(200), show_progress=False)
    l_5000 = few.iwae[-1]
    assert l_5000.num_particles == 5000
    assert l_5000.value - few.elbo.value >= 4
    print(f"test ELBO {test.elbo.value:.2f}; on 200 images ELBO {few.elbo.value:.2f}, L_5000 {l_5000.value:.2f}")
