"""The contract with hand-written programs: every form of it gives exact numbers, and invalid ones are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import (
    ModelGuide,
    TwoLayers,
    evaluate,
    guide_from,
    inspect_programs,
    likelihood_of,
    linear_gaussian,
    make_vae,
    model_from,
    pair_of,
    posterior_of,
    program,
    standard_normal,
    validation_switches,
)
from pyro import poutine
from pyro.contrib import cevae
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence

from pyrovae import bounds, data, likelihoods, networks
from pyrovae.evaluation import Checks
from pyrovae.importance import iter_particles, scoring_context
from pyrovae.importance.sampling import log_joint, log_weights, particles
from pyrovae.objectives import ELBO, IWAE
from pyrovae.programs import find_modules
from pyrovae.results import compare
from pyrovae.runtime.context import validation
from pyrovae.training import Training, capture, fit
from pyrovae.vae import VAE

TRUTH = linear_gaussian()
X = TRUTH.sample(23)
EXACT = TRUTH.log_prob(X)
MODEL, GUIDE = pair_of(TRUTH)
ONE_LINE = "model and guide do not take an axis of particles"
Program = Callable[..., None]


likelihood, posterior = likelihood_of(TRUTH), posterior_of(TRUTH)


def prior() -> dist.TorchDistribution:
    return standard_normal(3)


def observing(fn: Callable[[Tensor], Any], z: Any = None) -> Program:
    """Return a model that observes a function of z, with a standard normal prior if none is given."""
    return program(lambda x: pyro.sample("x", fn(pyro.sample("z", z or prior())), obs=x))


def require_exact(weights: Tensor, exact: Tensor = EXACT) -> None:
    assert (weights - exact).abs().max() < 1e-9


def in_plate(plate: Callable[..., Any], *, indexed: bool = False) -> ModelGuide:
    """Return the exact model and guide in a plate, which take the rows that it draws if it is indexed."""

    def model(x: Tensor, *given: Tensor) -> None:
        with plate(x, *given) as i:
            pyro.sample("x", likelihood(pyro.sample("z", prior())), obs=x[i] if indexed else x)

    def guide(x: Tensor, *given: Tensor) -> None:
        with plate(x, *given) as i:
            pyro.sample("z", posterior(x[i] if indexed else x))

    return model, guide


def drawing(size: Callable[[Tensor], int], batch_size: int) -> ModelGuide:
    return in_plate(lambda x: pyro.plate("data", size(x), subsample_size=min(batch_size, size(x))), indexed=True)


def pixel_plate(**spoiled: float) -> ModelGuide:
    def model(x: Tensor) -> None:
        mean = pyro.sample("z", prior()) @ TRUTH.weight.T + TRUTH.bias  # (..., B, 1, 5)
        with pyro.plate("pixels", 5, dim=-1):
            pyro.sample("x", dist.Normal(mean.squeeze(-2), TRUTH.scale), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", posterior_of(TRUTH, **spoiled)(x.unsqueeze(-2)))

    return program(model, dim=-2), program(guide, dim=-2)


def pixel_plate_to_the_left() -> ModelGuide:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", prior())  # (..., 1, B, 3) with particles, else (B, 3)
        mean = (z @ TRUTH.weight.T + TRUTH.bias).movedim(-1, -2)  # (..., 1, 5, B) or (5, B)
        mean = mean.squeeze(-3) if mean.ndim > 2 else mean
        with pyro.plate("pixels", 5, dim=-2):
            pyro.sample("x", dist.Normal(mean, TRUTH.scale), obs=x.T)

    return program(model, dim=-1), GUIDE


def latent_in_inner_plate() -> ModelGuide:
    """Return programs whose latent variables have a plate of their own, as long as the first run has rows."""

    def model(x: Tensor) -> None:
        with pyro.plate("codes", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("x", likelihood(z.unsqueeze(-2)), obs=x.unsqueeze(-2))

    def guide(x: Tensor) -> None:
        with pyro.plate("codes", 3, dim=-1):
            pyro.sample("z", posterior(x).base_dist)

    return program(model, dim=-2), program(guide, dim=-2)


def several_latents() -> ModelGuide:
    def model(x: Tensor) -> None:
        first = pyro.sample("first", dist.Normal(torch.tensor(0.0), 1.0))
        rest = pyro.sample("rest", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", likelihood(torch.cat([first.unsqueeze(-1), rest], -1)), obs=x)

    def guide(x: Tensor) -> None:
        mean, scale = TRUTH.posterior(x).mean, TRUTH.posterior(x).variance.sqrt()
        pyro.sample("first", dist.Normal(mean[..., 0], scale[..., 0]))
        pyro.sample("rest", dist.Normal(mean[..., 1:], scale[..., 1:]).to_event(1))

    return program(model), program(guide)


def with_deterministic_and_factor() -> ModelGuide:
    def model(x: Tensor) -> None:
        mean = pyro.deterministic("mean", pyro.sample("z", prior()) @ TRUTH.weight.T + TRUTH.bias)
        pyro.factor("x", dist.Normal(mean, TRUTH.scale).log_prob(x).sum(-1))

    return program(model), guide_from(lambda x: posterior(pyro.deterministic("seen", x, event_dim=1)))


class ExactModule(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(TRUTH.weight.clone())
        self.scale = PyroParam(torch.tensor(TRUTH.scale), constraint=constraints.positive)

    @pyro_method
    def model(self, x: Tensor) -> None:
        observing(lambda z: dist.Normal(z @ self.weight.T + TRUTH.bias, self.scale).to_event(1))(x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        GUIDE(x)


def exact_module() -> ModelGuide:
    module = ExactModule()
    return module.model, module.guide


def without_a_size() -> ModelGuide:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            pyro.sample("x", likelihood(z), obs=x)

    return model, in_plate(lambda x: pyro.plate("data"))[1]


BROADCASTING: dict[str, Callable[[], ModelGuide]] = {
    "plate(len(x))": lambda: (MODEL, GUIDE),
    "plate without a size": without_a_size,
    "plate(N, subsample_size=len(x))": lambda: in_plate(lambda x: pyro.plate("data", 1000, subsample_size=len(x))),
    "pixels in a plate": pixel_plate,
    "latent in a plate": latent_in_inner_plate,
    "several latents": several_latents,
    "scaled": lambda: (poutine.scale(MODEL, scale=0.01), poutine.scale(GUIDE, scale=7.0)),
    "deterministic and factor": with_deterministic_and_factor,
    "PyroModule": exact_module,
}


LATENTS = {"several latents": {"first": (4, 23), "rest": (4, 23, 2)}}  # shapes, where they are not one vector


@pytest.mark.parametrize("form", BROADCASTING)
def test_every_form_of_programs_gives_exact_weights(form: str, caplog: pytest.LogCaptureFixture) -> None:
    model, guide = BROADCASTING[form]()
    record = particles(model, guide, X, num_particles=4)
    assert record.log_weights.shape == (4, 23)
    require_exact(record.log_weights)
    assert {name: z.shape for name, z in record.z.items()} == LATENTS.get(form, {"z": (4, 23, 3)})
    log_priors = [dist.Normal(0.0, 1.0).log_prob(z).reshape(4, 23, -1).sum(-1) for z in record.z.values()]
    require_exact(record.log_prior, sum(log_priors))
    z = record.z if form in LATENTS else record.z["z"]
    joint = record.log_prior + record.log_likelihood
    require_exact(log_joint(model, X, z=z), joint)
    require_exact(log_joint(model, X, z={name: value[0] for name, value in record.z.items()}), joint[0])
    for size in (1, 2, 3):
        require_exact(log_weights(model, guide, X[:size], num_particles=3), EXACT[:size])
    evaluation = evaluate(model, guide, X, ks=(1, 6), batch_size=10)
    require_exact(evaluation.per_datum["L_1"])
    require_exact(evaluation.per_datum["L_6"])
    assert ONE_LINE not in caplog.text
    terms = bounds.elbo(model, guide, X, num_particles=2)
    assert terms.elbo.shape == (23,)
    assert set(terms.methods.values()) == {"closed form"}


def test_two_inner_plates() -> None:
    x = torch.randn(7, 2, 3)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        mean = x.sum((-2, -1), keepdim=True) / (6 + 0.25)
        pyro.sample("z", dist.Normal(mean, (1 / (1 + 6 / 0.25)) ** 0.5))

    record = particles(program(model, dim=-3), program(guide, dim=-3), x, num_particles=4)
    assert record.z["z"].shape == (4, 7)
    covariance = torch.ones(6, 6) + 0.25 * torch.eye(6)
    require_exact(record.log_weights, dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(x.flatten(1)))


# programs that do not broadcast


def concatenating(plate: Callable[[Tensor], Any]) -> ModelGuide:
    mix = torch.cat([torch.zeros(5, 5), TRUTH.weight], 1)  # (5, 8): the mean of x reads z alone

    def model(x: Tensor) -> None:
        with plate(x):
            mean = torch.cat([x, pyro.sample("z", prior())], -1) @ mix.T + TRUTH.bias
            pyro.sample("x", dist.Normal(mean, TRUTH.scale).to_event(1), obs=x)

    return model, in_plate(plate)[1]


def viewing() -> ModelGuide:
    return program(lambda x: pyro.sample("x", likelihood(pyro.sample("z", prior()).reshape(len(x), -1)), obs=x)), GUIDE


def flattening() -> ModelGuide:
    """Return a pair whose codes are flattened to ``(-1, D)`` and cut to the data: silently the first particle's."""

    def model(x: Tensor) -> None:
        pyro.sample("x", likelihood(pyro.sample("z", prior()).reshape(-1, 3)[: len(x)]), obs=x)

    return program(model), GUIDE


