"""Likelihoods: normalization, means, precision, errors; and the parts together in a VAE."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import evaluate, make_vae, menu, small_part
from torch import Tensor, nn

import pyrovae
from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.runtime.context import validation
from pyrovae.runtime.serialization import Described, build, describe

LEARNED = [part for part in menu(likelihoods) if "learn_scale" in inspect.signature(part).parameters]


@pytest.mark.parametrize("part", menu(likelihoods))
def test_likelihood_starts_at_the_mean(part: type) -> None:
    likelihood = small_part(part, (1, 2, 2))
    top = {"levels": 5.0, "counts": 30.0}.get(part.form, 1.0)
    mean = (torch.rand(1, 2, 2) * 0.8 + 0.1) * top
    params = likelihood.initial_params(mean)
    assert not params.requires_grad
    assert torch.allclose(likelihood(params).mean, mean, rtol=0, atol=1e-9)
    assert likelihood.initial_params(mean.float()).dtype == torch.float32
    if part.form != "continuous":  # it starts off the ends of its support
        top = 5.0 if part.form == "levels" else 1.0
        ends = likelihood(likelihood.initial_params(torch.tensor([0.0, 0.0, top, top]).view(1, 2, 2))).mean
        expected = [0.001, 1.0] if part.form == "counts" else [0.001 * top, 0.999 * top]
        assert ends.flatten()[1:3].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("part", LEARNED)
def test_learned_scales_start_at_the_spread_of_data(part: type) -> None:
    truth, mean = part((2,), scale=0.3), torch.tensor([1.0, -2.0])
    x = truth(truth.initial_params(mean)).sample((20_000,))
    learned = part((2,), learn_scale=True)
    assert torch.equal(learned.start(x, mean), learned.initial_params(mean))
    assert learned.scale.item() == pytest.approx(0.3, rel=0.03)
    for given in (part((2,), scale=0.5, learn_scale=True), part((2,))):
        before = given.scale.item()
        given.start(x, mean)
        assert given.scale.item() == before
    learned = part((2,), learn_scale=True)
    learned.start(mean.expand(3, 2), mean)  # data without spread leave it where it is
    assert learned.scale.item() == 1.0


def test_scales_that_the_decoder_emits_start_at_the_spread_of_data() -> None:
    mean, spread = torch.tensor([1.0, -2.0]), torch.tensor([0.1, 0.3])
    x = mean + spread * torch.randn(20_000, 2)
    p_x = likelihoods.HeteroscedasticGaussian((2,)).start(x, mean)
    scale = likelihoods.HeteroscedasticGaussian((2,))(p_x).stddev
    assert scale.tolist() == pytest.approx([(spread**2).mean().sqrt().item()] * 2, rel=0.03)


def test_learned_counts_start_at_the_variance_of_data() -> None:
    truth, mean = likelihoods.NegativeBinomial((2,), total_count=3.0), torch.tensor([5.0, 9.0])
    learned = likelihoods.NegativeBinomial((2,))
    learned.start(truth(truth.initial_params(mean)).sample((20_000,)), mean)
    assert learned.log_total_count.exp().tolist() == pytest.approx([3.0, 3.0], rel=0.1)
    less = likelihoods.NegativeBinomial((2,))
    less.start(mean.expand(9, 2), mean)  # of less variance than a Poisson
    assert less.log_total_count.exp().tolist() == pytest.approx([100.0, 100.0])


@pytest.mark.parametrize("part", menu(likelihoods))
@pytest.mark.parametrize("learned", [1.0, 8.0])
def test_likelihood_is_right_in_float32(part: type, learned: float) -> None:
    likelihood = small_part(part, (1,)).float()
    params = learned * torch.randn(500, *likelihood.param_shape, dtype=torch.float32)
    if part.form == "counts":  # beyond, the rounding of a logarithm alone moves log p by more
        params = params.clamp(max=8.0)
    x = likelihood(params.double()).sample().float()
    leaves = [p.requires_grad_() for p in (params, params.double())]
    log_p, exact = (likelihood(leaf).log_prob(x.to(leaf)) for leaf in leaves)
    assert log_p.dtype == torch.float32
    assert ((log_p - exact).abs() <= 1e-5 * (1 + exact.abs())).all()
    gradients = [torch.autograd.grad(value.sum(), leaf)[0] for value, leaf in zip((log_p, exact), leaves, strict=True)]
    assert torch.isfinite(gradients[0]).all()
    assert ((gradients[0] - gradients[1]).abs() <= 1e-4 * (1 + gradients[1].abs())).all()


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("part", menu(likelihoods))
def test_likelihood_never_waits_for_the_device(part: type, *, learned: bool) -> None:
    """A meta tensor has no values: reading one, or mixing in a tensor of another device, raises."""
    options = {"learn_scale", "learn_total_count"} & set(inspect.signature(part).parameters)
    likelihood = small_part(part, (1, 2), **dict.fromkeys(options, learned)).to("meta")
    assert not any(isinstance(value, Tensor) for value in vars(likelihood).values())  # which would not move
    params = torch.randn(3, *likelihood.param_shape, device="meta", requires_grad=True)
    with validation(enabled=False):
        p_x = likelihood(params)
        log_p = p_x.log_prob(torch.zeros(3, 1, 2, device="meta"))
        assert p_x.mean.shape == likelihood.encoder_input(torch.zeros(3, 1, 2, device="meta")).shape == (3, 1, 2)
    assert log_p.shape == (3,)
    log_p.sum().backward()
    assert params.grad.shape == params.shape


def test_gaussian_against_its_formula() -> None:
    x, mean = torch.randn(7, 3), torch.randn(7, 3)
    expected = -0.5 * (math.log(2 * math.pi) + math.log(0.16) + (x - mean) ** 2 / 0.16).sum(-1)
    log_p = likelihoods.Gaussian((3,), scale=0.4)(mean.unsqueeze(-1)).log_prob(x)
    assert torch.allclose(log_p, expected, atol=1e-12)


@pytest.mark.parametrize("min_scale", [0.01, 5.0])
def test_floor_under_the_scale_lets_gradients_pass(min_scale: float) -> None:
    likelihood = likelihoods.HeteroscedasticGaussian((1,), min_scale=min_scale).float()
    for log_scale in (-1000.0, -30.0, 0.0, 5.0):
        params = torch.tensor([[0.0, log_scale]], dtype=torch.float32, requires_grad=True)
        scale = likelihood(params).base_dist.scale
        assert scale.item() >= 0.999999 * min_scale
        (gradient,) = torch.autograd.grad(scale.sum(), params)
        assert gradient[0, 1] > 1e-7 * min_scale
    above = likelihood(torch.tensor([[0.0, 9.0]], dtype=torch.float32)).base_dist.scale.log().item()
    assert above == pytest.approx(9.0, abs=1 / (9 - math.log(min_scale)))
    start = likelihood(likelihood.initial_params(torch.tensor([0.3]))).base_dist.scale.item()
    assert start == pytest.approx(max(1.0, 3 * min_scale), rel=1e-5)


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize(
    "part", [likelihoods.Categorical, likelihoods.DiscretizedLogistic, likelihoods.DiscretizedLogisticMixture]
)
def test_likelihoods_of_levels_start_at_any_mean(part: type, levels: int) -> None:
    wanted = torch.linspace(0.001, 0.999, 21) * (levels - 1)
    likelihood = part((21,), levels)
    assert torch.allclose(likelihood(likelihood.initial_params(wanted)).mean, wanted, rtol=0, atol=1e-9)


def test_mixture_of_one_component_is_that_component() -> None:
    params, x = torch.randn(6, 3, 2), torch.randint(0, 5, (6, 3)).double()
    one = likelihoods.DiscretizedLogisticMixture((3,), 5, num_components=1)
    mixed = one(torch.cat([torch.randn(6, 3, 1), params], -1))
    alone = likelihoods.DiscretizedLogistic((3,), 5)(params)
    assert torch.allclose(mixed.log_prob(x), alone.log_prob(x), atol=1e-12)
    assert torch.allclose(mixed.mean, alone.mean, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "decoder",
            lambda: networks.MLPDecoder(3, (1, 8, 8, 2)),
            r"emits \(1, 8, 8, 2\) .* Bernoulli needs \(1, 8, 8, 1\)",
        ),
        ("encoder", lambda: networks.MLPEncoder((1, 8, 8), (7, 2)), "encoder emits .* out_shape=posterior.param_shape"),
        ("prior", lambda: priors.StandardNormal(4), "the prior has 4 dimensions and the posterior 3"),
        ("decoder", lambda: networks.MLPDecoder(4, (1, 8, 8, 1)), "the prior has 3 dimensions and the decoder 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name: str, make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        VAE(**make_vae().init_arguments | {name: make()})


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
        with pytest.raises(ValueError, match="`num_samples` of generate must be an integer >= 1"):
            vae.generate(num)
    with pytest.raises(ValueError, match="drawing 1000000000000 samples needs about"):
        vae.generate(10**12)


def test_description_rebuilds_and_imports_nothing_else() -> None:
    vae = make_vae()
    again = build(json.loads(json.dumps(describe(vae))))
    assert describe(again) == describe(vae)
    for path in ("os.system", "subprocess.Popen", "pyrovae.cli.main", "pyrovae.data.Split", "torch.nn.modules.no.No"):
        with pytest.raises(ValueError, match="only from pyrovae|not a part|not have|no such"):
            build({"class": path, "arguments": {}})
    with pytest.raises(TypeError, match="which a run folder cannot describe"):
        describe(VAE(**vae.init_arguments | {"encoder": nn.Sequential(vae.encoder)}))


def test_defaults_are_described_as_far_as_json_holds_them() -> None:
    class Part(posteriors.DiagonalNormal):
        def __init__(
            self,
            latent_dim: int,
            *,
            widths: tuple[int, ...] = (3, 4),
            activation: type[torch.nn.Module] = torch.nn.ReLU,
            function: object = torch.tanh,
            limit: float = math.inf,
            table: Tensor = torch.ones(2),  # noqa: B008
        ) -> None:
            super().__init__(latent_dim)

    kept = {"widths": [3, 4], "activation": {"type": "torch.nn.modules.activation.ReLU"}}
    assert describe(Part(2))["arguments"] == {"latent_dim": 2} | kept
    assert describe(Part(2, widths=(5,)))["arguments"]["widths"] == [5]
    with pytest.raises(TypeError, match="which a run folder cannot describe"):
        describe(Part(2, function=torch.tanh))


def test_a_run_means_the_same_when_a_default_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    described = json.loads(json.dumps(describe(networks.MLPEncoder((4,), (2, 2)))))
    monkeypatch.setitem(networks.MLPEncoder.__init__.__wrapped__.__kwdefaults__, "hidden", (7,))
    assert build(described).layers[0].out_features == 200


def test_a_subclass_without_a_constructor_is_described_too() -> None:
    class Wide(posteriors.DiagonalNormal):
        pass

    class Narrow(Wide):
        def __init__(self, latent_dim: int) -> None:
            super().__init__(latent_dim, max_log_variance=0.0)

    bounds = {"min_log_variance": -5.0, "max_log_variance": 10.0}
    assert describe(Wide(2, min_log_variance=-5.0))["arguments"] == {"latent_dim": 2} | bounds
    assert describe(Narrow(2))["arguments"] == {"latent_dim": 2}
    assert issubclass(Narrow, Described)


def test_generate_wants_a_row_of_covariates_for_each_sample() -> None:
    vae = make_vae()
    for wrong in (torch.zeros(10, 2), torch.zeros(1, 2), torch.zeros(3)):
        with pytest.raises(ValueError, match=r"3 samples take covariates of shape \(3, \.\.\.\), one row each"):
            vae.generate(3, wrong)


def test_data_outside_the_support_are_counted_by_the_likelihood_and_not_refused_by_the_encoder() -> None:
    vae = make_vae(likelihood=likelihoods.Poisson((2,)))
    message = r"^Poisson scores integers >= 0, but 1 of 6 values are not \(smallest -5, largest 3\); give counts"
    with pytest.raises(ValueError, match=message):
        evaluate(vae.model, vae.guide, torch.tensor([[1.0, 2.0], [-5.0, 0.0], [3.0, 0.0]]), ks=(1,))


def test_a_density_of_discrete_data_is_refused() -> None:
    digits = pyrovae.data.digits()
    vae = make_vae(likelihood=likelihoods.Gaussian((1, 8, 8)))
    for data, words in [(digits.for_form("binary"), "DynamicBinarization"), (digits, "Identity")]:
        said = rf"a density of continuous data, but digits/t\w+ gives discrete values \({words}.*form\('continuous'\)"
        with pytest.raises(ValueError, match=said):
            evaluate(vae.model, vae.guide, data, ks=(1,))
        with pytest.raises(ValueError, match=said):
            pyrovae.fit(vae.model, vae.guide, data, show_progress=False)
    test = digits.for_form("continuous").test.first(5)
    assert evaluate(vae.model, vae.guide, test, ks=(1,)).num_data == 5


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("levels", {}, r"scores 256 levels, but digits/test has 17.*for_data\(data\), or with levels=17"),
        ("binary", {"levels": 17}, r"as they are stored, but digits/test gives them by DynamicBinarization"),
        ("levels", {"levels": 18}, r"scores 18 levels"),
    ],
)
def test_levels_are_those_of_the_data(form: str, options: dict[str, int], message: str) -> None:
    data = pyrovae.data.digits().for_form(form)
    vae = make_vae(likelihood=likelihoods.Categorical(data.x_shape, **options))
    with pytest.raises(ValueError, match=message):
        evaluate(vae.model, vae.guide, data, ks=(1,))
    with pytest.raises(ValueError, match=message.replace("/test", "/train")):
        pyrovae.fit(vae.model, vae.guide, data, show_progress=False)


def test_counts_are_no_grey_levels() -> None:
    data = pyrovae.data.from_arrays(np.random.default_rng(0).poisson(3, (100, 4)))
    assert data.train.levels is None
    with pytest.raises(ValueError, match="levels is None; .*--data.levels.*score counts by a likelihood of counts"):
        data.for_form("binary")
    vae = make_vae(likelihood=likelihoods.Poisson((4,)))
    assert evaluate(vae.model, vae.guide, data.for_form("counts"), ks=(1,)).elbo.value < 0


def test_encoders_see_levels_as_numbers_from_zero_to_one() -> None:
    x = torch.tensor([[0.0, 1.0, 3.0]])
    torch.testing.assert_close(likelihoods.Categorical((3,), 4).encoder_input(x), torch.tensor([[0.0, 1 / 3, 1.0]]))
