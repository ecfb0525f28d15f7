"""What runs on a device runs there alone, to the numbers of the CPU: on one that is none, since CI has no GPU.

See `accelerator`. Nothing brought from the host may meet what lies there, and a step may ask for nothing: on a GPU the
host would wait, and a graph could not be captured.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyro
import pytest
import torch
from accelerator import DEVICE, There, accelerator, move
from conftest import make_vae
from test_capture import PAIRS, batches, data, distance
from torch import Tensor

import pyrovae
from pyrovae import VAE, bounds, diagnostics, networks, posteriors, priors
from pyrovae.importance import chunks as sizes
from pyrovae.objectives import ELBO, STL, DReG
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.results import Epoch
from pyrovae.training import Training, capture, fit, fitting

BINARY = torch.bernoulli(torch.full((7, 1, 8, 8), 0.3).double(), generator=torch.Generator().manual_seed(0))


def vae_of(prior: Prior | None = None, posterior: Posterior | None = None) -> VAE:
    vae = make_vae()
    if posterior is not None:
        vae.encoder = networks.MLPEncoder((1, 8, 8), posterior.param_shape, hidden=(8,))
        vae.posterior = posterior
    vae.prior = prior or vae.prior
    return vae


def with_vamp() -> VAE:
    vae = make_vae()
    vae.prior = priors.Vamp(vae.encoder, vae.posterior, num_components=4)
    return vae


VAES: dict[str, Callable[[], VAE]] = {
    "StandardNormal": make_vae,
    "MixtureOfGaussians": lambda: vae_of(priors.MixtureOfGaussians(3)),
    "Flow": lambda: vae_of(priors.Flow(3)),
    "Vamp": with_vamp,
    "FullNormal": lambda: vae_of(posterior=posteriors.FullNormal(3)),
    "IAF": lambda: vae_of(posterior=posteriors.IAF(3)),
}


def evaluated(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    return pyrovae.evaluate(vae.model, vae.guide, x, ks=(1, 30), show_progress=False).per_datum


def annealed(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    return bounds.ais(vae.model, vae.guide, x, num_chains=2, num_temperatures=4).per_datum


def bracketed(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    return bounds.bdmc(vae.model, vae.guide, x, num_chains=2, num_temperatures=4).per_datum


def split_up(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    return diagnostics.gaps(vae.model, vae.guide, x, num_particles=10, num_steps=3, refit_epochs=1).per_datum


def told_apart(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    found = diagnostics.latents(vae.model, vae.guide, x)
    activities = torch.tensor([unit.activity for unit in found.units])
    return {**found.per_datum, "activities": activities, "information": torch.tensor(found.information.value)}


def weighted(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    drawn = pyrovae.particles(vae.model, vae.guide, x, num_particles=5)
    joint = pyrovae.log_joint(vae.model, x, z=drawn.z)
    return {**drawn.z, "weights": pyrovae.log_weights(vae.model, vae.guide, x, num_particles=5), "joint": joint}


def drawn(vae: VAE, x: Tensor) -> dict[str, Tensor]:
    traversed = vae.traverse(x[0], dims=[0, 2], values=torch.linspace(-1.0, 1.0, 3))
    means = {"mean": vae.generate(3, mean=True), "traversed": traversed, "interpolated": vae.interpolate(x[:1], x[1:2])}
    return {"x": vae.generate(3), "reconstructed": vae.reconstruct(x), **means}


USES = [evaluated, annealed, bracketed, split_up, told_apart, weighted, drawn]
OF_EACH = {"StandardNormal": USES}
SLOW, QUICK = (annealed, bracketed, split_up), ("StandardNormal", "Vamp", "IAF")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        pytest.param(name, use, marks=pytest.mark.slow if use in SLOW or name not in QUICK else ())
        for name in VAES
        for use in OF_EACH.get(name, [evaluated])
    ],
)
def test_everything_there_is_as_here(monkeypatch: pytest.MonkeyPatch, name: str, use: Callable[..., Any]) -> None:
    monkeypatch.setattr(sizes, "ON_CPU", sizes.ON_CUDA)
    torch.manual_seed(1)
    here = VAES[name]().double()
    there = copy.deepcopy(here)
    torch.manual_seed(2)
    expected = use(here, BINARY)
    with accelerator(monkeypatch):
        move(there)
        torch.manual_seed(2)
        found = {key: value.cpu() for key, value in use(there, There(BINARY)).items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-9, equal_nan=True, msg=key)


def numbers(epoch: Epoch) -> dict[str, float]:
    return {name: value for name, value in asdict(epoch).items() if name not in ("seconds", "validation")}


OBJECTIVES = {"ELBO": ELBO, "DReG": lambda: DReG(num_particles=3), "STL": lambda: STL(num_particles=1)}


@pytest.mark.parametrize(
    ("name", "objective"), [("StandardNormal", "ELBO"), ("StandardNormal", "DReG"), ("Vamp", "ELBO"), ("IAF", "STL")]
)
def test_training_there_is_as_here(monkeypatch: pytest.MonkeyPatch, name: str, objective: str) -> None:
    training = Training(epochs=3, batch_size=8, clip_norm=5.0, patience=3, engine="eager")
    options = {"training": training, "show_progress": False}

    def train(vae: VAE) -> Any:
        made = OBJECTIVES[objective]()
        return fit(vae.model, vae.guide, data(53), objective=made, optimizer=torch.optim.Adam, **options)

    torch.manual_seed(1)
    here = VAES[name]().double()
    there = copy.deepcopy(here)
    expected = train(here)
    with accelerator(monkeypatch):
        monkeypatch.setattr(fitting, "choose_device", lambda name: DEVICE)
        move(there)
        found = train(there)
    for a, b in zip(found.epochs, expected.epochs, strict=True):
        assert a.validation == pytest.approx(b.validation, rel=1e-12)
        assert numbers(a) == pytest.approx(numbers(b), rel=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_steps_ask_for_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make, objective = PAIRS[name]
    losses = []
    for on_device in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(1)
        model, guide, modules = make()
        with accelerator(monkeypatch) as device:
            for module in modules if on_device else ():
                move(module)
            minibatches = [There(x) if on_device else x for x in batches(4)]
            step = capture(
                model,
                guide,
                minibatches[0],
                objective=objective(),
                engine="eager",
                clip_norm=1.0,
                optimizer=torch.optim.SGD,
            )
            torch.manual_seed(2)
            show_progress = [torch.stack(step(x)) for x in minibatches[:1]]
            device.asked.clear()
            device.met.clear()
            show_progress += [torch.stack(step(x)) for x in minibatches[1:]]
            assert set(device.asked) <= ({"torch.tensor"} if "two layers" in name else set())  # of a pair's own numbers
            assert not device.met
            losses.append(torch.stack(show_progress).cpu())
    assert distance(*losses) < 1e-10