NOT_BROADCASTING: dict[str, Callable[[], ModelGuide]] = {
    "cat": lambda: concatenating(lambda x: pyro.plate("data", len(x))),
    "cat, full plate": lambda: concatenating(lambda x: pyro.plate("data", 1000, subsample_size=len(x))),
    "cat, plate as long as the data": lambda: concatenating(lambda x: pyro.plate("data", 23, subsample_size=len(x))),
    "view": viewing,
    "silent": flattening,
    "inner plate to the left": pixel_plate_to_the_left,
}


@pytest.mark.parametrize("form", NOT_BROADCASTING)
def test_programs_that_do_not_broadcast_are_right_and_one_line_says_so(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, guide = NOT_BROADCASTING[form]()
    require_exact(log_weights(model, guide, X, num_particles=5))
    evaluation = evaluate(model, guide, X, ks=(1, 12), batch_size=12, chunk_size=100)
    if form != "inner plate to the left":
        assert [record.message[: len(ONE_LINE)] for record in caplog.records] == [ONE_LINE]
    require_exact(evaluation.per_datum["L_12"])
    require_exact(evaluation.per_datum["L_1"])


def test_particles_of_programs_that_do_not_broadcast_belong_to_their_data() -> None:
    record = particles(*viewing(), X, num_particles=50)
    assert record.z["z"].shape == (50, 23, 3)
    require_exact(record.log_guide, posterior(X).log_prob(record.z["z"]))


@pytest.mark.parametrize("broadcasts", [True, False])
def test_later_sites_have_their_closed_form_at_every_particle(broadcasts: bool) -> None:  # noqa: FBT001
    layers = TwoLayers(bottom_up=False)
    x = torch.bernoulli(torch.full((6, 4), 0.5))

    def model(x: Tensor) -> None:
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(layers.to_z1(z2.reshape(len(x), -1)), 0.8).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=layers.to_x(z1)).to_event(1), obs=x)

    context = scoring_context(layers.model if broadcasts else program(model), layers.guide, (x,), modules=())
    with context as programs, torch.no_grad():
        assert (programs.broadcasts, set(programs.kl.values())) == (broadcasts, {"closed form"})
        (batch,) = iter_particles(programs, (x,), torch.arange(6), 5)
        z2 = batch.z["z2"]
        q = dist.Normal(layers.q1(torch.cat([x.expand(5, 6, 4), z2], -1)), 0.6)
        require_exact(batch.kl["z1"], kl_divergence(q, dist.Normal(layers.to_z1(z2), 0.8)).sum(-1))
        q = dist.Normal(layers.q2(x), 0.7)
        require_exact(batch.kl["z2"], kl_divergence(q, dist.Normal(torch.zeros(2), 1.0)).sum(-1))


# masks


