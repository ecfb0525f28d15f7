"""Laws that every prior, likelihood, posterior and network obeys; a new one is tested the moment it is exported."""

from __future__ import annotations

import inspect
import itertools
import json
import math

import pyro
import pytest
import torch
from conftest import make_vae
from torch import Tensor, nn

from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.describe import Described, build, describe


def menu(room: object) -> list[type]:
    found = [getattr(room, name) for name in room.__all__]
    return [part for part in found if not inspect.isabstract(part)]


X_SHAPES = [(3,), (1, 2, 2)]
BATCHES: list[tuple[int, ...]] = [(), (4,), (2, 3)]


@pytest.mark.parametrize("part", menu(likelihoods))
@pytest.mark.parametrize("x_shape", X_SHAPES)
@pytest.mark.parametrize("batch", BATCHES)
def test_likelihood_shapes(part: type, x_shape: tuple[int, ...], batch: tuple[int, ...]) -> None:
    likelihood = part(x_shape)
    p_x = likelihood(torch.randn(*batch, *likelihood.param_shape))
    assert p_x.batch_shape == batch
    assert p_x.event_shape == x_shape
    x = p_x.sample()
    assert x.shape == (*batch, *x_shape)
    assert p_x.log_prob(x).shape == batch
    assert p_x.mean.shape == (*batch, *x_shape)


@pytest.mark.parametrize("part", menu(likelihoods))
def test_likelihood_is_normalized(part: type) -> None:
    likelihood = part((2,))
    p_x = likelihood(torch.randn(2, part.n_params))
    if part.base_measure == "counting":
        x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)))
        total = p_x.log_prob(x).exp().sum()
    else:
        grid = torch.linspace(-12, 12, 1201)
        x = torch.cartesian_prod(grid, grid)
        total = p_x.log_prob(x).exp().sum() * (grid[1] - grid[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("part", menu(likelihoods))
@pytest.mark.parametrize("x_shape", X_SHAPES)
def test_likelihood_starts_at_the_mean(part: type, x_shape: tuple[int, ...]) -> None:
    likelihood = part(x_shape)
    mean = torch.rand(x_shape) * 0.8 + 0.1
    params = likelihood.initial_params(mean)
    assert params.shape == likelihood.param_shape
    assert torch.allclose(likelihood(params).mean, mean, atol=1e-12)


@pytest.mark.parametrize("part", [*menu(likelihoods), *menu(posteriors)])
def test_wrong_parameters_name_the_cure(part: type) -> None:
    made = part((3,)) if part in menu(likelihoods) else part(3)
    role = "likelihood" if part in menu(likelihoods) else "posterior"
    with pytest.raises(
        ValueError, match=rf"received \(5, 3, 9\); build the network with out_shape={role}\.param_shape"
    ):
        made(torch.zeros(5, 3, 9))


@pytest.mark.parametrize("part", menu(priors))
@pytest.mark.parametrize("latent_dim", [1, 2])
def test_prior_is_normalized(part: type, latent_dim: int) -> None:
    prior = part(latent_dim)
    grid = torch.linspace(-12, 12, 1201)
    z = torch.cartesian_prod(*[grid] * latent_dim).reshape(-1, latent_dim)
    assert prior().batch_shape == ()
    assert prior().event_shape == (latent_dim,)
    total = prior().log_prob(z).exp().sum() * (grid[1] - grid[0]) ** latent_dim
    assert total.item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("part", menu(posteriors))
@pytest.mark.parametrize("batch", BATCHES)
def test_posterior_shapes_and_gradients(part: type, batch: tuple[int, ...]) -> None:
    posterior = part(3)
    params = torch.randn(*batch, *posterior.param_shape, requires_grad=True)
    q_z = posterior(params)
    assert q_z.batch_shape == batch
    assert q_z.event_shape == (3,)
    z = q_z.rsample()
    (z**2 - q_z.log_prob(z.detach()).unsqueeze(-1)).sum().backward()
    assert (params.grad != 0).all()


@pytest.mark.parametrize("part", [*menu(priors), *menu(posteriors)])
def test_no_latent_dimension_is_refused(part: type) -> None:
    with pytest.raises(ValueError, match="at least 1 dimension, but received latent_dim=0"):
        part(0)


@pytest.mark.parametrize("part", [*menu(likelihoods), *menu(priors), *menu(posteriors)])
def test_parts_follow_their_dtype_and_come_back(part: type) -> None:
    made = part((3,)) if part in menu(likelihoods) else part(3)
    for tensor in (*made.float().parameters(), *made.buffers()):
        assert tensor.dtype == torch.float32
    again = build(json.loads(json.dumps(describe(made))))
    again.load_state_dict(made.state_dict())
    assert type(again) is part
    for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b.float())


def test_gaussian_against_its_formula() -> None:
    x, mean = torch.randn(7, 3), torch.randn(7, 3)
    likelihood = likelihoods.Gaussian((3,), scale=0.4)
    expected = -0.5 * (math.log(2 * math.pi) + math.log(0.16) + (x - mean) ** 2 / 0.16).sum(-1)
    assert torch.allclose(likelihood(mean.unsqueeze(-1)).log_prob(x), expected, atol=1e-12)
    assert list(likelihood.parameters()) == []
    learned = likelihoods.Gaussian((3,), scale=0.4, learn_scale=True)
    learned(mean.unsqueeze(-1)).log_prob(x).sum().backward()
    assert learned.log_scale.grad.item() == pytest.approx((((x - mean) ** 2) / 0.16 - 1).sum().item())
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="scale of a Gaussian is positive and finite"):
            likelihoods.Gaussian((3,), scale=scale)


