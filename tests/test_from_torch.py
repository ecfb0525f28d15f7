"""VAEs from plain torch against formulas."""

from __future__ import annotations

import copy
import functools
import math
import re
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrovae
from pyrovae import VAE, likelihoods, priors, report

LATENT, SHAPE, PIXELS = 3, (1, 4, 4), 16


class Plain(nn.Module):
    """A VAE as tutorials write it, on flat data."""

    def __init__(self, *, dropout: float = 0.0, out: int = PIXELS) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(PIXELS, 8), nn.Tanh(), nn.Dropout(dropout))
        self.mean, self.log_variance = nn.Linear(8, LATENT), nn.Linear(8, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, out))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(x)
        return self.mean(hidden), self.log_variance(hidden)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class Images(nn.Module):
    """An encoder for images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 2, 3), nn.Linear(8, 2 * LATENT)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.out(self.conv(x).flatten(1)).chunk(2, -1))


def wrapped(net: Plain, **options: Any) -> VAE:
    options = {"latent_dim": LATENT, "x_shape": SHAPE, "flat": True} | options
    return VAE.from_torch(net.encode, net.decode, **options)


def binary(n: int = 20) -> Tensor:
    return torch.rand(n, *SHAPE).round()


def by_hand(net: Plain, x: Tensor, z: Tensor, log_p_x: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(z), log p(x | z) and log q(z | x) for z ``(K, B, D)``, written out."""
    mean, log_variance = net.encode(x.flatten(1))
    log_2pi = math.log(2 * math.pi)
    log_q = -0.5 * (log_2pi + log_variance + (z - mean) ** 2 / log_variance.exp()).sum(-1)
    return -0.5 * (log_2pi + z**2).sum(-1), log_p_x(net.decode(z)), log_q


