"""Likelihoods: normalization, means, precision, errors; and the parts together in a VAE."""

from __future__ import annotations

import inspect
import json
import math
import re

import numpy as np
import pyro
import pytest
import torch
from conftest import make_vae
from torch import Tensor, nn

import pyrovae
from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.evaluation import evaluate
from pyrovae.likelihoods import LevelLikelihood, Likelihood
from pyrovae.runtime.context import validation
from pyrovae.runtime.serialization import Described, build, describe


def menu(room: object) -> list[type]:
    found = [getattr(room, name) for name in room.__all__]
    return [part for part in found if not inspect.isabstract(part)]


def likelihood_of(part: type, x_shape: tuple[int, ...], **options: object) -> Likelihood:
    """Make a likelihood, of 5 levels if it scores levels."""
    return part(x_shape, levels=5, **options) if issubclass(part, LevelLikelihood) else part(x_shape, **options)


def likelihood_cases() -> list[object]:
    """Return the concrete likelihoods, and each again with every switch of its own turned."""
    cases = []
    for part in menu(likelihoods):
        switches = {k: v.default for k, v in inspect.signature(part).parameters.items() if isinstance(v.default, bool)}
        cases.append(pytest.param(part, {}, id=part.__name__))
        cases += [pytest.param(part, {k: not v}, id=f"{part.__name__}-{k}={not v}") for k, v in switches.items()]
    return cases