def masked(mask_of: Callable[[Tensor], Tensor]) -> ModelGuide:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("pixels", 5, dim=-1), poutine.mask(mask=mask_of(x)):
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        seen = mask_of(x).double().expand(-1, 5)
        precision = 1 + seen.sum(-1, keepdim=True) / 0.25
        pyro.sample("z", dist.Normal((seen * x).sum(-1, keepdim=True) / 0.25 / precision, precision**-0.5))

    return program(model, dim=-2), program(guide, dim=-2)


@pytest.mark.parametrize("mask_of", [lambda x: x > 0, lambda x: x[:, :1] > 0])
def test_masks_leave_out_what_they_hide(mask_of: Callable[[Tensor], Tensor]) -> None:
    seen = mask_of(X).expand_as(X)
    for b, weights in enumerate(log_weights(*masked(mask_of), X, num_particles=3).T):
        some = X[b, seen[b]]
        covariance = torch.ones(len(some), len(some)) + 0.25 * torch.eye(len(some))
        normal = dist.MultivariateNormal(torch.zeros(len(some)), covariance)
        require_exact(weights, normal.log_prob(some) if len(some) else torch.zeros(()))


@pytest.mark.parametrize("how", ["of the site", "of the event", "below the event"])
@pytest.mark.parametrize("mask", [torch.arange(23) % 3 > 0, True, False], ids=["tensor", "True", "False"])
def test_a_datum_that_is_masked_everywhere_weighs_nothing(how: str, mask: Any) -> None:
    rows = torch.as_tensor(mask).expand(23)

    def sample(name: str, fn: Any, m: Tensor, obs: Tensor | None = None) -> Tensor:
        m = m if isinstance(mask, Tensor) else mask
        if how == "of the site":
            with poutine.mask(mask=m):
                return pyro.sample(name, fn, obs=obs)
        if how == "below the event":
            m = m.unsqueeze(-1) if isinstance(m, Tensor) else m
            return pyro.sample(name, fn.base_dist.mask(m).to_event(1), obs=obs)
        return pyro.sample(name, fn.mask(m), obs=obs)

    model = program(lambda x, m: sample("x", likelihood(sample("z", prior(), m)), m, x))
    guide = program(lambda x, m: sample("z", posterior(x), m))
    require_exact(log_weights(model, guide, X, rows, num_particles=3), EXACT * rows)
    if how != "below the event":
        terms = bounds.elbo(model, guide, X, rows, num_particles=2)
        assert terms.methods == {"z": "closed form"}
        require_exact(terms.kl, kl_divergence(posterior(X), prior()) * rows)


def test_latent_masks_must_have_the_same_values() -> None:
    a = torch.arange(23) % 3 > 0
    model = model_from(lambda x, a, b: prior().mask(a), lambda z, x, a, b: likelihood(z).mask(a))
    guide = guide_from(lambda x, a, b: posterior(x).mask(b))
    for mask in (a, a.double()):  # float masks become new tensors in each program
        terms = bounds.elbo(model, guide, X, mask, mask.clone())
        assert terms.methods == {"z": "closed form"}
        require_exact(terms.kl, kl_divergence(posterior(X), prior()) * a)
    late = a.clone()
    late[-1] = ~late[-1]  # the first runs of a few rows do not show it
    with pytest.raises(ValueError, match="'z' is masked in only one of model and guide, for 3 of 69 elements"):
        log_weights(model, guide, X, a, late, num_particles=2)


def test_a_masked_latent_must_not_be_used() -> None:
    model = model_from(lambda x, m: prior().mask(m), likelihood)
    guide = guide_from(lambda x, m: posterior(x).mask(m))
    with pytest.raises(ValueError, match="'z' are masked, but the model depends on them for .* mask what depends"):
        log_weights(model, guide, X, torch.arange(23) % 2 == 0, num_particles=2)


# covariates


def test_covariates_travel_with_the_data() -> None:
    shift = torch.randn(23, 5)
    exact = TRUTH.log_prob(X - shift)
    model = model_from(
        lambda *_: prior(), lambda z, x, shift: dist.Normal(z @ TRUTH.weight.T + TRUTH.bias + shift, 0.7).to_event(1)
    )
    guide = guide_from(lambda x, shift: posterior(x - shift))
    require_exact(log_weights(model, guide, X, shift, num_particles=3), exact)
    evaluation = evaluate(model, guide, (X, shift), ks=(1, 3), batch_size=4)
    require_exact(evaluation.per_datum["L_3"], exact)
    z = torch.randn(2, 23, 3)
    assert torch.allclose(log_joint(model, X, shift, z=z), log_joint(MODEL, X - shift, z=z))


def test_rows_given_as_an_argument_travel_with_the_data() -> None:
    pair = in_plate(lambda x, rows: pyro.plate("data", 1000, subsample=rows))
    evaluation = evaluate(*pair, (X, torch.randperm(1000)[:23]), ks=(1, 2), batch_size=4)
    require_exact(evaluation.per_datum["L_2"])


# the modules of programs


def reading(encode: Callable[[Tensor], Tensor]) -> Program:
    """Return a guide that calls a function of x."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 1.0).to_event(1))

    return guide


def as_default(net: nn.Module) -> Program:
    def encode(x: Tensor, *, net: nn.Module = net) -> Tensor:
        return net(x)

    return reading(encode)


class Guide:
    """A callable object with a network."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> None:
        reading(self.net)(x)


def as_hidden(net: nn.Module) -> Program:
    """Return a guide whose module lies deeper than the search goes."""
    holder = SimpleNamespace(parts=SimpleNamespace(nets={"encoders": [[SimpleNamespace(encode=lambda x: net(x))]]}))
    return reading(lambda x: holder.parts.nets["encoders"][0][0].encode(x))


def as_attribute(net: nn.Module) -> Program:
    parts = SimpleNamespace(encoders=[net])
    return reading(lambda x: parts.encoders[0](x))


def as_partial_of_scaled(net: nn.Module) -> Program:
    return functools.partial(poutine.scale(reading(lambda x: (lambda y: net(y))(x)), scale=2.0))


WAYS = [as_default, as_attribute, Guide, as_partial_of_scaled, as_hidden]