def test_bernoulli_does_not_saturate_and_refuses_grey_values() -> None:
    torch.set_default_dtype(torch.float32)
    likelihood = likelihoods.Bernoulli((1,))
    assert likelihood(torch.tensor([[60.0]])).log_prob(torch.zeros(1)).item() == pytest.approx(-60.0)
    with pytest.raises(ValueError, match=r"1 of 2 values are not \(smallest 0, largest 0.5\); binarize them"):
        likelihood(torch.zeros(2, 1, 1)).log_prob(torch.tensor([[0.0], [0.5]]))
    with pyro.plate("data", 2), pytest.raises(ValueError, match="binarize them"):
        likelihood(torch.zeros(1, 1)).expand([2]).log_prob(torch.tensor([[0.0], [0.5]]))


def test_kl_closed_forms() -> None:
    posterior, prior = posteriors.DiagonalNormal(1), priors.StandardNormal(1)
    for mean, std, expected in [(0.0, 1.0, 0.0), (1.0, 1.0, 0.5), (0.0, 2.0, 0.5 * (4 - 1 - math.log(4)))]:
        q_z = posterior(torch.tensor([[mean, 2 * math.log(std)]]))
        assert torch.distributions.kl_divergence(q_z, prior()).item() == pytest.approx(expected, abs=1e-12)


