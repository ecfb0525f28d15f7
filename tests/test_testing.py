"""The conformance checks: every exported part passes, and a part with one fault fails the right check."""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import make_vae, menu, small_part
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import register_kl

import pyrovae
from pyrovae import bounds, likelihoods, networks, objectives, posteriors, priors, testing
from pyrovae.likelihoods import Likelihood
from pyrovae.objectives import ELBO, DReG, Objective, schedules
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.testing import Check, ConformanceReport, check, common_checks, quadrature


def make(part: type) -> Any:
    """Return a small part of a class."""
    if issubclass(part, Objective):
        return part()
    if issubclass(part, networks.Encoder | networks.Decoder):
        image = part.__name__.startswith(("Conv", "ResNet"))
        if issubclass(part, networks.Encoder):
            return small_part(part, (1, 8, 8) if image else (4,), (2, 2), covariate_dim=3)
        return small_part(part, 2, (1, 8, 8, 1) if image else (4, 1), covariate_dim=3)
    if part is priors.Vamp:
        posterior = posteriors.DiagonalNormal(2)
        encoder = networks.MLPEncoder((4,), posterior.param_shape, hidden=(16,))
        return small_part(part, encoder, posterior, data=torch.rand(3, 4))
    return small_part(part, (2,) if issubclass(part, Likelihood) else 2)


PARTS = [
    part
    for room in (likelihoods, priors, posteriors, networks, objectives)
    for part in menu(room)
    if part is not objectives.Terms
]


KINKED = {"Laplace": 1e-3}  # tolerance of the total; quadrature converges slowly at the kink
SLOW = [networks.ResNetEncoder]  # of 11 million parameters


@pytest.fixture
def _without_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common_checks, "check_bounds", lambda *_: "left out")


@pytest.mark.parametrize("part", [pytest.param(part, marks=[pytest.mark.slow] * (part in SLOW)) for part in PARTS])
def test_every_exported_part_passes(part: type, request: pytest.FixtureRequest) -> None:
    """Bounds are checked for one part here, and for all in `test_lattice`."""
    if part is not likelihoods.Gaussian:
        request.getfixturevalue("_without_bounds")
    report = check(make(part), show_progress=False)
    assert report, str(report)
    assert all(item.passed and item.detail for item in report.checks)
    totals = [item.detail.rpartition(" ")[2] for item in report.checks if item.name == TOTAL]
    assert all(abs(float(total) - 1) < KINKED.get(part.__name__, 1e-6) for total in totals)


@pytest.mark.usefixtures("_without_bounds")
@pytest.mark.parametrize("x_shape", [(1,), (2, 1)])
def test_data_of_one_or_two_elements_in_any_shape(x_shape: tuple[int, ...]) -> None:
    assert check(likelihoods.Poisson(x_shape), show_progress=False)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.2, 3.0), (20.0, 2.0)])
def test_quadrature_of_densities_that_are_steep_near_the_ends(a: float, b: float) -> None:
    fn = dist.Beta(torch.tensor(a), torch.tensor(b))
    x, weights = quadrature.unit_interval(401)
    mass = fn.log_prob(x).exp() * weights
    assert mass.sum().item() == pytest.approx(1, abs=1e-8)
    assert (mass @ x).item() == pytest.approx(fn.mean.item(), abs=1e-8)
    assert (mass @ x**2).item() == pytest.approx((fn.variance + fn.mean**2).item(), abs=1e-8)


@pytest.mark.parametrize("df", [1.0, 3.0, math.inf])
def test_quadrature_of_the_real_line(df: float) -> None:
    fn = dist.Normal(0.5, 2.0) if math.isinf(df) else dist.StudentT(df, 0.5, 2.0)
    x, weights = quadrature.real_line(401)
    assert (fn.log_prob(x).exp() * weights).sum().item() == pytest.approx(1, abs=1e-9)


# right parts, and variants of them with one fault each


class Location(Likelihood):
    n_params = 1
    form = "continuous"
    base_measure = "Lebesgue"
    elements: Callable[..., TorchDistribution] = dist.Normal

    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(type(self).elements(self.split(params)[0], 1.0))

    def initial_params(self, mean: Tensor) -> Tensor:
        return mean.unsqueeze(-1)