@pytest.mark.parametrize("way", WAYS)
def test_modules_are_found_evaluated_and_restored(way: Callable[[nn.Module], Program]) -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    net[0].eval()
    modes = [part.training for part in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    guide = way(net)
    assert find_modules(MODEL, guide) == (() if way is as_hidden else (net,))
    assert inspect_programs(MODEL, guide, (X,)).modules == (net,)
    found = evaluate(MODEL, guide, X, ks=(1,)).per_datum["KL"]
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        mean = net.eval()(X)
    assert torch.allclose(found, 0.5 * (mean**2).sum(-1), atol=1e-12)  # KL(N(mean, 1) || N(0, 1))


def test_a_global_that_is_only_the_name_of_an_attribute_is_not_a_module_of_the_programs() -> None:
    net, other = nn.Linear(5, 3), nn.Linear(1, 1)
    namespace: dict[str, Any] = {"pyro": pyro, "dist": dist, "net": other, "holder": SimpleNamespace(net=net)}
    exec("def guide(x):\n    pyro.sample('z', dist.Normal([holder.net(row) for row in x][0], 1.))\n", namespace)
    assert find_modules(namespace["guide"]) == (net,)


@pytest.mark.slow
def test_a_compiled_network_is_evaluated_where_nobody_looks() -> None:
    with validation(enabled=True):  # which the first torch.compile of a process switches off
        net = torch.compile(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)), backend="eager", fullgraph=True)
        a, b = (evaluate(MODEL, way(net), X, ks=(1,)).per_datum["KL"] for way in (as_hidden, as_default))
    assert torch.equal(a, b)
    assert all(part.training for part in net.modules())


def test_modules_that_a_program_makes_anew_are_those_of_the_store() -> None:
    guide = reading(lambda x: pyro.module("net", nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)))(x))
    found = inspect_programs(MODEL, guide, (X,))
    assert found.modules == ()
    assert found.params == ("net$$$0.weight", "net$$$0.bias")


def test_networks_of_the_store_and_layers_without_tensors_are_evaluated_but_keep_their_names() -> None:
    """What a run folder calls a parameter does not change with where its module is found."""
    net, noise = nn.Linear(5, 3), nn.Dropout(0.5)
    hidden = [[[[[[net, noise]]]]]]

    def encode(x: Tensor) -> Tensor:
        net, noise = hidden[0][0][0][0][0]
        return noise(pyro.module("net", net)(x))

    found = inspect_programs(MODEL, reading(encode), (X,))
    assert found.modules == ()
    assert set(found.all_modules) == {net, noise}
    assert noise.training
    kl = evaluate(MODEL, found.guide, X, ks=(1,)).per_datum["KL"]
    assert torch.allclose(kl, 0.5 * (net(X) ** 2).sum(-1))


# refusals


def from_prior(fn: Any) -> Program:
    return observing(likelihood, fn)


def unit(name: str) -> Tensor:
    return pyro.sample(name, dist.Normal(torch.tensor(0.0), 1.0))


def after_a_global_latent(body: Program) -> Program:
    return lambda x: (unit("w"), body(x))


def no_plate_model(x: Tensor) -> None:
    z = pyro.sample("z", prior().expand([len(x)]).to_event(1))
    pyro.sample("x", likelihood(z).to_event(1), obs=x)


def some_pixels(x: Tensor) -> None:
    mean = pyro.sample("z", prior()) @ TRUTH.weight.T + TRUTH.bias
    with pyro.plate("pixels", 5, subsample_size=2, dim=-1) as i:
        pyro.sample("x", dist.Normal(mean.squeeze(-2)[..., i], TRUTH.scale), obs=x[..., i])


def one_after_the_other(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", likelihood(pyro.sample(f"z_{i}", prior())), obs=x[i])


def guide_one_after_the_other(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", posterior(x[i]))


def sequential_inside(x: Tensor) -> None:
    mean = pyro.sample("z", prior()) @ TRUTH.weight.T + TRUTH.bias
    for i in pyro.plate("pixels", 5):
        pyro.sample(f"x_{i}", dist.Normal(mean[..., i], TRUTH.scale), obs=x[..., i])


def observed_outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior())
    pyro.sample("x", likelihood(z).to_event(1), obs=x)


def forgotten_to_event(x: Tensor) -> None:
    with pyro.plate("data"):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0))
        pyro.sample("x", likelihood(z), obs=x)