def bernoulli_of(x: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: (x.flatten(1) * F.logsigmoid(logits) + (1 - x.flatten(1)) * F.logsigmoid(-logits)).sum(-1)


def gaussian_of(x: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    constant = math.log(2 * math.pi) + 2 * math.log(scale)
    return lambda mean: -0.5 * (constant + ((x.flatten(1) - mean) / scale) ** 2).sum(-1)


def agree(vae: VAE, net: Plain, x: Tensor, log_p_x: Callable[[Tensor], Tensor]) -> None:
    """Check all three log-probabilities of particles against formulas."""
    record = pyrovae.particles(vae.model, vae.guide, x, num_particles=5)
    with torch.no_grad():
        expected = by_hand(net, x, record.z["z"], log_p_x)
    for found, wanted in zip((record.log_prior, record.log_likelihood, record.log_guide), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_particles_agree_with_formulas() -> None:
    net, x = Plain(), binary()
    agree(wrapped(net), net, x, bernoulli_of(x))
    real = torch.randn(20, *SHAPE)
    agree(wrapped(net, likelihood=likelihoods.Gaussian(SHAPE, scale=0.3)), net, real, gaussian_of(real, 0.3))


def test_the_log_variance_is_not_clamped() -> None:
    for value in (-25.0, 15.0):
        net = Plain()
        nn.init.zeros_(net.log_variance.weight)
        nn.init.constant_(net.log_variance.bias, value)
        vae, x = wrapped(net), binary(4)
        torch.testing.assert_close(vae.encode(x).variance, torch.full((4, LATENT), math.exp(value)))


def test_images_modules_partials_and_any_batch_axes() -> None:
    encoder, decoder = Images(), nn.Linear(LATENT, PIXELS)
    vae = VAE.from_torch(encoder, decoder, latent_dim=LATENT, x_shape=SHAPE)
    x = binary(6).reshape(2, 3, *SHAPE)
    torch.testing.assert_close(vae.encode(x).mean, torch.stack([encoder(row)[0] for row in x]))
    assert vae.decode(torch.zeros(2, 3, LATENT)).event_shape == SHAPE
    assert {id(p) for p in vae.parameters()} == {id(p) for p in (*encoder.parameters(), *decoder.parameters())}
    net = Plain()
    partial = VAE.from_torch(functools.partial(net.encode), functools.partial(net.decode), latent_dim=3, x_shape=SHAPE)
    assert len(list(partial.parameters())) == len(list(net.parameters()))


@pytest.mark.parametrize("shape", [(PIXELS,), SHAPE, (*SHAPE, 1)])
def test_outputs_may_be_flat_images_or_parameters(shape: tuple[int, ...]) -> None:
    z, weight = torch.randn(5, LATENT), torch.randn(LATENT, PIXELS)
    logits = (z @ weight).reshape(5, *SHAPE)

    def decode(z: Tensor) -> Tensor:
        return (z @ weight).reshape(len(z), *shape)

    sizes = {"latent_dim": LATENT, "x_shape": SHAPE, "modules": []}
    vae = VAE.from_torch(Images(), decode, **sizes)
    torch.testing.assert_close(vae.decode(z).base_dist.logits, logits)
    if shape != (*SHAPE, 1):
        likelihood = likelihoods.HeteroscedasticGaussian(SHAPE)
        vae = VAE.from_torch(Images(), lambda z: (decode(z), decode(2 * z)), likelihood=likelihood, **sizes)
        expected = likelihood(torch.stack([logits, 2 * logits], -1))
        torch.testing.assert_close(vae.decode(z).mean, expected.mean)
        torch.testing.assert_close(vae.decode(z).variance, expected.variance)


class Maps(nn.Module):
    """Convolutions to and from latent maps of shape (2, 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(1, 4, 2, stride=2), nn.ConvTranspose2d(2, 1, 2, stride=2)

    def two_tensors(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.down(x).chunk(2, 1)

    def diffusers(self, x: Tensor) -> SimpleNamespace:
        mean, log_variance = self.two_tensors(x)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, logvar=log_variance))

    def sample(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.up(z))


@pytest.mark.parametrize(("encode", "decode"), [("down", "up"), ("two_tensors", "up"), ("diffusers", "sample")])
def test_latent_maps_are_flat_outside_the_networks(encode: str, decode: str) -> None:
    net, x, z = Maps(), 300 * torch.rand(6, *SHAPE), torch.randn(3, 6, 8)
    options = {"latent_shape": (2, 2, 2), "x_shape": SHAPE, "likelihood": likelihoods.Gaussian(SHAPE)}
    vae = VAE.from_torch(getattr(net, encode), getattr(net, decode), modules=[net], **options)
    mean, log_variance = net.down(x).chunk(2, 1)
    torch.testing.assert_close(vae.encode(x).mean, mean.flatten(1))
    assert log_variance.max() > 20
    assert log_variance.min() < -30
    torch.testing.assert_close(vae.encode(x).variance, log_variance.clamp(-30, 20).exp().flatten(1))
    expected = net.up(z.reshape(18, 2, 2, 2)).reshape(3, 6, *SHAPE)
    torch.testing.assert_close(vae.decode(z).mean, expected)
    assert pyrovae.evaluate(vae, x, ks=(1, 4), show_progress=False).kl_methods == {"z": "closed form"}
    assert len(pyrovae.diagnostics.latents(vae.model, vae.guide, x, show_progress=False).units) == 8
    assert report.traversals(vae, x) is not None


def test_probabilities_are_made_logits() -> None:
    net, x = Plain(), binary()
    shape = {"latent_dim": LATENT, "x_shape": SHAPE, "flat": True}
    decode = lambda z: net.decode(z).sigmoid()  # noqa: E731
    agree(VAE.from_torch(net.encode, decode, **shape, probabilities=True, modules=[net]), net, x, bernoulli_of(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_probabilities_are_exact_as_far_as_the_dtype_can_tell(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    p = torch.tensor([1e-30, 1e-6, 0.25, 0.5, 0.75, 1 - 64 * eps, 1 - eps / 2], dtype=dtype)
    vae = VAE.from_torch(
        Images(), lambda z: p.repeat(len(z), 1), latent_dim=LATENT, x_shape=(7,), probabilities=True, modules=[]
    )
    exact = [math.log(value) - math.log1p(-value) for value in p.double().tolist()]
    logits = vae.decode(torch.zeros(1, LATENT)).base_dist.logits[0].tolist()
    assert logits == pytest.approx(exact, rel=4 * eps, abs=1e-15)


def constant(values: list[float]) -> Callable[[Tensor], Tensor]:
    row = torch.tensor(values)
    return lambda z: row.repeat(len(z), 1)


def scored(decode: Callable[[Tensor], Tensor], **options: Any) -> None:
    vae = VAE.from_torch(Images(), decode, latent_dim=LATENT, x_shape=(2,), modules=[], **options)
    vae.decode(torch.zeros(3, LATENT))


@pytest.mark.parametrize("values", [[0.0, 0.5], [0.5, 1.0], [-2.0, 0.5], [0.5, 1.5], [0.5, math.nan]])
def test_invalid_or_saturated_probabilities_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"strictly between 0 and 1, but decode returned .*float64 from .*let it retu"):
        scored(constant(values), probabilities=True)


def test_probabilities_in_place_of_logits_are_refused() -> None:
    words = r"its whole output lies between 0 and 1 \(from 0.1 to 0.9\).*probabilities=T"
    for likelihood in (None, likelihoods.ContinuousBernoulli((2,))):
        with pytest.raises(ValueError, match=words):
            scored(constant([0.1, 0.9]), likelihood=likelihood)
        scored(constant([0.1, 0.9]), likelihood=likelihood, probabilities=False)
        for logits in ([0.0, 0.0], [-0.1, 0.9]):
            scored(constant(logits), likelihood=likelihood)
    scored(constant([0.1, 0.9]), likelihood=likelihoods.Gaussian((2,)))
    with pytest.raises(ValueError, match=r"Gaussian is not given by probabilities"):
        scored(constant([0.1, 0.2]), probabilities=True, likelihood=likelihoods.Gaussian((2,)))


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda x: x, r"a tensor of shape \(5, 1, 4, 4\) for x of shape \(5, 1, 4, 4\)"),
        (lambda x: (x[:, 0, 0, :3],), r"1 values \(a tensor of shape \(5, 3\)\)"),
        (lambda x: (x[..., :3], None), r"2 values \(a tensor .*, a NoneType\).* or say flat=True if it takes rows"),
    ],
)
def test_invalid_outputs_of_encode_are_refused(encode: Callable[[Tensor], Any], words: str) -> None:
    vae = VAE.from_torch(encode, nn.Linear(3, 16), latent_dim=3, x_shape=SHAPE, modules=[])
    with pytest.raises(ValueError, match=r"each of shape \(B, 3\), but returned " + words):
        vae.encode(binary(5))


def test_an_integer_is_a_shape_and_a_named_tuple_two_tensors() -> None:
    pair = namedtuple("pair", "mu logvar")
    one: Any = {"x_shape": 4, "latent_shape": 2, "likelihood": likelihoods.Bernoulli(4)}
    vae = VAE.from_torch(lambda x: pair(x[:, :2], x[:, 2:]), nn.Linear(2, 4), modules=[], **one)
    x = binary(5).flatten(1)[:, :4]
    assert vae.encode(x).mean.equal(x[:, :2])
    assert vae.encode(x).variance.log().equal(x[:, 2:])


@pytest.mark.parametrize(
    ("decode", "likelihood", "words"),
    [
        (
            lambda z: (z.new_ones(2, 16),) * 2,
            likelihoods.Bernoulli,
            r"a tensor of .*2 values \(a tensor of shape \(2, 16",
        ),
        (lambda z: dist.Normal(z, 1.0), likelihoods.Bernoulli, r"a tensor .*returned a Normal for z of shape \(2, 3\)"),
        (lambda z: z.new_ones(2, 16), likelihoods.HeteroscedasticGaussian, r"2 tensors.*returned a tensor .*\(2, 16\)"),
    ],
)
def test_invalid_outputs_of_decode_are_refused(
    decode: Callable[[Tensor], Any], likelihood: Callable[..., likelihoods.Likelihood], words: str
) -> None:
    vae = VAE.from_torch(Images(), decode, latent_dim=3, x_shape=SHAPE, likelihood=likelihood(SHAPE), modules=[])
    with pytest.raises(ValueError, match=f"decode returns {words}"):
        vae.decode(torch.zeros(2, 3))


def test_invalid_arguments_are_refused() -> None:
    net, shape = Plain(), {"latent_dim": LATENT, "x_shape": SHAPE}
    for wrong in (Plain, 3, torch.zeros(2)):
        with pytest.raises(TypeError, match="`encode` of .* must be a function, got"):
            VAE.from_torch(wrong, net.decode, **shape)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"decode is neither a module nor the method.*modules=\[...\], an empty list"):
        VAE.from_torch(net.encode, lambda z: net.decode(z), **shape)
    with pytest.raises(ValueError, match=r"received one of \(16,\) and x_shape=\(1, 4, 4\); build it with the same"):
        VAE.from_torch(net.encode, net.decode, **shape, likelihood=likelihoods.Bernoulli((16,)))
    for sizes in ({"latent_dim": None}, {"latent_shape": (3,)}):
        with pytest.raises(ValueError, match=r"give one of latent_dim and latent_shape, got latent_dim=.* and late"):
            VAE.from_torch(net.encode, net.decode, **(shape | sizes))
    for bad in (("2", 4, 4), (-2, 4, 4), ()):
        with pytest.raises(ValueError, match=f"latent_shape.* got .*{re.escape(str(bad))}"):
            VAE.from_torch(net.encode, net.decode, latent_shape=bad, x_shape=SHAPE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prior and posterior share the latent variable"):
        VAE.from_torch(net.encode, net.decode, **shape, prior=priors.StandardNormal(2))


@pytest.mark.parametrize("named", [True, False])
def test_modules_are_evaluated_in_eval_mode_and_left_as_they_were(*, named: bool) -> None:
    net, x = Plain(dropout=0.9).train(), binary()
    functions = (lambda x: net.encode(x), lambda z: net.decode(z)) if named else (net.encode, net.decode)
    vae = VAE.from_torch(*functions, latent_dim=LATENT, x_shape=SHAPE, flat=True, modules=[net] if named else None)
    evaluation = pyrovae.evaluate(vae.model, vae.guide, x, ks=(1, 4), show_progress=False)
    assert all(part.training for part in net.modules())
    plain = wrapped(copy.deepcopy(net).eval())
    without = pyrovae.evaluate(plain.model, plain.guide, x, ks=(1, 4), show_progress=False)
    assert evaluation.estimates == without.estimates, "no dropout"
    assert evaluation.kl_methods == {"z": "closed form"}
    assert next(vae.to(torch.float32).parameters()) is next(net.parameters()), "they are used, not copied"


@pytest.mark.parametrize("part", [likelihoods.Poisson, likelihoods.Categorical])
def test_the_encoder_sees_x_itself(part: type[likelihoods.Likelihood]) -> None:
    likelihood, x = part((PIXELS,)), torch.arange(2.0 * PIXELS).reshape(2, PIXELS)
    encode = lambda x: (x[:, :LATENT], torch.zeros(len(x), LATENT))  # noqa: E731
    decode = lambda z: torch.zeros(len(z), *likelihood.param_shape)  # noqa: E731
    vae = VAE.from_torch(encode, decode, latent_dim=LATENT, x_shape=(PIXELS,), likelihood=likelihood, modules=[])
    assert torch.equal(vae.encode(x).mean, x[:, :LATENT])
    assert not torch.equal(likelihood.encoder_input(x), x), "the likelihood that was given is as before"


def test_two_methods_of_one_module_are_trained_and_saved(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    net, x = Plain(), binary(64)
    vae, start = wrapped(net), net.mean.weight.detach().clone()
    data = pyrovae.data.load(x).for_form("binary")
    training = pyrovae.Training(epochs=2, device="cpu")
    pyrovae.fit(vae.model, vae.guide, data, training=training, folder=tmp_path / "run")
    assert not torch.equal(net.mean.weight, start)
    other = Plain()
    pyrovae.training.load_weights(tmp_path / "run", [wrapped(other)])
    for name, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