def support_of(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Return points that cover the support of one element, and the weights with which a density is summed there."""
    if likelihood.form == "unit":
        nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(100))
        return (nodes + 1) / 2, weights / 2
    if likelihood.form == "continuous":  # x = sinh(t), so that heavy tails are reached
        t = torch.linspace(-9, 9, 18_001)
        return t.sinh(), t.cosh() * (t[1] - t[0])
    most = {"binary": 2, "counts": 4000}.get(likelihood.form) or likelihood.levels
    return torch.arange(float(most)), torch.ones(most)


def a_mean(likelihood: Likelihood) -> Tensor:
    """Return a mean that data of this form can have."""
    top = {"levels": getattr(likelihood, "levels", 2) - 1.0, "counts": 30.0}.get(likelihood.form, 1.0)
    return (torch.rand(likelihood.x_shape) * 0.8 + 0.1) * top


OUTSIDE = {
    "binary": (0.5,),
    "unit": (-0.1, 1.5, math.nan),
    "continuous": (math.nan,),
    "levels": (-1.0, 0.5, 5.0),
    "counts": (-1.0, 0.5, math.inf),
}
SENTENCES = {
    "binary": ("data that are 0 or 1", "binarize them, for instance with data.transforms.DynamicBinarization(), or "
               "choose a likelihood of gray values such as ContinuousBernoulli"),
    "unit": ("values in [0, 1]", "rescale them, for stored levels by data.for_form('unit')"),
    "continuous": ("finite real numbers", "remove or replace values that are not finite"),
    "levels": ("integers from 0 to 4", "give levels as they are stored, data.for_form('levels'); "
               "for other data choose a density such as Gaussian, or a likelihood of counts"),
    "counts": ("integers >= 0", "give counts as they are stored, data.for_form('counts'); "
               "for other data choose a density such as Gaussian"),
}  # fmt: skip
X_SHAPES = [(3,), (1, 2, 2)]
BATCHES: list[tuple[int, ...]] = [(), (4,), (2, 3)]


@pytest.mark.parametrize(("part", "options"), likelihood_cases())
def test_likelihood_is_normalized_and_has_its_mean(part: type, options: dict[str, object]) -> None:
    likelihood = likelihood_of(part, (1,), **options)
    p_x = likelihood(torch.randn(6, *likelihood.param_shape))
    x, weights = support_of(likelihood)
    mass = p_x.log_prob(x.reshape(-1, 1, 1)).exp() * weights.unsqueeze(-1)  # (points, 6)
    tolerance = 2e-7 if part is likelihoods.Laplace else 1e-9  # the kink of Laplace's density
    assert torch.allclose(mass.sum(0), torch.ones(6), rtol=0, atol=tolerance)
    assert torch.allclose((x.unsqueeze(-1) * mass).sum(0), p_x.mean.squeeze(-1), rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("part", menu(likelihoods))
def test_likelihood_of_a_datum_is_the_product_over_its_elements(part: type) -> None:
    likelihood = likelihood_of(part, (3,))
    one = likelihood_of(part, (1,))
    params = torch.randn(4, *likelihood.param_shape)
    x = likelihood(params).sample()
    apart = [one(params[:, i : i + 1]).log_prob(x[:, i : i + 1]) for i in range(3)]
    assert torch.allclose(likelihood(params).log_prob(x), sum(apart), atol=1e-12)


@pytest.mark.parametrize(("part", "options"), likelihood_cases())
def test_likelihood_gradients(part: type, options: dict[str, object]) -> None:
    likelihood = likelihood_of(part, (2,), **options)
    params = torch.randn(5, *likelihood.param_shape, requires_grad=True)
    x = likelihood(params.detach()).sample()
    assert torch.autograd.gradcheck(lambda params: likelihood(params).log_prob(x), params)
    assert torch.autograd.gradgradcheck(lambda params: likelihood(params).log_prob(x), params)
    likelihood(params).log_prob(x).sum().backward()
    assert (params.grad != 0).all()
    for name, parameter in likelihood.named_parameters():
        assert (parameter.grad != 0).all(), name

        def log_prob(value: Tensor, name: str = name) -> Tensor:
            log = torch.func.functional_call(likelihood, {name: value}, (params.detach(),))
            return log.log_prob(x)

        assert torch.autograd.gradcheck(log_prob, parameter.detach().clone().requires_grad_())


@pytest.mark.parametrize("part", menu(likelihoods))
@pytest.mark.parametrize("x_shape", X_SHAPES)
def test_likelihood_starts_at_the_mean(part: type, x_shape: tuple[int, ...]) -> None:
    likelihood = likelihood_of(part, x_shape)
    mean = a_mean(likelihood)
    params = likelihood.initial_params(mean)
    assert params.shape == likelihood.param_shape
    assert not params.requires_grad
    assert torch.allclose(likelihood(params).mean, mean, rtol=0, atol=1e-9)
    assert likelihood.initial_params(mean.float()).dtype == torch.float32


SCALED = [part for part in menu(likelihoods) if "learn_scale" in inspect.signature(part).parameters]


@pytest.mark.parametrize("part", SCALED)
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


@pytest.mark.parametrize("part", [part for part in menu(likelihoods) if part.form != "continuous"])
def test_likelihood_starts_off_the_ends_of_its_support(part: type) -> None:
    likelihood = likelihood_of(part, (2,))
    top = likelihood.levels - 1.0 if part.form == "levels" else 1.0
    mean = likelihood(likelihood.initial_params(torch.tensor([0.0, top]))).mean
    expected = [0.001, 1.0] if part.form == "counts" else [0.001 * top, 0.999 * top]
    assert mean.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("part", menu(likelihoods))
@pytest.mark.parametrize("learned", [1.0, 8.0])
def test_likelihood_is_right_in_float32(part: type, learned: float) -> None:
    likelihood = likelihood_of(part, (1,)).float()
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


@pytest.mark.parametrize(("part", "options"), likelihood_cases())
def test_likelihood_never_waits_for_the_device(part: type, options: dict[str, object]) -> None:
    """A meta tensor has no values: reading one, or mixing in a tensor of another device, raises."""
    likelihood = likelihood_of(part, (1, 2), **options).to("meta")
    assert not any(isinstance(value, Tensor) for value in vars(likelihood).values())  # which would not move
    params = torch.randn(3, *likelihood.param_shape, device="meta", requires_grad=True)
    with validation(enabled=False):
        p_x = likelihood(params)
        log_p = p_x.log_prob(torch.zeros(3, 1, 2, device="meta"))
        assert p_x.mean.shape == likelihood.encoder_input(torch.zeros(3, 1, 2, device="meta")).shape == (3, 1, 2)
    assert log_p.shape == (3,)
    log_p.sum().backward()
    assert params.grad.shape == params.shape


@pytest.mark.parametrize("part", menu(likelihoods))
def test_likelihood_refuses_what_it_does_not_score(part: type) -> None:
    likelihood = likelihood_of(part, (2,))
    p_x = likelihood(torch.randn(3, *likelihood.param_shape))
    inside = p_x.sample()
    support, hint = SENTENCES[part.form]
    for outside in OUTSIDE[part.form]:
        x = inside.clone()
        x[1, 0] = outside
        found = f"1 of 6 values are not (smallest {x.min():.3g}, largest {x.max():.3g})"
        with pytest.raises(ValueError, match=re.escape(f"{part.__name__} scores {support}, but {found}; {hint}")):
            p_x.log_prob(x)


@pytest.mark.parametrize("part", menu(likelihoods))
def test_wrong_parameters_name_the_cure(part: type) -> None:
    made = likelihood_of(part, (3,)) if part in menu(likelihoods) else part(3)
    role = "likelihood" if part in menu(likelihoods) else "posterior"
    with pytest.raises(
        ValueError, match=rf"received \(5, 3, 9\); build the network with out_shape={role}\.param_shape"
    ):
        made(torch.zeros(5, 3, 9))


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
        with pytest.raises(ValueError, match="`scale` of Gaussian must be positive and finite"):
            likelihoods.Gaussian((3,), scale=scale)


def test_options_of_likelihoods_are_checked() -> None:
    for df in (1.0, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`df` of StudentT must be finite and > 1"):
            likelihoods.StudentT((3,), df=df)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="`min_scale` must be positive and finite"):
            likelihoods.HeteroscedasticGaussian((3,), min_scale=bad)
        with pytest.raises(ValueError, match="`total_count` of NegativeBinomial must be positive and finite, got"):
            likelihoods.NegativeBinomial((3,), total_count=bad)
    with pytest.raises(ValueError, match="`num_components` must be an integer >= 1, got 0"):
        likelihoods.DiscretizedLogisticMixture((3,), 5, num_components=0)
    for part in (likelihoods.Categorical, likelihoods.DiscretizedLogistic, likelihoods.DiscretizedLogisticMixture):
        with pytest.raises(ValueError, match=f"`levels` of {part.__name__} must be an integer >= 2, got 1"):
            part((3,), 1)


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
    p_x = likelihood(likelihood.initial_params(wanted))
    assert torch.allclose(p_x.mean, wanted, rtol=0, atol=1e-9)
    x = torch.arange(float(levels)).reshape(-1, 1).expand(-1, 21)
    assert torch.allclose(p_x.base_dist.log_prob(x).logsumexp(0), torch.zeros(21), atol=1e-10)


def test_mixture_of_one_component_is_that_component() -> None:
    params, x = torch.randn(6, 3, 2), torch.randint(0, 5, (6, 3)).double()
    one = likelihoods.DiscretizedLogisticMixture((3,), 5, num_components=1)
    mixed = one(torch.cat([torch.randn(6, 3, 1), params], -1))
    alone = likelihoods.DiscretizedLogistic((3,), 5)(params)
    assert torch.allclose(mixed.log_prob(x), alone.log_prob(x), atol=1e-12)
    assert torch.allclose(mixed.mean, alone.mean, atol=1e-12)


def test_bernoulli_does_not_saturate_and_refuses_grey_values() -> None:
    torch.set_default_dtype(torch.float32)
    likelihood = likelihoods.Bernoulli((1,))
    assert likelihood(torch.tensor([[60.0]])).log_prob(torch.zeros(1)).item() == pytest.approx(-60.0)
    with pytest.raises(ValueError, match=r"1 of 2 values are not \(smallest 0, largest 0.5\); binarize them"):
        likelihood(torch.zeros(2, 1, 1)).log_prob(torch.tensor([[0.0], [0.5]]))
    with pyro.plate("data", 2), pytest.raises(ValueError, match="binarize them"):
        likelihood(torch.zeros(1, 1)).expand([2]).log_prob(torch.tensor([[0.0], [0.5]]))


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


def test_what_counts_do_not_take_is_told_by_the_likelihood_not_by_the_encoder() -> None:
    likelihood = likelihoods.Poisson((3,))
    assert likelihood.encoder_input(torch.tensor([-5.0, 0.0, 1.0])).isfinite().all()
    vae = make_vae(likelihood=likelihood)
    with pytest.raises(ValueError, match="Poisson scores integers >= 0") as refusal:
        evaluate(vae.model, vae.guide, torch.randn(5, 3), ks=(1,), show_progress=False)
    assert str(refusal.value).startswith("Poisson scores"), "without Pyro's frame"


def test_a_density_of_discrete_data_is_refused() -> None:
    digits = pyrovae.data.digits()
    vae = make_vae(likelihood=likelihoods.Gaussian((1, 8, 8)))
    for data, words in [(digits.for_form("binary"), "DynamicBinarization"), (digits, "Identity")]:
        said = (
            rf"a density of continuous data, but digits/t\w+ gives discrete values \({words}.*for_form\('continuous'\)"
        )
        with pytest.raises(ValueError, match=said):
            evaluate(vae.model, vae.guide, data, ks=(1,), show_progress=False)
        with pytest.raises(ValueError, match=said):
            pyrovae.fit(vae.model, vae.guide, data, show_progress=False)
    assert (
        evaluate(
            vae.model, vae.guide, digits.for_form("continuous").test.first(5), ks=(1,), show_progress=False
        ).num_data
        == 5
    )


def test_parts_of_another_role_or_size_are_refused() -> None:
    parts = make_vae(latent_dim=3).init_arguments
    with pytest.raises(TypeError, match=r"the prior of a VAE .* received a DiagonalNormal of pyrovae\.posteriors"):
        VAE(**parts | {"prior": posteriors.DiagonalNormal(3)})
    with pytest.raises(TypeError, match="received the class StandardNormal of"):
        VAE(**parts | {"prior": priors.StandardNormal})
    with pytest.raises(ValueError, match="the prior has 3 dimensions and the decoder 4"):
        VAE(**parts | {"decoder": networks.MLPDecoder(4, parts["likelihood"].param_shape)})


@pytest.mark.parametrize("kind", [likelihoods.Categorical, likelihoods.DiscretizedLogistic])
@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("levels", {}, r"scores 256 levels, but digits/test has 17.*for_data\(data\), or with levels=17"),
        ("binary", {"levels": 17}, r"as they are stored, but digits/test gives them by DynamicBinarization"),
        ("levels", {"levels": 18}, r"scores 18 levels"),
    ],
)
def test_levels_are_those_of_the_data(kind: type, form: str, options: dict[str, int], message: str) -> None:
    data = pyrovae.data.digits().for_form(form)
    vae = make_vae(likelihood=kind(data.x_shape, **options))
    with pytest.raises(ValueError, match=message):
        evaluate(vae.model, vae.guide, data, ks=(1,), show_progress=False)
    with pytest.raises(ValueError, match=message.replace("/test", "/train")):
        pyrovae.fit(vae.model, vae.guide, data, show_progress=False)


def test_counts_are_no_grey_levels() -> None:
    data = pyrovae.data.from_arrays(np.random.default_rng(0).poisson(3, (100, 4)))
    assert data.train.levels is None
    with pytest.raises(ValueError, match="levels is None; .*--data.levels.*score counts by a likelihood of counts"):
        data.for_form("binary")
    vae = make_vae(likelihood=likelihoods.Poisson((4,)))
    assert evaluate(vae.model, vae.guide, data.for_form("counts"), ks=(1,), show_progress=False).elbo.value < 0