def one_row_each(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(len(X), 3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def refused_programs() -> dict[str, tuple[Program, Program, str]]:
    half, positive = torch.full((3,), 0.5), dist.Gamma(torch.ones(3), 1.0).to_event(1)
    bits = dist.Bernoulli(half).to_event(1)
    soft = dist.RelaxedBernoulli(torch.tensor(0.5), half).to_event(1)
    rounded = dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), half).to_event(1)
    unchecked = dist.Exponential(torch.ones(3), validate_args=False).to_event(1)
    points = dist.MaskedMixture(torch.tensor(data=True), dist.Delta(half), dist.Delta(half)).to_event(1)
    moved_bits = dist.TransformedDistribution(
        dist.Bernoulli(half), [dist.transforms.AffineTransform(0.0, 0.1)]
    ).to_event(1)
    masked_prior = from_prior(prior().mask(torch.tensor(data=False)))
    only_in_guide = program(lambda x: (pyro.sample("z", posterior(x)), unit("u")))
    only_in_model = program(lambda x: (unit("u"), pyro.sample("x", likelihood(pyro.sample("z", prior())), obs=x)))
    unobserved = program(lambda x: pyro.sample("x", likelihood(pyro.sample("z", prior()))))
    points_of_x = guide_from(lambda x: dist.Delta(x[:, :3], event_dim=1))
    point_prior = from_prior(dist.Delta(half, event_dim=1))
    fixed = in_plate(lambda x: pyro.plate("data", 23))
    drawn = r"plate 'data' draws rows of the data by itself.*pyro.plate\('data', N, subsample_size=len\(x\)\)"
    sizes = r"the plate 'data' has (3 and \d+ rows in model and guide|60 rows whatever)"
    sequential = "'pixels' inside.*'data' is subsampled or sequential"
    return {
        "point in the guide": (MODEL, points_of_x, r"'z' is a point \(Del"),
        "point in the model": (point_prior, GUIDE, "'z' is a point .* in the model"),
        "relaxed for discrete": (from_prior(bits), guide_from(lambda x: soft), "'z' is discrete in the model"),
        "rounded in the guide": (
            from_prior(soft),
            guide_from(lambda x: rounded),
            "'z' is rounded .* in the guide.*rel",
        ),
        "rounded in the model": (from_prior(rounded), guide_from(lambda x: soft), "'z' is rounded .* in the model"),
        "beyond the prior": (from_prior(unchecked), GUIDE, "draws 'z' from .*Real.*same support"),
        "simplex": (MODEL, guide_from(lambda x: dist.Dirichlet(2 * half)), "draws 'z' from .*implex"),
        "reals for a simplex": (from_prior(dist.Dirichlet(half)), GUIDE, "draws 'z' from .*Real"),
        "mixture of points": (MODEL, guide_from(lambda x: points), "'z' is a point"),
        "discrete, transformed": (MODEL, guide_from(lambda x: moved_bits), "'z' is discrete in the guide"),
        "masked prior": (masked_prior, GUIDE, "'z' is masked in only one of model and guide"),
        "positive for real": (from_prior(positive), GUIDE, "draws 'z' from .*Real.*GreaterThan"),
        "discrete": (from_prior(bits), guide_from(lambda x: bits), "'z' is discrete in the guide.*sum it out.*relax"),
        "global latent": (*map(after_a_global_latent, (MODEL, GUIDE)), "'w' lies outside the data plate.*move it into"),
        "no plate": (
            no_plate_model,
            lambda x: pyro.sample("z", posterior(x).to_event(1)),
            r"no plate of the length.*with pyro.plate\('data', len\(x\)\)",
        ),
        "guide has more": (MODEL, only_in_guide, "samples 'u', which is not a latent variable of the model"),
        "model has more": (only_in_model, GUIDE, "variable 'u' is missing in the guide.*sample it in the guide"),
        "nothing observed": (unobserved, GUIDE, "observes nothing.*obs=x"),
        "subsampled inner plate": (program(some_pixels, dim=-2), pixel_plate()[1], sequential),
        "sequential plate": (one_after_the_other, guide_one_after_the_other, "the plate .* is sequential"),
        "sequential inner plate": (program(sequential_inside), GUIDE, sequential),
        "draws rows": (*drawing(lambda x: 23, 5), drawn),
        "draws 3 rows": (*drawing(lambda x: 1000, 3), drawn),
        "draws some of few rows": (*drawing(lambda x: 3, 2), drawn),
        "draws at most 8 rows": (*drawing(len, 8), drawn),
        "fixed plate": (*fixed, r"'data' has 23 rows.*write pyro.plate\('data', l"),
        # replayed against the guide, a model's plate of 60 rows has the guide's rows and a scale of its own
        "model of 60 rows": (in_plate(lambda x: pyro.plate("data", 60))[0], GUIDE, sizes),
        "guide of 60 rows": (MODEL, in_plate(lambda x: pyro.plate("data", 60))[1], sizes),
        "model of 600": (in_plate(lambda x: pyro.plate("data", 600, subsample_size=len(x)))[0], GUIDE, sizes),
        "guide without a plate": (
            MODEL,
            in_plate(lambda x: contextlib.nullcontext())[1],
            r"'z' has 1 batch axes, but is in no plate.*pyro.plate\('data', len\(x\)\)",
        ),
        "empty guide": (MODEL, lambda x: None, "the guide samples nothing"),
        "observed outside": (observed_outside, GUIDE, "'x' lies outside the data plate"),
        "forgotten to_event": (
            observing(lambda z: likelihood(z).base_dist),
            GUIDE,
            r"batch axis of 5 .* \.to_event\(1\)",
        ),
        "forgotten to_event in a plate without a size": (
            forgotten_to_event,
            forgotten_to_event,
            r"'z' has 2 batch axes, but its plates are 1; .*\.to_event\(1\)",
        ),
        "parameters of each datum": (
            MODEL,
            one_row_each,
            r"'z' has a batch axis of 23 .* if it has one row for each datum of all data, compute it from x",
        ),
        "autoguide": (MODEL, AutoNormal(MODEL), "AutoNormal has parameters for each datum .* with an encoder"),
        "plates of two names": (
            MODEL,
            in_plate(lambda x: pyro.plate("batch", len(x)))[1],
            r"'batch' at the site 'z' and 'data'",
        ),
    }


@pytest.mark.parametrize("case", refused_programs())
def test_programs_that_break_the_contract_are_refused(case: str) -> None:
    model, guide, text = refused_programs()[case]
    with pytest.raises(ValueError, match=f"(?s){text}"):
        evaluate(model, guide, X, ks=(1,))
    with pytest.raises(ValueError, match=f"(?s){text}"):
        fit(model, guide, X, modules=[nn.Linear(1, 1)], training=Training(epochs=1), show_progress=False)


# evaluation: chunks, layouts


@pytest.mark.parametrize("form", ["plain", "pixels", "view", "two layers"])
def test_bounds_do_not_depend_on_the_chunk(form: str) -> None:
    layers = TwoLayers(bottom_up=False)
    model, guide = {
        "plain": lambda: pair_of(TRUTH, offset=0.2, widen=1.3),
        "pixels": lambda: pixel_plate(offset=0.1, widen=1.3),
        "view": lambda: (viewing()[0], pair_of(TRUTH, offset=0.2)[1]),
        "two layers": lambda: (layers.model, layers.guide),
    }[form]()
    x = torch.bernoulli(torch.full((23, 4), 0.5)) if form == "two layers" else X
    found = [evaluate(model, guide, x, ks=(1, 10, 50), chunk_size=size) for size in (64, 5000)]
    for name, value in found[1].per_datum.items():
        assert torch.allclose(value, found[0].per_datum[name], rtol=1e-11, atol=0)


@pytest.mark.parametrize("form", ["plate(len(x))", "pixels in a plate", "latent in a plate", "view"])
@pytest.mark.parametrize("lead", [(), (4,)])
def test_gradient_of_log_joint(form: str, lead: tuple[int, ...]) -> None:
    model, _ = (BROADCASTING | NOT_BROADCASTING)[form]()
    z = torch.randn(*lead, 23, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_joint(model, X, z=z).sum(), z)
    residual = (X - z @ TRUTH.weight.T - TRUTH.bias) / TRUTH.scale**2
    assert torch.allclose(gradient, -z + residual @ TRUTH.weight, rtol=1e-10)