class Beta(Likelihood):
    """A density on [0, 1] that is infinite at the ends for small concentrations."""

    n_params = 2
    form = "unit"
    base_measure = "Lebesgue"

    def __init__(self, x_shape: tuple[int, ...], *, concentration: float = 1.0) -> None:
        super().__init__(x_shape)
        self.concentration = concentration

    def forward(self, params: Tensor) -> TorchDistribution:
        a, b = self.split(params)
        return self.independent(dist.Beta(a.exp(), b.exp()))

    def initial_params(self, mean: Tensor) -> Tensor:
        return (self.concentration * torch.stack([mean, 1 - mean], -1)).log()


class LocationScale(Posterior):
    n_params = 2
    elements: Callable[..., TorchDistribution] = dist.Normal

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_scale = self.split(params)
        return type(self).elements(mean, log_scale.exp()).to_event(1)


class Learned(Prior):
    elements: Callable[..., TorchDistribution] = dist.Normal

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(0.5 * torch.ones(latent_dim))
        self.log_scale = nn.Parameter(0.5 * torch.ones(latent_dim))

    def forward(self) -> TorchDistribution:
        return type(self).elements(self.loc, self.log_scale.exp()).to_event(1)


class Linear(networks.Encoder):
    def __init__(self, x_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape, out_shape)
        self.layer = nn.Linear(x_shape[0], math.prod(out_shape))

    def run(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        return self.layer(x).unflatten(-1, self.out_shape)


def variant(name: str, base: type, **attributes: Any) -> Any:
    """Return a subclass that can be imported from this module."""
    part = type(name, (base,), {"__module__": __name__, **attributes})
    globals()[name] = part
    return part


# elements with one fault each


class Offset(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.1


class OffsetCauchy(dist.Cauchy):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.01


class NarrowDraws(dist.Normal):
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + 0.5 * (super().sample(torch.Size(sample_shape)) - self.loc)


class OneForAll(dist.Normal):
    """One draw for a whole batch."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        z = super().sample(sample_shape)
        return z[:1].expand_as(z) if z.ndim > 2 else z


class WrongMean(dist.Normal):
    @property
    def mean(self) -> Tensor:
        return self.loc + 1.0


class NoRsample(dist.Normal):
    has_rsample = False


class ShortPath(dist.Normal):
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn = super().rsample(sample_shape)
        return drawn.detach() + 0.2 * (drawn - drawn.detach())


class StaleCache(dist.Normal):
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        self.last = super().rsample(torch.Size(sample_shape))
        return self.last

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + (0.5 if value is getattr(self, "last", None) else 0.0)


class WrongKL(dist.Normal):
    pass


def _wrong_kl(q: Any, p: Any) -> Tensor:
    return 0.5 * (q.loc - p.loc) ** 2 + q.scale - 1 - q.scale.log()


register_kl(WrongKL, dist.Normal)(_wrong_kl)
register_kl(dist.Normal, WrongKL)(_wrong_kl)


# parts with one fault each, the check that finds it, and the beginning of its error

FORM = "form and base measure are stated"
SHAPES = "shapes under any batch axes"
TOTAL = "the density is normalized"
DRAWS = "draws agree with the density"
MEAN = "the mean agrees with the density"
MOMENTS = "mean and stddev agree with the density"
OWN = "log_prob of a draw equals log_prob of its value"
START = "initial_params gives the mean"
GRADIENTS = "gradients reach every parameter"
SUPPORT = "data outside the support raise an error"
KL = "the closed-form KL is right"
INPUT = "encoder_input distinguishes data points"
DESCRIBED = "the description builds the same part"
BOUNDS = "bounds against quadrature"
Faults = list[tuple[Any, dict[str, str]]]


class DeadParameter(Location):
    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape)
        self.log_scale = nn.Parameter(torch.zeros(()))


class Undescribable(Location):
    def __init__(self, x_shape: tuple[int, ...], helper: object) -> None:
        super().__init__(x_shape)


class ForgetsItsTensor(Location):
    def __init__(self, x_shape: tuple[int, ...], scale: Tensor | None = None) -> None:
        super().__init__(x_shape)
        self.scale = torch.ones(()) if scale is None else scale

    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(dist.Normal(params[..., 0], self.scale))


class DrawsItsScale(Location):
    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape)
        self.scale = 1 + torch.rand(()).item()

    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(dist.Normal(params[..., 0], self.scale))


class StartsWide(likelihoods.Gaussian):
    def start(self, x: Tensor, mean: Tensor) -> Tensor:
        params = super().start(x, mean)
        self.log_scale.data.add_(3)
        return params


class OnePerBatch(dist.Independent):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value).sum()


def at(location: Callable[[Tensor], Tensor]) -> Callable[[Location, Tensor], TorchDistribution]:
    """Return a `forward` that gives normal elements at a function of the decoder's output."""
    return lambda self, params: self.independent(dist.Normal(location(params[..., 0]), 1.0))


def raises(self: Any, params: Tensor) -> TorchDistribution:
    raise RuntimeError("no\nsuch thing")


def likelihood(name: str, **attributes: Any) -> Location:
    return variant(name, Location, **attributes)((2,))


def accepts_nan(self: Any, params: Tensor) -> TorchDistribution:
    return dist.Normal(params[..., 0], 1.0, validate_args=False).to_event(1)


LIKELIHOODS: Faults = [
    (likelihood("Unnormalized", elements=Offset), {TOTAL: "it integrates to 1.22"}),
    (likelihood("NarrowLikelihood", elements=NarrowDraws), {DRAWS: "moments of"}),
    (likelihood("MeanOff", elements=WrongMean), {MEAN: "off by 1", START: "the mean is off by"}),
    (likelihood("NoMean", elements=dist.Cauchy), {MEAN: "the mean is not finite", START: "the mean is off by nan"}),
    (likelihood("WrongMeasure", base_measure="counting"), {FORM: "`base_measure` of 'continuous' data must be 'Leb"}),
    (
        likelihood("BatchLost", forward=lambda self, params: OnePerBatch(dist.Normal(params[..., 0], 1.0), 1)),
        {SHAPES: "log_prob of four draws has shape ()"},
    ),
    (likelihood("NoEvent", forward=lambda self, params: dist.Normal(params[..., 0], 1.0)), {SHAPES: "batch_shape has"}),
    (
        likelihood("MixedData", forward=at(lambda output: output - output.mean(0) * (output.ndim > 1))),
        {SHAPES: "log_prob of a data point changes by"},
    ),
    (likelihood("Raises", forward=raises), {SHAPES: "RuntimeError: no such thing"}),
    (likelihood("OtherShape", initial_params=lambda self, mean: mean), {SHAPES: "initial_params has shape (2,), not"}),
    (DeadParameter((2,)), {GRADIENTS: "no gradient for log_scale"}),
    (
        likelihood(
            "UnusedNumber", n_params=2, initial_params=lambda self, mean: mean.unsqueeze(-1).expand(*mean.shape, 2)
        ),
        {GRADIENTS: "of the 2 numbers on the last axis, no gradient for 1"},
    ),
    (
        likelihood("SmallGradient", forward=at(lambda output: 0.3 * output + 0.7 * output.detach())),
        {GRADIENTS: "the gradient for the network's output is wrong"},
    ),
    (
        likelihood("InfiniteGradient", forward=at(lambda output: output + (output - output).abs().sqrt())),
        {GRADIENTS: "the gradient is not finite"},
    ),
    (likelihood("AcceptsNaN", forward=accepts_nan), {SUPPORT: "log_prob accepts the value nan"}),
    (likelihood("StartsElsewhere", initial_params=lambda self, mean: mean.flip(-1).unsqueeze(-1)), {START: "the mean"}),
    (Undescribable((2,), object()), {DESCRIBED: "TypeError: helper is a object, which a run folder cannot describe"}),
    (ForgetsItsTensor((2,), torch.tensor(3.0)), {DESCRIBED: "the tensor scale does not move to a device"}),
    (DrawsItsScale((2,)), {DESCRIBED: "the built DrawsItsScale differs by"}),
    (StartsWide((2,), learn_scale=True), {"start fits learned scales": "the log-likelihood at the mean changes by -"}),
    (likelihood("Blind", encoder_input=lambda self, x: 0 * x), {INPUT: "50 distinct data points become 1"}),
]


def cached(self: Any, params: Tensor) -> TorchDistribution:
    mean, log_scale = self.split(params)
    return UncachedSample(StaleCache(mean, log_scale.exp()), 1)


class UncachedSample(dist.Independent):
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(torch.Size(sample_shape)).clone()


LATENT: Faults = [
    (variant("WrongMoments", LocationScale, elements=WrongMean)(2), {MOMENTS: "mean off by"}),
    (variant("CachesDraws", LocationScale, forward=cached)(2), {OWN: "differs by 1 nats"}),
    (variant("Unreparametrized", LocationScale, elements=NoRsample)(2), {GRADIENTS: "draws of Independent have no"}),
    (variant("PathTooShort", LocationScale, elements=ShortPath)(2), {GRADIENTS: "the gradient for the network's out"}),
    (variant("WrongKLPosterior", LocationScale, elements=WrongKL)(2), {KL: ""}),
    (variant("TooNarrow", LocationScale, elements=lambda m, s: dist.Normal(m, s / (5 + 5 * s)))(2), {BOUNDS: ""}),
    (variant("PriorDrawsOnce", Learned, elements=OneForAll)(2), {DRAWS: "draws of two data points are dependent"}),
    (variant("WrongKLPrior", Learned, elements=WrongKL)(2), {KL: ""}),
]


def run(change: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a `run` of `Linear` with a changed input."""
    return lambda self, x, covariates: Linear.run(self, change(self, x), covariates)


def network(name: str, run: Callable[..., Tensor]) -> Linear:
    return variant(name, Linear, run=run)((3,), (2, 2))


INDEPENDENT = "data points are independent in eval mode"
DETERMINISTIC = "the output is deterministic in eval mode"
TRAIN = "it runs in train mode"
REACH = "gradients reach input and every parameter"
NETWORKS: Faults = [
    (network("Flat", lambda self, x, covariates: self.layer(x)), {SHAPES: "the output has shape (4,) for batch axes"}),
    (network("Centered", run(lambda self, x: x - x.mean(0))), {INDEPENDENT: "the output of a data point changes by"}),
    (
        network("Noisy", run(lambda self, x: x + torch.randn_like(x))),
        {INDEPENDENT: "", DETERMINISTIC: "two outputs of the same input differ by", REACH: "", DESCRIBED: ""},
    ),
    (network("Undefined", run(lambda self, x: x / (not self.training))), {TRAIN: "32 outputs are not finite"}),
    (network("BlindNetwork", run(lambda self, x: x * torch.tensor([1.0, 1.0, 0.0]))), {REACH: "of the 3 numbers on"}),
]


# objectives


class Negative(ELBO):
    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> objectives.Terms:
        terms = super().terms(model, guide, *args, **kwargs)
        return objectives.Terms(-terms.loss, terms.reconstruction, terms.kl)


class HalfGradient(ELBO):
    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> objectives.Terms:
        terms = super().terms(model, guide, *args, **kwargs)
        return objectives.Terms(0.5 * (terms.loss + terms.loss.detach()), terms.reconstruction, terms.kl)


class NoKL(ELBO):
    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> objectives.Terms:
        terms = super().terms(model, guide, *args, **kwargs)
        return objectives.Terms(-terms.reconstruction, terms.reconstruction, 0 * terms.kl)


class SumOfWeights(DReG):
    def bound(self, log_weights: Tensor) -> Tensor:
        return log_weights.logsumexp(0)


class ForgetsAlpha(ELBO):
    def __init__(self, *, alpha: float = 0.5) -> None:
        super().__init__()


ELBO_CHECK, LOSS, UNBIASED = "reconstruction - KL is the ELBO", "the loss is minus the bound", "gradients are unbiased"
OBJECTIVES: Faults = [
    (Negative(), {LOSS: ""}),
    (HalfGradient(), {UNBIASED: "against finite differences: off by"}),
    (NoKL(), {"the terms are finite numbers": "the loss has no gradient"}),
    (SumOfWeights(), {LOSS: ""}),
    (objectives.STL(num_particles=5), {UNBIASED: ""}),
    (ForgetsAlpha(), {"the description has class and options": "`describe` leaves out alpha"}),
]

BROKEN = [*LIKELIHOODS, *LATENT, *NETWORKS, *OBJECTIVES]


@pytest.mark.parametrize(("part", "details"), BROKEN, ids=[type(part).__name__ for part, _ in BROKEN])
def test_a_broken_part_fails_the_right_check(part: Any, details: dict[str, str]) -> None:
    report = check(part, show_progress=False)
    assert not report
    assert {item.name for item in report.checks if item.passed is False} == set(details), str(report)
    for item in report.checks:
        if item.name in details:
            assert item.detail.startswith(details[item.name]), item.detail
            assert "\n" not in item.detail
    assert f"fails {len(details)} of {len(report.checks)} checks" in str(report)


OTHERS = [
    likelihoods.NegativeBinomial((2,), learn_total_count=False),
    variant("PyroWords", Location, forward=lambda self, params: dist.Laplace(params[..., 0], 1.0).to_event(1))((2,)),
    variant("Kinked", LocationScale, elements=dist.Laplace)(2),
    variant("KinkedPrior", Learned, elements=dist.Laplace)(2),
]


@pytest.mark.usefixtures("_without_bounds")
@pytest.mark.parametrize("part", OTHERS, ids=lambda part: type(part).__name__)
def test_parts_with_options_and_parts_of_a_user_pass(part: Likelihood | Posterior | Prior) -> None:
    report = check(part, show_progress=False)
    assert report, str(report)


@pytest.mark.usefixtures("_without_bounds")
@pytest.mark.parametrize("concentration", [1.0, 5.0, 20.0])
def test_a_steep_density_passes_for_every_seed(concentration: float) -> None:
    for seed in range(3):
        report = check(Beta((2,), concentration=concentration), seed=seed, show_progress=False)
        assert report, str(report)


EXAMPLES = [
    (Likelihood, "Gumbel", ((2,),)),
    (Prior, "Laplace", (2,)),
    (Posterior, "Laplace", (2,)),
    (Objective, "Capacity", ()),
    (objectives.ImportanceWeighted, "Renyi", ()),
    (schedules.Schedule, "SquareRoot", ()),
]


@pytest.mark.usefixtures("_without_bounds")
@pytest.mark.parametrize(("base", "name", "args"), EXAMPLES, ids=[name for _, name, _ in EXAMPLES])
def test_the_example_of_a_base_class_passes(
    base: type, name: str, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = types.ModuleType("script")  # classes must be importable
    monkeypatch.setitem(sys.modules, "script", script)
    names = {"torch": torch, "bounds": bounds, "schedules": schedules}
    vars(script).update({base.__name__: base for base, *_ in EXAMPLES} | names)
    lines = re.findall(r"^\s*(?:>>>|\.\.\.) ?(.*)$", base.__doc__ or "", re.M)
    code = "\n".join(line for line in lines if not line.startswith(("pyrovae.fit", "testing.check")))
    exec(compile("from dataclasses import dataclass\n" + code, "example", "exec"), vars(script))
    part = vars(script)[name](*args)
    assert isinstance(part, base)
    report = check(ELBO(annealing=part) if base is schedules.Schedule else part, show_progress=False)
    assert report, str(report)
    if isinstance(part, Objective):  # its example ends in pyrovae.fit
        vae = make_vae()
        x = vae.generate(20)
        options = {"epochs": 2, "batch_size": 10, "device": "cpu", "show_progress": False}
        assert pyrovae.fit(vae, x, objective=part, **options).best.objective


@pytest.mark.parametrize(
    ("part", "shift", "passed", "text"),
    [
        (priors.StandardNormal(2), -0.1, False, "^out of order: "),
        (priors.StandardNormal(2), 0.1, True, r"the last 0\.\d+ below log p\(x\) \S+: the guide of the check is loose"),
        (priors.StandardNormal(2), 0.4, False, r"the last 0\.\d+ below log p\(x\) \S+$"),
        (posteriors.DiagonalNormal(2), 0.1, False, r"the last 0\.\d+ below log p\(x\) \S+$"),  # its own guide
    ],
)
def test_bounds_far_from_the_truth(
    part: Prior | Posterior, shift: float, text: str, monkeypatch: pytest.MonkeyPatch, *, passed: bool
) -> None:
    monkeypatch.setattr(common_checks, "log_evidence", lambda vae, x: testing.log_evidence(vae, x) + shift)
    *others, item = check(part, show_progress=False).checks
    assert all(other.passed for other in others)
    assert (item.name, item.passed) == (BOUNDS, passed)
    assert re.search(text, item.detail), item.detail


@pytest.mark.usefixtures("_without_bounds")
@pytest.mark.parametrize("scale", [0.1, 1.65, 10.0])
def test_heavy_tails_are_normalized_and_a_wrong_constant_is_found(scale: float) -> None:
    for elements, right in ((dist.Cauchy, True), (OffsetCauchy, False)):
        prior = variant("HeavyTailed", Learned, elements=elements)(2)
        nn.init.constant_(prior.log_scale, math.log(scale))
        (total,) = [item for item in check(prior, show_progress=False).checks if item.name == TOTAL]
        assert total.passed == right, total.detail


def test_a_class_inside_a_function_cannot_be_rebuilt() -> None:
    class Inner(Location):
        pass

    (item,) = [item for item in check(Inner((2,)), show_progress=False).checks if item.passed is False]
    assert item.name == DESCRIBED
    assert "move it to a module" in item.detail


def test_the_printed_report(capsys: pytest.CaptureFixture[str]) -> None:
    report = check(likelihood("NoEvent", forward=lambda self, params: dist.Normal(params[..., 0], 1.0)))
    lines = capsys.readouterr().out.splitlines()
    assert lines == str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["pass", "FAIL", *["skip"] * 10, "NoEvent"]
    assert lines[2].endswith(f"needs: {SHAPES}")
    assert lines[-1] == "NoEvent fails 1 of 12 checks"
    assert str(ConformanceReport("X", (Check("a", passed=True, detail=""),))) == "pass  a\nX passes all checks"


@pytest.mark.parametrize("part", [priors.DiagonalNormal(2), likelihood("Fails", forward=raises)])
def test_a_check_changes_nothing(part: nn.Module) -> None:
    part.float().train()
    for parameter in part.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    torch.set_default_dtype(torch.float32)
    pyro.get_param_store()["theirs"] = torch.tensor(1.0)
    stream = torch.get_rng_state()
    with pyro.validation_enabled(False):  # noqa: FBT003 (Pyro's)
        check(part, show_progress=False)  # type: ignore[arg-type]
        assert torch.distributions.Distribution._validate_args is False
        assert pyro.infer.util.is_validation_enabled() is False
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), stream)
    assert list(pyro.get_param_store().keys()) == ["theirs"]
    assert part.training
    for name, value in part.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(parameter.grad is not None and (parameter.grad == 1).all() for parameter in part.parameters())


def test_the_same_seed_gives_the_same_numbers() -> None:
    first, again, other = (check(DeadParameter((2,)), seed=seed, show_progress=False) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("part", "error", "text"),
    [
        (likelihoods.Gaussian((3,)), ValueError, r"build Gaussian\(\(2,\), ...\)"),
        (likelihoods.Gaussian(()), ValueError, r"build Gaussian\(\(2,\), ...\)"),
        (posteriors.DiagonalNormal(3), ValueError, "build DiagonalNormal with 2"),
        (priors.StandardNormal(1), ValueError, "build StandardNormal with 2"),
        (nn.Linear(2, 2), TypeError, "`part` of check must be a Likelihood or .* got torch.nn.modules.linear.Linear"),
        (likelihoods.Gaussian, TypeError, "got the class Gaussian; give"),
    ],
)
def test_other_arguments_are_refused(part: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check(part)
