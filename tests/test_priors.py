"""Priors: precision, expansion, formulas, training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from conftest import make_vae, menu
from torch import nn

import pyrovae
from pyrovae import VAE, Training, networks, posteriors, priors
from pyrovae.distributions import NormalMixture
from pyrovae.distributions.normal_mixture import squared_distances, squared_distances_by_element
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior


def vamp_on(posterior: type[Posterior]) -> Callable[[int], Prior]:
    def make(latent_dim: int) -> Prior:
        q_z = posterior(latent_dim)
        encoder = networks.MLPEncoder((4,), q_z.param_shape, hidden=(6,))
        return priors.Vamp(encoder, q_z, num_components=3, data=2 * torch.randn(5, 4))

    return make


MENU: dict[str, Callable[[int], Prior]] = {part.__name__: part for part in menu(priors) if part is not priors.Vamp}
MENU |= {f"Vamp of {part.__name__}": vamp_on(part) for part in menu(posteriors)}


def moved(name: str, latent_dim: int) -> Prior:
    """Return a prior whose parameters are not where they start."""
    prior = MENU[name](latent_dim)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return prior


@pytest.mark.parametrize("name", list(MENU))
def test_log_prob_in_float32(name: str) -> None:
    for make in (moved, lambda name, dim: MENU[name](dim)):
        prior = make(name, 50)
        z = prior().sample((200,)).float()
        narrow = copy.deepcopy(prior).float()
        assert all(tensor.dtype == torch.float32 for tensor in (*narrow.parameters(), *narrow.buffers()))
        prior = copy.deepcopy(narrow).double()  # the same parameters, rounded
        assert narrow().log_prob(z).dtype == torch.float32
        error = (narrow().log_prob(z).double() - prior().log_prob(z.double())).abs().max()
        assert error < 1e-4


@pytest.mark.parametrize("name", list(MENU))
def test_nothing_is_left_of_earlier_parameters(name: str) -> None:
    prior, other = moved(name, 3), moved(name, 3)
    z = torch.randn(6, 3)
    kept = prior()
    drawn = kept.sample((6,))
    before = [prior().log_prob(z), kept.log_prob(drawn)]
    assert torch.equal(prior().log_prob(z), before[0])
    copied = copy.deepcopy(prior)
    assert torch.equal(copied().log_prob(z), before[0])
    prior.load_state_dict(other.state_dict())  # changes the parameters in place
    assert torch.allclose(prior().log_prob(z), other().log_prob(z), atol=1e-14)
    assert torch.equal(copied().log_prob(z), before[0])
    assert torch.allclose(copied().log_prob(drawn), before[1], atol=1e-12)


def test_where_learned_priors_start() -> None:
    z = torch.randn(9, 4)
    normal = priors.StandardNormal(4)().log_prob(z)
    assert torch.allclose(priors.DiagonalNormal(4)().log_prob(z), normal, atol=1e-14)
    assert (priors.Flow(4)().log_prob(z) - normal).abs().max() < 0.5
    mixture = priors.MixtureOfGaussians(4, num_components=6)
    assert torch.pdist(mixture.locs).min() > 0.1
    assert mixture.logits.softmax(0).tolist() == pytest.approx([1 / 6] * 6)
    with torch.no_grad():
        mixture.locs.zero_()
        mixture.log_scales.fill_(math.log(2.0))
    torch.testing.assert_close(mixture().log_prob(z), dist.Normal(0.0, 2.0).log_prob(z).sum(-1))


def test_mixture_against_the_one_of_torch() -> None:
    logits, locs, scales = torch.randn(6), 2 * torch.randn(6, 3), torch.randn(6, 3).exp()
    ours = NormalMixture(logits, locs, scales)
    theirs = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1))
    z = torch.randn(4, 5, 3)
    assert torch.allclose(ours.log_prob(z), theirs.log_prob(z), atol=1e-12)
    assert torch.allclose(ours.mean, theirs.mean)
    assert torch.allclose(ours.variance, theirs.variance)
    assert ours.expand([4]).stddev.shape == (4, 3)
    assert torch.allclose(squared_distances(z, locs, scales), squared_distances_by_element(z, locs, scales))
    with pytest.raises(ValueError, match="Expected value"):
        ours.log_prob(z * math.nan)


def test_narrow_components_are_right_in_float32() -> None:
    torch.set_default_dtype(torch.float32)
    logits, locs, scales = torch.zeros(100), 3 * torch.randn(100, 50), torch.full((100, 50), math.exp(-5))
    p_z = NormalMixture(logits, locs, scales)
    z = p_z.sample((200,))
    exact = NormalMixture(logits.double(), locs.double(), scales.double()).log_prob(z.double())
    assert (p_z.log_prob(z) - exact).abs().max() < 5e-5
    by_element = -0.5 * squared_distances_by_element(z, locs, scales).amin(-1)
    assert (by_element.double() + 0.5 * squared_distances(z, locs, scales).amin(-1)).abs().max() < 1e-3


def test_every_variable_of_a_flow_moves() -> None:
    layers, noise = moved("Flow", 5).layers, torch.randn(20, 5)
    z, _ = layers[0](noise, None)
    assert (z == noise).all(0).sum() == 2
    z, _ = layers[1](z, None)
    assert (z != noise).all()


@pytest.mark.parametrize("part", menu(posteriors))
def test_vamp_is_the_mean_of_its_posteriors(part: type[Posterior]) -> None:
    prior = vamp_on(part)(3)
    q_z = prior.posterior(prior.encoder(prior.pseudo_inputs))
    z = torch.randn(4, 5, 3)
    each = torch.stack([prior.posterior(prior.encoder(u)).log_prob(z).exp() for u in prior.pseudo_inputs])
    assert q_z.batch_shape == (3,)
    assert torch.allclose(prior().log_prob(z), each.mean(0).log(), atol=1e-12)


def vamp_parts() -> tuple[nn.Module, Posterior]:
    posterior = posteriors.DiagonalNormal(2)
    return networks.MLPEncoder((1, 3, 3), posterior.param_shape, hidden=(4,)), posterior


def test_where_pseudo_inputs_start() -> None:
    data = torch.rand(7, 1, 3, 3)
    prior = priors.Vamp(*vamp_parts(), num_components=5, data=data)
    assert torch.equal(prior.pseudo_inputs, data[:5])
    assert prior.latent_dim == 2
    with torch.no_grad():
        prior.pseudo_inputs.zero_()
    assert (data[:5] > 0).any()  # they are copies
    noise = priors.Vamp(*vamp_parts()).pseudo_inputs
    assert noise.shape == (100, 1, 3, 3)
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert 0.005 < noise.std() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 8, "data": torch.rand(7, 1, 3, 3)}, "each of 8 pseudo-inputs .* received 7"),
        ({"num_components": 5, "data": torch.rand(7, 9)}, r"\(C, 1, 3, 3\), but received .* \(7, 9\)"),
        ({"data": torch.zeros(7, 1, 3, 3).byte()}, "received torch.uint8; give data=likelihood"),
        ({"encoder": nn.Sequential()}, "but Sequential has no x_shape; give it this"),
        ({"encoder": networks.MLPEncoder(4, (2, 2), covariate_dim=3)}, r"dim=3\); choose a prior without encoder"),
    ],
)
def test_refusals_of_vamp(options: dict[str, Any], message: str) -> None:
    encoder, posterior = vamp_parts()
    with pytest.raises((TypeError, ValueError), match=message):
        priors.Vamp(**{"encoder": encoder, "posterior": posterior} | options)


@pytest.mark.parametrize("part", [posteriors.DiagonalNormal, posteriors.IAF])
def test_vamp_is_saved_loaded_and_trained_on(part: type[Posterior], tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    data, settings = pyrovae.data.digits().for_form("binary"), {"training": Training(epochs=2), "show_progress": False}

    def make() -> VAE:
        torch.manual_seed(5)
        posterior = part(3)
        encoder = networks.MLPEncoder((1, 8, 8), posterior.param_shape, hidden=(16,))
        prior = priors.Vamp(encoder, posterior, num_components=4, data=data.train.first(4).fixed())
        return VAE(**make_vae().init_arguments | {"prior": prior, "encoder": encoder, "posterior": posterior})

    whole, halved = make(), make()
    pyrovae.fit(whole.model, whole.guide, data, **settings)
    folder = tmp_path / "halved"
    pyrovae.fit(halved.model, halved.guide, data, folder=folder, on_epoch=lambda epoch: epoch.epoch == 1, **settings)
    loaded = pyrovae.load(folder).vae
    assert loaded.prior.encoder is loaded.encoder
    assert loaded.prior.posterior is loaded.posterior
    z = torch.randn(9, 3)
    assert torch.equal(loaded.prior().log_prob(z), halved.prior().log_prob(z))
    pyrovae.fit(loaded.model, loaded.guide, data, folder=folder, resume=True, **settings)
    assert (loaded.prior().log_prob(z) != halved.prior().log_prob(z)).all()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