@pytest.mark.parametrize(
    ("form", "z", "text"),
    [
        ("plate(len(x))", torch.zeros(3), "B = 23"),
        ("plate(len(x))", torch.zeros(22, 3), "B = 23"),
        ("plate(len(x))", torch.zeros(4, 22, 3), "B = 23"),
        ("plate(len(x))", torch.zeros(1, 4, 23, 3), "B = 23"),
        ("several latents", torch.zeros(23, 3), r"each of the latent sites \['first', 'rest'\]"),
        ("several latents", {"first": torch.zeros(23)}, "each of the latent sites"),
        ("several latents", {"first": torch.zeros(4, 23), "rest": torch.zeros(23, 2)}, "alike for all latent sites"),
    ],
)
def test_z_of_a_wrong_shape_or_site_is_refused(form: str, z: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        log_joint(BROADCASTING[form]()[0], X, z=z)


def vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return make_vae(2, likelihoods.Bernoulli((5,)))


# nothing is left behind


@pytest.mark.usefixtures("quick_gaps")
def test_evaluation_leaves_everything_as_it_was() -> None:
    v = vae()
    v.decoder.train()
    v.encoder.eval()
    x = torch.bernoulli(torch.full((30, 5), 0.5))
    pyro.param("mine", torch.tensor(2.0), constraint=constraints.positive)
    pyro.module("vae", vae(1))  # another under the same name
    store = pyro.get_param_store().get_state()
    kept = {name: value.clone() for name, value in store["params"].items()}
    weights = {name: value.clone() for name, value in v.state_dict().items()}
    stream = torch.get_rng_state()
    precision = torch.get_float32_matmul_precision()
    few = Checks(2, 2, 2, 2, refit_epochs=1, num_chains=2, num_temperatures=2)
    inside = []
    v.decoder.register_forward_hook(lambda *_: inside.append(torch.get_float32_matmul_precision()))
    try:
        torch.set_float32_matmul_precision("high")
        evaluate(v.model, v.guide, x, ks=(1, 2), checks=few)
        assert set(inside) == {"highest"}
        log_joint(v.model, x, z=torch.zeros(30, 2))
        assert torch.equal(torch.get_rng_state(), stream)
        particles(v.model, v.guide, x, num_particles=2)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert (v.decoder.training, v.encoder.training) == (True, False)
    assert all(torch.equal(value, weights[name]) for name, value in v.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in v.parameters())
    after = pyro.get_param_store().get_state()
    assert list(after["params"]) == list(kept)
    assert all(after["params"][name] is store["params"][name] for name in kept)
    assert all(torch.equal(after["params"][name], kept[name]) for name in kept)
    assert after["constraints"] == store["constraints"]


@pytest.mark.parametrize(("of_torch", "of_pyro"), [(True, False), (False, True)])
def test_switches_are_restored_however_they_were_set(of_torch: bool, of_pyro: bool) -> None:  # noqa: FBT001
    def failing(x: Tensor) -> None:
        MODEL(x)
        if len(x) > 3:
            raise RuntimeError("late")

    try:
        pyro.enable_validation(of_pyro)
        torch.distributions.Distribution.set_default_validate_args(of_torch)
        mine = validation_switches()
        for attempt in (
            lambda: evaluate(failing, GUIDE, X, ks=(1,)),
            lambda: fit(failing, GUIDE, X, modules=[nn.Linear(1, 1)], epochs=1, show_progress=False),
        ):
            with pytest.raises(RuntimeError, match="late"):
                attempt()
            assert validation_switches() == mine
    finally:
        pyro.enable_validation(True)  # noqa: FBT003 (Pyro's)


@pytest.mark.parametrize("wrapped", [False, True])
def test_two_vaes_of_one_name_keep_their_own_weights(wrapped: bool) -> None:  # noqa: FBT001
    def pair(v: VAE) -> ModelGuide:
        return ((lambda x: v.model(x)), (lambda x: v.guide(x))) if wrapped else (v.model, v.guide)

    x = torch.bernoulli(torch.full((30, 5), 0.5))
    vaes = vae(1), vae(2)
    alone = [evaluate(*pair(v), x, ks=(1, 4)) for v in vaes]
    assert alone[0].elbo.value != alone[1].elbo.value
    SVI(vaes[0].model, vaes[0].guide, pyro.optim.Adam({"lr": 0.0}), ELBO()).step(x)  # its tensors are now stored
    for v, expected in zip(vaes, alone, strict=True):
        again = evaluate(*pair(v), x, ks=(1, 4))
        for name, values in again.per_datum.items():
            torch.testing.assert_close(values, expected.per_datum[name], rtol=0, atol=0, equal_nan=True)


def test_a_second_pyro_module_keeps_its_own_tensors() -> None:
    first, second = ExactModule(), ExactModule()
    with torch.no_grad():
        first.scale_unconstrained += 3.0
    first.model(X)  # registers "weight" and "scale" in the caller's store
    mine = second.scale_unconstrained
    require_exact(log_weights(second.model, second.guide, X, num_particles=2))
    assert second.scale_unconstrained is mine
    assert pyro.get_param_store().get_state()["params"]["scale"] is first.scale_unconstrained


def test_stored_values_are_those_evaluated() -> None:
    def fn(z: Tensor) -> Any:
        scale = pyro.param("scale", torch.tensor(9.0), constraint=constraints.positive)
        return dist.Normal(z @ TRUTH.weight.T + TRUTH.bias, scale).to_event(1)

    pyro.param("scale", torch.tensor(TRUTH.scale), constraint=constraints.positive)
    require_exact(log_weights(observing(fn), GUIDE, X, num_particles=2))
    pyro.clear_param_store()
    assert (log_weights(observing(fn), GUIDE, X, num_particles=2) - EXACT).abs().min() > 1.0
    assert "scale" not in pyro.get_param_store()


def test_structure_that_is_read_off() -> None:
    found = inspect_programs(*pixel_plate(), (X,))
    assert (found.plate, found.dim, found.nesting, found.num_elements) == ("data", -2, 2, 5)
    assert found.broadcasts
    levels = make_vae(likelihood=likelihoods.Categorical((5,), 256))
    assert inspect_programs(levels.model, levels.guide, (torch.zeros(3, 5),)).num_elements == 5 * 256
    layers = TwoLayers(bottom_up=True)
    late = "'z2' comes before 'z1' in the model but not in the guide"
    assert inspect_programs(layers.model, layers.guide, (torch.ones(5, 4),)).kl == {"z1": late, "z2": "closed form"}


def test_the_largest_output_of_the_models_modules_counts_too() -> None:
    """Not that of the guide's, nor one of the same size for every number of data."""
    parts, mixture = make_vae().init_arguments, nn.Linear(2, 4000)
    decoder = networks.ConvDecoder(3, (1, 8, 8, 1), channels=(10, 20))
    vae = VAE(**parts | {"decoder": decoder, "encoder": networks.MLPEncoder((1, 8, 8), (3, 2), hidden=(5000,))})

    def model(x: Tensor) -> None:
        mixture(torch.ones(30, 2))
        vae.model(x)

    found = inspect_programs(model, vae.guide, (torch.ones(5, 1, 8, 8),), modules=(mixture,))
    assert (found.num_elements, found.num_units) == (64, 10 * 64)
    assert not torch.nn.modules.module._global_forward_hooks


PRECISION_SCRIPT = """
import sys
import torch
from torch import backends as b
from pyrovae.runtime.context import full_precision

PARTS = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn, b)
exec(sys.argv[1])
before = [part.fp32_precision for part in PARTS]
with full_precision(), full_precision():
    assert {part.fp32_precision for part in PARTS[:-1]} == {"ieee"}
assert [part.fp32_precision for part in PARTS] == before
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.fp32_precision = 'tf32'",
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    ],
)
def test_products_and_convolutions_are_exact_whatever_was_chosen(choice: str) -> None:
    """In processes of their own: torch's switches do not forget that the newer kind was used."""
    subprocess.run([sys.executable, "-c", PRECISION_SCRIPT, choice], check=True)


# values outside the support


def unchecked_bits(output: nn.Module) -> Program:
    """Return a model of bits that does not check them."""
    return observing(lambda z: dist.Bernoulli(logits=output(z @ TRUTH.weight.T), validate_args=False).to_event(1))


@pytest.mark.parametrize("where", [0, 22])
def test_support_is_checked_whatever_validate_args_is(where: int) -> None:
    model = unchecked_bits(nn.Linear(5, 5).double())
    x = torch.bernoulli(torch.full((23, 5), 0.5))
    assert evaluate(model, GUIDE, x, ks=(1,)).bits_per_dimension is not None
    x[where, 2] = 0.25
    many = torch.bernoulli(torch.full((600, 5), 0.5))  # in minibatches of one, far past the steps that are traced
    many[-1, 2] = 0.25
    training = Training(epochs=2, batch_size=1, engine="captured", device="cpu")
    for attempt in (
        lambda: evaluate(model, GUIDE, x, ks=(1,)),
        lambda: log_weights(model, GUIDE, x, num_particles=2),
        lambda: log_joint(model, x, z=torch.zeros(23, 3)),
        lambda: fit(model, GUIDE, many, training=training, show_progress=False),
        lambda: capture(model, GUIDE, x, engine="eager")(x),
        lambda: capture(model, GUIDE, data.Split(many, name="many")),
    ):
        with pytest.raises(ValueError, match=r"site 'x': 1 of \d+ lie outside .*first is 0.25.*unnormalized=True"):
            attempt()


def test_unnormalized_numbers_are_named_in_every_table() -> None:
    model = unchecked_bits(nn.Identity())
    checks = Checks(num_annealed=2, num_simulated=0, num_refined=0, num_encoded=2)
    x = torch.rand(4, 5)
    found = evaluate(model, GUIDE, x, ks=(1, 2), checks=checks, unnormalized=True)
    assert found.bits_per_dimension is None
    assert all(any("NOT a log-probability" in note for note in table.notes) for table in found.tables())
    assert "a log-probability," not in str(found)
    other = evaluate(model, GUIDE, x.round(), ks=(1, 2))
    with pytest.raises(ValueError, match="normalization"):
        compare({"grey": found, "binary": dataclasses.replace(other, data_hash=found.data_hash)})
    with pytest.raises(RuntimeError, match="does not require grad"):  # it is scored, and has no parameters
        capture(model, GUIDE, x, modules=[nn.Linear(1, 1)], engine="eager", unnormalized=True)(x)


def test_a_factor_makes_a_model_unnormalized() -> None:
    def body(x: Tensor) -> None:
        pyro.sample("x", likelihood(pyro.sample("z", prior())), obs=x)
        pyro.factor("bonus", torch.ones(len(x)))

    found = evaluate(program(body), GUIDE, X, ks=(1,))
    assert found.base_measure == "Lebesgue"
    assert "not normalized (pyro.factor 'bonus' in the model)" in str(found)
    assert found.iwae[-1].value == pytest.approx(EXACT.mean().item() + 1)


def test_an_improper_prior_makes_a_model_unnormalized() -> None:
    model = from_prior(dist.ImproperUniform(constraints.real_vector, (), (3,)))
    assert "improper prior of 'z'" in evaluate(model, GUIDE, X, ks=(1,)).unnormalized


class Overconfident(dist.Bernoulli):
    """A distribution whose log-probability is wrong."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 1.0


def test_a_log_probability_above_zero_is_an_error() -> None:
    model = observing(lambda z: Overconfident(logits=9 + z @ TRUTH.weight.T).to_event(1))
    with pytest.raises(ValueError, match=r"at most 0, but ELBO is .* nats: .*a log_prob is wrong"):
        evaluate(model, lambda x: GUIDE(0 * x), torch.ones(6, 5), ks=(1, 10))


def test_angles_lie_between_minus_pi_and_pi() -> None:
    """The VonMises of torch has a density on all of R, whose integral over one period is 1."""
    angles = from_prior(dist.VonMises(torch.zeros(3), 1.0).to_event(1))
    for wide in (dist.Normal(torch.zeros(3), 5.0), dist.Uniform(torch.zeros(3), 6.0)):
        with pytest.raises(ValueError, match="give both the same support"):
            log_weights(angles, guide_from(lambda _, wide=wide: wide.to_event(1)), X, num_particles=20)
    for narrow in (dist.VonMises(torch.ones(3), 2.0), dist.Uniform(-3 * torch.ones(3), 3.0)):
        guide = guide_from(lambda _, narrow=narrow: narrow.to_event(1))
        assert log_weights(angles, guide, X, num_particles=2).isfinite().all()
    model = observing(lambda z: dist.VonMises(z @ TRUTH.weight.T, 2.0).to_event(1))
    x = math.tau * torch.rand(23, 5) - math.pi
    assert log_weights(model, GUIDE, x, num_particles=2).isfinite().all()
    with pytest.raises(ValueError, match="site 'x': .* lie outside the support .* of VonMises"):
        log_weights(model, GUIDE, x * 180 / math.pi, num_particles=2)


@pytest.mark.parametrize(
    ("prior", "guide"),
    [
        (
            dist.Uniform(-torch.ones(3), 1.0),
            lambda m: dist.TransformedDistribution(
                dist.Beta(1 + m.sigmoid(), 2.0), [dist.transforms.AffineTransform(-1.0, 2.0)]
            ),
        ),
        (dist.Uniform(-math.pi * torch.ones(3), math.pi), lambda m: dist.VonMises(m, 2.0)),
        (dist.Uniform(torch.zeros(3), 1.0, validate_args=False), lambda m: dist.Uniform(-0.5 + 0 * m, 1.0)),
        (dist.Gamma(torch.ones(3), 1.0), lambda m: dist.LogNormal(0.1 * m, 0.5)),
    ],
)
def test_guides_whose_draws_lie_in_the_support_are_taken(prior: Any, guide: Callable[[Tensor], Any]) -> None:
    program = guide_from(lambda x: guide(x[:, :3]).to_event(1))
    assert not log_weights(from_prior(prior.to_event(1)), program, X, num_particles=3).isnan().any()


class Grey(dist.Bernoulli):
    """A distribution that computes cross-entropy and checks nothing."""

    def log_prob(self, value: Tensor) -> Tensor:
        return -nn.functional.binary_cross_entropy_with_logits(self.logits, value, reduction="none")


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda z: Grey(logits=z @ TRUTH.weight.T).to_event(1), "9 of 9|15 of 15|20 of 20"),
        (lambda z: dist.Multinomial(9, logits=z @ TRUTH.weight.T), "3 of 3 lie outside the support .* of Multinomial"),
    ],
)
def test_values_that_a_log_prob_does_not_check_are_checked(fn: Callable[[Tensor], Any], text: str) -> None:
    assert log_weights(observing(fn), GUIDE, torch.ones(4, 5), num_particles=2).isfinite().all()
    with pytest.raises(ValueError, match=f"site 'x': ({text})"):  # torch checks only the sum of a multinomial
        log_weights(observing(fn), GUIDE, torch.full((4, 5), 0.4), num_particles=2)


def test_unnormalized_scores_what_ours_refuses_too() -> None:
    vae, x = make_vae(), torch.rand(5, 1, 8, 8)
    with pytest.raises(ValueError, match="scores data that are 0 or 1"):
        evaluate(vae.model, vae.guide, x, ks=(1,))
    found = evaluate(vae.model, vae.guide, x, ks=(1,), unnormalized=True)
    assert found.unnormalized
    assert found.density == "p(x)"


# programs as Pyro's tutorials write them


def test_observed_sites_and_factors_of_a_guide_leave_the_bounds() -> None:
    bits = torch.arange(len(X)) % 2.0

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = x.sum(-1)
            pyro.sample("bit", dist.Bernoulli(logits=logits), obs=bits[: len(x)], infer={"is_auxiliary": True})
            pyro.factor("penalty", logits, has_rsample=False)
            pyro.sample("z", posterior(x))

    for seed in (0, 1):
        found, same = (evaluate(MODEL, q, X, ks=(1, 5), seed=seed) for q in (guide, GUIDE))
        torch.testing.assert_close(found.per_datum["L_5"], same.per_datum["L_5"])
    for objective in (ELBO(), IWAE(num_particles=3)):  # Pyro subtracts the guide's factors from the ELBO
        losses = []
        for q in (guide, GUIDE):
            torch.manual_seed(0)
            losses.append(objective.loss(MODEL, q, X))
        torch.testing.assert_close(losses[0] - losses[1], X.sum())


def test_the_joint_density_of_a_causal_model_of_pyro_is_the_sum_of_its_sites() -> None:
    config = {"feature_dim": 4, "latent_dim": 2, "hidden_dim": 5, "num_layers": 2, "outcome_dist": "bernoulli"}
    model, guide = cevae.Model(config), cevae.Guide(config)
    args = (torch.randn(8, 4), torch.arange(8) % 2.0, torch.arange(8) // 4 * 1.0)
    record = particles(model, guide, *args, num_particles=2)
    scored = poutine.trace(poutine.condition(model, {"z": record.z["z"][1]})).get_trace(*args)
    expected = sum(scored.nodes[name]["fn"].log_prob(scored.nodes[name]["value"]) for name in ("z", "x", "t", "y"))
    require_exact((record.log_prior + record.log_likelihood)[1], expected)
    observed = evaluate(model, guide, args, ks=(1,)).observed
    assert observed is not None
    assert set(observed.sites) == {"x", "t", "y"}


def test_data_that_are_nan_name_cause_and_cure() -> None:
    with pytest.raises(ValueError, match=r"1 values that are NaN.* mask the site"):
        evaluate(MODEL, GUIDE, X.where(X < X.max(), math.nan))


def test_programs_that_take_all_tensors_as_one_argument_are_refused_with_the_remedy() -> None:
    model, guide = (lambda tensors: MODEL(*tensors)), (lambda tensors: GUIDE(tensors[0]))
    with pytest.raises(TypeError, match=r"signature \(tensors.*write lambda \*tensors: model\(tensors\)"):
        fit(model, guide, (X, torch.zeros(len(X))), training=Training(epochs=1))
    with pytest.raises(TypeError, match=r"missing a required argument: 'y'\); give further tensors in a tuple"):
        evaluate(lambda x, y: MODEL(x), GUIDE, X)

    @functools.wraps(MODEL)
    def wrapped(x: Tensor, labels: Tensor) -> None:  # a wrapper may take other arguments than its program
        MODEL(x)

    assert evaluate(wrapped, lambda x, _: GUIDE(x), (X, torch.zeros(len(X))), ks=(1,)).elbo.value is not None