def test_clamp_cuts_the_value_and_passes_the_gradient() -> None:
    for bounds in [(-10.0, 10.0), (-30.0, 20.0)]:
        posterior = posteriors.DiagonalNormal(3, min_log_variance=bounds[0], max_log_variance=bounds[1])
        params = torch.tensor([[0.0, -50.0], [0.0, 1.5], [0.0, 50.0]], requires_grad=True)
        log_variance = 2 * posterior(params).base_dist.scale.log()
        assert log_variance.tolist() == pytest.approx([bounds[0], 1.5, bounds[1]])
        log_variance.sum().backward()
        assert params.grad[:, 1].tolist() == pytest.approx([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="needs min < max"):
        posteriors.DiagonalNormal(3, min_log_variance=1.0, max_log_variance=1.0)


def test_log_q_is_right_in_float32_at_the_default_bound() -> None:
    torch.set_default_dtype(torch.float32)

    def error(posterior: posteriors.DiagonalNormal) -> float:
        mean = torch.linspace(-4, 4, 1000)
        params = torch.stack([mean, torch.full_like(mean, -1e3)], -1).unsqueeze(-2)  # (1000, 1, 2)
        q_z = posterior(params)
        noise = torch.randn(1000, 1)
        z = q_z.mean + q_z.base_dist.scale * noise
        exact = -0.5 * noise.double() ** 2 - 0.5 * math.log(2 * math.pi) - q_z.base_dist.scale.double().log()
        return (q_z.log_prob(z) - exact.squeeze(-1)).abs().max().item()

    assert error(posteriors.DiagonalNormal(1)) < 2e-4
    assert error(posteriors.DiagonalNormal(1, min_log_variance=-30.0)) > 0.1


@pytest.mark.parametrize("batch", BATCHES)
def test_networks_keep_batch_axes(batch: tuple[int, ...]) -> None:
    encoder = networks.MLPEncoder((1, 4, 4), (3, 2), hidden=(5,))
    x = torch.randn(*batch, 1, 4, 4)
    out = encoder(x)
    assert out.shape == (*batch, 3, 2)
    rows = torch.stack([encoder(row) for row in x.reshape(-1, 1, 4, 4)]).reshape(out.shape)
    assert torch.allclose(out, rows)
    decoder = networks.MLPDecoder(3, (1, 4, 4, 2), hidden=(5, 6), activation=nn.ReLU)
    assert decoder(torch.randn(*batch, 3)).shape == (*batch, 1, 4, 4, 2)


def test_decoder_starts_at_the_given_parameters() -> None:
    start = torch.randn(2, 2, 1)
    decoder = networks.MLPDecoder(3, (2, 2, 1), initial_params=start)
    assert torch.equal(decoder.layers[-1].bias, start.flatten())
    assert torch.allclose(decoder(torch.zeros(3)), start)
    with pytest.raises(ValueError, match=r"shape of the decoder's output, \(2, 2, 1\), but received \(4,\)"):
        networks.MLPDecoder(3, (2, 2, 1), initial_params=torch.zeros(4))


def binary(num: int = 5) -> Tensor:
    return (torch.rand(num, 1, 8, 8) < 0.5).double()


def test_parts_that_do_not_fit_are_told_apart() -> None:
    vae = make_vae()
    parts = {name: getattr(vae, name) for name in ("prior", "decoder", "likelihood", "encoder", "posterior")}
    wide = networks.MLPDecoder(3, (1, 8, 8, 2))
    with pytest.raises(ValueError, match=r"decoder emits \(1, 8, 8, 2\) per datum, but Bernoulli needs \(1, 8, 8, 1\)"):
        VAE(**parts | {"decoder": wide})
    with pytest.raises(ValueError, match=r"encoder emits .* build it with out_shape=posterior.param_shape"):
        VAE(**parts | {"encoder": networks.MLPEncoder((1, 8, 8), (7, 2))})
    with pytest.raises(ValueError, match="the prior has 4 dimensions and the posterior 3"):
        VAE(**parts | {"prior": priors.StandardNormal(4)})


def test_generate_draws_from_the_model_in_a_stream_of_its_own() -> None:
    vae = make_vae()
    vae.train()
    state = torch.get_rng_state()
    x = vae.generate(20_000)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert torch.equal(vae.generate(20_000), x)
    assert not torch.equal(vae.generate(20_000, seed=1), x)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    expected = vae.generate(20_000, seed=2, mean=True).mean(0)
    assert (x.mean(0) - expected).abs().max() < 4 * 0.5 * math.sqrt(2 / 20_000)
    for num in (0, -3):
        with pytest.raises(ValueError, match="at least 1 sample"):
            vae.generate(num)
    with pytest.raises(ValueError, match="drawing 1000000000000 samples needs about"):
        vae.generate(10**12)


def test_reconstruct_interpolate_and_traverse() -> None:
    vae, x = make_vae(), binary()
    z = vae.encode(x).mean
    means = vae.reconstruct(x)
    assert torch.allclose(means, vae.decode(z).mean)
    line = vae.interpolate(x[:2], x[2:4], num_steps=5)
    assert line.shape == (2, 5, 1, 8, 8)
    assert torch.allclose(line[:, 0], means[:2])
    assert torch.allclose(line[:, -1], means[2:4])
    values = torch.tensor([-1.0, 2.0])
    moved = vae.traverse(x[0], dims=[2, 0], values=values)
    assert moved.shape == (2, 2, 1, 8, 8)
    by_hand = z[0].clone()
    by_hand[2] = 2.0
    assert torch.allclose(moved[0, 1], vae.decode(by_hand).mean)


def test_description_rebuilds_and_imports_nothing_else() -> None:
    vae = make_vae()
    again = build(json.loads(json.dumps(describe(vae))))
    again.load_state_dict(vae.state_dict())
    x = binary()
    assert torch.equal(again.reconstruct(x), vae.reconstruct(x))
    for path in ("os.system", "subprocess.Popen", "pyrovae.cli.main", "pyrovae.data.Split", "torch.nn.modules.no.No"):
        with pytest.raises(ValueError, match="outside pyrovae|is not a part|does not have"):
            build({"class": path, "arguments": {}})
    with pytest.raises(TypeError, match="which a run folder cannot describe"):
        describe(VAE(**vae.init_arguments | {"encoder": nn.Sequential(vae.encoder)}))


def test_a_subclass_without_a_constructor_is_described_too() -> None:
    class Wide(posteriors.DiagonalNormal):
        pass

    class Narrow(Wide):
        def __init__(self, latent_dim: int) -> None:
            super().__init__(latent_dim, max_log_variance=0.0)

    assert describe(Wide(2, min_log_variance=-5.0))["arguments"] == {"latent_dim": 2, "min_log_variance": -5.0}
    assert describe(Narrow(2))["arguments"] == {"latent_dim": 2}
    assert issubclass(Narrow, Described)
