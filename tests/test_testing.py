"""The law checker: every class of the menus obeys all laws, and a part that breaks one is told which."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import register_kl

from pyrovae import likelihoods, networks, posteriors, priors, testing
from pyrovae.likelihoods import Likelihood
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.testing import Check, Laws, check, shared


def menu(room: ModuleType) -> list[str]:
    return [name for name in room.__all__ if not inspect.isabstract(getattr(room, name))]


def made(room: ModuleType, name: str) -> Any:
    part = getattr(room, name)
    if room is likelihoods:
        return part((2,), 5) if issubclass(part, likelihoods.LevelLikelihood) else part((2,))
    if part is priors.Vamp:
        posterior = posteriors.DiagonalNormal(2)
        encoder = networks.MLPEncoder((4,), posterior.param_shape, hidden=(16,))
        return part(encoder, posterior, num_components=3, data=torch.rand(3, 4))
    return part(2)


MENUS = [(room, name) for room in (likelihoods, priors, posteriors) for name in menu(room)]


@pytest.mark.parametrize(("room", "name"), MENUS, ids=[f"{room.__name__[8:]}.{name}" for room, name in MENUS])
def test_every_class_of_the_menus_obeys_all_laws(room: ModuleType, name: str) -> None:
    laws = check(made(room, name), show_progress=False)
    assert laws, str(laws)
    assert all(law.passed and law.detail for law in laws.laws)


def test_the_menus_are_all_there() -> None:
    assert [len(menu(room)) >= least for room, least in ((likelihoods, 11), (priors, 6), (posteriors, 4))] == [True] * 3


@pytest.mark.parametrize("x_shape", [(1,), (1, 1), (2, 1)])
def test_data_of_one_or_two_elements_in_any_shape(x_shape: tuple[int, ...]) -> None:
    assert check(likelihoods.Poisson(x_shape), show_progress=False)


# Elements that are broken in one way each.


class Offset(dist.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.1


class NarrowDraws(dist.Normal):
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + 0.5 * (super().rsample(torch.Size(sample_shape)) - self.loc)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()


class WrongMean(dist.Normal):
    @property
    def mean(self) -> Tensor:
        return self.loc + 1.0


class Detached(dist.Normal):
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)).detach()


class NoRsample(dist.Normal):
    has_rsample = False

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        raise NotImplementedError


class WrongKL(dist.Normal):
    pass


@register_kl(WrongKL, dist.Normal)
def _(q: WrongKL, p: dist.Normal) -> Tensor:
    return 0.5 * (q.loc - p.loc) ** 2 + q.scale - 1 - q.scale.log()


@register_kl(dist.Normal, WrongKL)
def _(q: dist.Normal, p: WrongKL) -> Tensor:
    return 0.5 * (q.loc - p.loc) ** 2 + q.scale - 1 - q.scale.log()


class OnePerBatch(dist.Independent):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value).sum()


class StaleCache(dist.Normal):
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        self.last = super().rsample(torch.Size(sample_shape))
        return self.last

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + (0.5 if value is getattr(self, "last", None) else 0.0)


# Likelihoods.


class Location(Likelihood):
    """Of a scale of 1, right in all respects; what is below changes one thing."""

    n_params = 1
    form = "continuous"
    base_measure = "Lebesgue"
    elements: Callable[..., TorchDistribution] = dist.Normal

    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return self.independent(type(self).elements(location, 1.0))

    def initial_params(self, mean: Tensor) -> Tensor:
        return mean.unsqueeze(-1)


class PyroWords(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return dist.Laplace(location, 1.0).to_event(len(self.x_shape))


class Unnormalized(Location):
    elements = Offset


class DrawsTooNarrow(Location):
    elements = NarrowDraws


class MeanOff(Location):
    elements = WrongMean


class NoMean(Location):
    elements = dist.Cauchy


class WrongMeasure(Location):
    base_measure = "counting"


class UnknownForm(Location):
    form = "reals"  # type: ignore[assignment]


class NothingStated(Likelihood):
    n_params = 1

    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(dist.Normal(params[..., 0], 1.0))

    def initial_params(self, mean: Tensor) -> Tensor:
        return mean.unsqueeze(-1)


class BatchLost(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return OnePerBatch(dist.Normal(location, 1.0), len(self.x_shape))


class EventTooLarge(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return dist.Normal(location, 1.0).to_event(max(len(self.x_shape), location.ndim))


class NoEvent(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Normal(params[..., 0], 1.0)


class MixesData(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        if location.ndim > len(self.x_shape):
            location = location - location.mean(0)
        return self.independent(dist.Normal(location, 1.0))


class Raises(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        raise RuntimeError("no\nsuch thing")


class DeadParameter(Location):
    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return self.independent(dist.Normal(location, self.log_scale.detach().exp()))


class FrozenParameter(DeadParameter):
    def __init__(self, x_shape: tuple[int, ...]) -> None:
        super().__init__(x_shape)
        self.log_scale.requires_grad = False


class UnusedNumber(Location):
    n_params = 2

    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(dist.Normal(self.split(params)[0], 1.0))

    def initial_params(self, mean: Tensor) -> Tensor:
        return torch.stack([mean, mean], -1)


class DetachedOutput(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(dist.Normal(params[..., 0].detach(), 1.0))


class InfiniteGradient(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return self.independent(dist.Normal(location + (location - location).abs().sqrt(), 1.0))


class ScoresNaN(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return dist.Normal(location, 1.0, validate_args=False).to_event(len(self.x_shape))


class ScoresGrey(likelihoods.Bernoulli):
    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Bernoulli(logits=params[..., 0], validate_args=False).to_event(len(self.x_shape))


class AnyLevel(dist.Categorical):
    """Scores the levels above its support as the highest."""

    def log_prob(self, value: Tensor) -> Tensor:
        if ((value < 0) | (value % 1 != 0)).any():
            raise ValueError("no whole numbers from 0 on")
        checked = dist.Categorical(logits=self.logits, validate_args=False)
        return checked.log_prob(value.clamp(max=self.logits.shape[-1] - 1))

    @property
    def mean(self) -> Tensor:
        return self.probs @ torch.arange(float(self.logits.shape[-1]))


class ScoresHighLevels(likelihoods.Categorical):
    def forward(self, params: Tensor) -> TorchDistribution:
        return AnyLevel(logits=params).to_event(len(self.x_shape))


class StartsElsewhere(Location):
    def initial_params(self, mean: Tensor) -> Tensor:
        return mean.unsqueeze(-1) + 1.0


class StartsInAnotherShape(Location):
    def initial_params(self, mean: Tensor) -> Tensor:
        return mean


class Undescribable(Location):
    def __init__(self, x_shape: tuple[int, ...], helper: object) -> None:
        super().__init__(x_shape)
        self.helper = helper


class ForgetsItsTensor(Location):
    def __init__(self, x_shape: tuple[int, ...], scale: Tensor | None = None) -> None:
        super().__init__(x_shape)
        self.scale = torch.ones(()) if scale is None else scale

    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(dist.Normal(params[..., 0], self.scale))


class NeedsItsTensor(Location):
    def __init__(self, x_shape: tuple[int, ...], scale: Tensor) -> None:
        super().__init__(x_shape)
        self.register_buffer("scale", scale)


class GradientTooSmall(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        (location,) = self.split(params)
        return self.independent(dist.Normal(0.3 * location + (0.7 * location).detach(), 1.0))


class DrawsOfOthers(dist.Normal):
    """Draws each row from the distribution of another."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn = super().sample(sample_shape)
        return drawn.flip(0) if drawn.ndim > 1 else drawn

    def expand(self, batch_shape: Any, _instance: Any = None) -> DrawsOfOthers:
        return super().expand(batch_shape, _instance=self._get_checked_instance(DrawsOfOthers, _instance))


class MixesDraws(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(DrawsOfOthers(self.split(params)[0], 1.0))


class MoreThanOneFarAway(DrawsOfOthers):
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return dist.Normal.sample(self, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.3 * (self.loc.abs() > 3)


class UnnormalizedFarAway(Location):
    def forward(self, params: Tensor) -> TorchDistribution:
        return self.independent(MoreThanOneFarAway(self.split(params)[0], 1.0))


class StartsMixedUp(Location):
    def initial_params(self, mean: Tensor) -> Tensor:
        return mean.flip(-1).unsqueeze(-1)


class BlindEncoder(Location):
    def encoder_input(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class EncoderSeesWholeNumbers(Location):
    def encoder_input(self, x: Tensor) -> Tensor:
        return x.long()


class EncoderSeesNumbers(Location):
    def encoder_input(self, x: Tensor) -> Tensor:
        return x.sum(-1)


FORM = "form and base measure are stated"
SHAPES = "shapes under any batch axes"
TOTAL = "the density is normalized"
DRAWS = "draws agree with the density"
MEAN = "the mean is that of the density"
MOMENTS = "mean and stddev are those of the density"
OWN = "its density at its own draws"
START = "it starts at a wanted mean"
GRADIENTS = "gradients reach every parameter"
SUPPORT = "data outside the support are refused"
KL = "its closed-form KL is right"
SEEN = "the encoder tells data apart"
DESCRIBED = "it is rebuilt from its description"
BOUNDS = "bounds against quadrature"

LIKELIHOODS: list[tuple[Callable[[], Likelihood], dict[str, str]]] = [
    (lambda: Unnormalized((2,)), {TOTAL: "integrates to 1.22"}),
    (lambda: DrawsTooNarrow((2,)), {DRAWS: "standard errors"}),
    (lambda: MeanOff((2,)), {MEAN: "off by 1", START: "% of the wanted one"}),
    (lambda: NoMean((2,)), {MEAN: "the mean is not finite", START: "off by nan"}),
    (lambda: WrongMeasure((2,)), {FORM: "'continuous' data have the Lebesgue measure, and it states 'counting'"}),
    (lambda: UnknownForm((2,)), {FORM: "form is one of binary, unit"}),
    (lambda: NothingStated((2,)), {FORM: "but it states None"}),
    (lambda: BatchLost((2,)), {SHAPES: "log_prob of four draws has shape () for batch axes (), not (4,)"}),
    (lambda: EventTooLarge((2,)), {SHAPES: "batch_shape has shape () for batch axes (3,)"}),
    (lambda: NoEvent((2,)), {SHAPES: "batch_shape has shape (2,) for batch axes ()"}),
    (lambda: MixesData((2,)), {SHAPES: "changes by"}),
    (lambda: Raises((2,)), {SHAPES: "RuntimeError: no such thing"}),
    (lambda: DeadParameter((2,)), {GRADIENTS: "no gradient for log_scale"}),
    (lambda: UnusedNumber((2,)), {GRADIENTS: "of the 2 numbers on the last axis, no gradient for 1"}),
    (lambda: DetachedOutput((2,)), {GRADIENTS: "no gradient for the network's output"}),
    (lambda: GradientTooSmall((2,)), {GRADIENTS: "the gradient for the network's output is wrong"}),
    (lambda: MixesDraws((2,)), {DRAWS: "standard errors"}),
    (lambda: UnnormalizedFarAway((2,)), {TOTAL: "integrates to 1.8"}),
    (lambda: StartsMixedUp((2,)), {START: "of the wanted one"}),
    (lambda: InfiniteGradient((2,)), {GRADIENTS: "not finite"}),
    (lambda: ScoresNaN((2,)), {SUPPORT: "the value nan is scored without a word"}),
    (lambda: ScoresGrey((2,)), {SUPPORT: "the value 0.5 is scored without a word"}),
    (lambda: ScoresHighLevels((2,), 5), {SUPPORT: "the value 5.0 is scored without a word"}),
    (lambda: StartsElsewhere((2,)), {START: "the mean is off by 3.3e+02 % of the wanted one"}),
    (lambda: StartsInAnotherShape((2,)), {SHAPES: "initial_params has shape (2,), not (2, 1)"}),
    (lambda: Undescribable((2,), object()), {DESCRIBED: "helper is a object, which a run folder cannot describe"}),
    (lambda: ForgetsItsTensor((2,), torch.tensor(3.0)), {DESCRIBED: "log_prob is off by"}),
    (lambda: NeedsItsTensor((2,), torch.tensor(3.0)), {DESCRIBED: "missing a required argument: 'scale'"}),
    (lambda: BlindEncoder((2,)), {SEEN: "50 different data are 1 different inputs"}),
    (lambda: EncoderSeesWholeNumbers((2,)), {SEEN: "not made of finite floating points"}),
    (lambda: EncoderSeesNumbers((2,)), {SEEN: "encoder_input gives (50,) for data (50, 2)"}),
]


# Posteriors.


class TwoNumbers(Posterior):
    """Mean and log-scale, right in all respects; what is below changes one thing."""

    n_params = 2
    elements: Callable[..., TorchDistribution] = dist.Normal

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_scale = self.split(params)
        return type(self).elements(mean, log_scale.exp()).to_event(1)


class UnnormalizedPosterior(TwoNumbers):
    elements = Offset


class PosteriorDrawsTooNarrow(TwoNumbers):
    elements = NarrowDraws


class PosteriorMeanOff(TwoNumbers):
    elements = WrongMean


class DetachedDraws(TwoNumbers):
    elements = Detached


class NoGradientInDraws(TwoNumbers):
    elements = NoRsample


class PosteriorWrongKL(TwoNumbers):
    elements = WrongKL


class OwnDrawsOff(Posterior):
    n_params = 2

    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_scale = self.split(params)
        return StaleIndependent(StaleCache(mean, log_scale.exp()), 1)


class StaleIndependent(dist.Independent):
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(torch.Size(sample_shape)).clone()


class MeanDetached(TwoNumbers):
    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_scale = self.split(params)
        return dist.Normal(mean.detach(), log_scale.exp()).to_event(1)


class UnusedWeight(TwoNumbers):
    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.weight = nn.Parameter(torch.ones(3))


class PosteriorBatchLost(TwoNumbers):
    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_scale = self.split(params)
        return OnePerBatch(dist.Normal(mean, log_scale.exp()), 1)


class PosteriorMixesData(TwoNumbers):
    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_scale = self.split(params)
        return dist.Normal(mean - mean.mean(0) * (mean.ndim > 1), log_scale.exp()).to_event(1)


class PosteriorUndescribable(TwoNumbers):
    def __init__(self, latent_dim: int, helper: object) -> None:
        super().__init__(latent_dim)


class ShortPath(dist.Normal):
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn = super().rsample(sample_shape)
        return drawn.detach() + 0.2 * (drawn - drawn.detach())

    def expand(self, batch_shape: Any, _instance: Any = None) -> ShortPath:
        return super().expand(batch_shape, _instance=self._get_checked_instance(ShortPath, _instance))


class PathTooShort(TwoNumbers):
    def forward(self, params: Tensor) -> TorchDistribution:
        mean, log_scale = self.split(params)
        return ShortPath(mean, log_scale.exp()).to_event(1)


class TooNarrow(TwoNumbers):
    n_params = 1

    def forward(self, params: Tensor) -> TorchDistribution:
        return dist.Normal(params[..., 0], 0.1).to_event(1)


POSTERIORS: list[tuple[Callable[[], Posterior], dict[str, str]]] = [
    (lambda: UnnormalizedPosterior(2), {TOTAL: "integrates to 1.22"}),
    (lambda: PosteriorDrawsTooNarrow(2), {DRAWS: "standard errors"}),
    (lambda: PosteriorMeanOff(2), {MOMENTS: "mean off by"}),
    (lambda: OwnDrawsOff(2), {OWN: "differs by 1 nats"}),
    (lambda: DetachedDraws(2), {GRADIENTS: "rsample gives draws without gradient"}),
    (lambda: NoGradientInDraws(2), {GRADIENTS: "has no gradient: choose one with has_rsample"}),
    (lambda: MeanDetached(2), {GRADIENTS: "no gradient for 0"}),
    (lambda: PathTooShort(2), {GRADIENTS: "the gradient for the network's output is wrong"}),
    (lambda: UnusedWeight(2), {GRADIENTS: "no gradient for weight"}),
    (lambda: PosteriorWrongKL(2), {KL: "by quadrature"}),
    (lambda: PosteriorBatchLost(2), {SHAPES: "has shape () for batch axes ()"}),
    (lambda: PosteriorMixesData(2), {SHAPES: "changes by"}),
    (lambda: PosteriorUndescribable(2, object()), {DESCRIBED: "a run folder cannot describe"}),
    (lambda: TooNarrow(2), {BOUNDS: "below the truth"}),
]


# Priors.


class Learned(Prior):
    """Location and log-scale, right in all respects; what is below changes one thing."""

    elements: Callable[..., TorchDistribution] = dist.Normal

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(0.5 * torch.ones(latent_dim))
        self.log_scale = nn.Parameter(0.5 * torch.ones(latent_dim))

    def forward(self) -> TorchDistribution:
        return type(self).elements(self.loc, self.log_scale.exp()).to_event(1)


class UnnormalizedPrior(Learned):
    elements = Offset


class PriorDrawsTooNarrow(Learned):
    elements = NarrowDraws


class PriorWrongKL(Learned):
    elements = WrongKL


class PriorDetached(Learned):
    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, self.log_scale.exp().detach()).to_event(1)


class PriorAllDetached(Learned):
    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc.detach(), self.log_scale.exp().detach()).to_event(1)


class PriorWithoutEvent(Learned):
    def forward(self) -> TorchDistribution:
        return dist.Normal(self.loc, self.log_scale.exp())


class PriorBatchLost(Learned):
    def forward(self) -> TorchDistribution:
        return OnePerBatch(dist.Normal(self.loc, self.log_scale.exp()), 1)


class KinkedPrior(Prior):
    """The prior of the README."""

    def forward(self) -> TorchDistribution:
        return dist.Laplace(torch.zeros(self.latent_dim), 1.0).to_event(1)


class KinkedPosterior(TwoNumbers):
    elements = dist.Laplace


class PriorWrongSign(Learned):
    def forward(self) -> TorchDistribution:
        return dist.Normal(2 * self.loc.detach() - self.loc, self.log_scale.exp()).to_event(1)


class OneForAll(dist.Normal):
    """Draws once for a whole batch."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        drawn = super().sample(sample_shape)
        return drawn[:1].expand_as(drawn) if drawn.ndim > 2 else drawn

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneForAll:
        return super().expand(batch_shape, _instance=self._get_checked_instance(OneForAll, _instance))


class PriorDrawsOnce(Learned):
    def forward(self) -> TorchDistribution:
        return OneForAll(self.loc, self.log_scale.exp()).to_event(1)


class PriorUndescribable(Learned):
    def __init__(self, latent_dim: int, helper: object) -> None:
        super().__init__(latent_dim)


PRIORS: list[tuple[Callable[[], Prior], dict[str, str]]] = [
    (lambda: UnnormalizedPrior(2), {TOTAL: "integrates to 1.22"}),
    (lambda: PriorDrawsTooNarrow(2), {DRAWS: "standard errors"}),
    (lambda: PriorWrongKL(2), {KL: "by quadrature"}),
    (lambda: PriorWrongSign(2), {GRADIENTS: "the gradient for loc is wrong"}),
    (lambda: PriorDrawsOnce(2), {DRAWS: "the draws of two data of a batch depend on each other"}),
    (lambda: PriorDetached(2), {GRADIENTS: "no gradient for log_scale"}),
    (lambda: PriorAllDetached(2), {GRADIENTS: "no gradient for loc, log_scale"}),
    (lambda: PriorWithoutEvent(2), {SHAPES: "batch_shape is (2,), not ()"}),
    (lambda: PriorBatchLost(2), {SHAPES: "log_prob has shape () for batch axes (3,)"}),
    (lambda: PriorUndescribable(2, object()), {DESCRIBED: "a run folder cannot describe"}),
]

BROKEN = [*LIKELIHOODS, *POSTERIORS, *PRIORS]


@pytest.mark.parametrize(("part", "said"), BROKEN, ids=[type(part()).__name__ for part, _ in BROKEN])
def test_a_broken_part_breaks_the_right_law(part: Callable[[], Any], said: dict[str, str]) -> None:
    laws = check(part(), show_progress=False)
    assert not laws
    assert {law.name for law in laws.laws if law.passed is False} == set(said), str(laws)
    for law in laws.laws:
        if law.name in said:
            assert said[law.name] in law.detail, law.detail
            assert "\n" not in law.detail
    assert f"breaks {len(said)} of {len(laws.laws)} laws" in str(laws)


USERS = [
    Location((2,)),
    PyroWords((2,)),
    FrozenParameter((2,)),
    TwoNumbers(2),
    KinkedPosterior(2),
    Learned(2),
    KinkedPrior(2),
]


@pytest.mark.parametrize("part", USERS, ids=[type(part).__name__ for part in USERS])
def test_parts_of_a_user_obey_all_laws(part: Likelihood | Posterior | Prior) -> None:
    laws = check(part, show_progress=False)
    assert laws, str(laws)


def test_every_law_can_be_broken() -> None:
    broken = {name for _, said in BROKEN for name in said}
    for part in (Location((2,)), TwoNumbers(2), Learned(2)):
        known = {law.name for law in check(part, show_progress=False).laws}
        assert known - broken == set()


def test_bounds_above_the_truth_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "log_evidence", lambda vae, x: testing.log_evidence(vae, x) - 0.1)
    laws = check(priors.StandardNormal(2), show_progress=False)
    assert [(law.name, law.detail[:12]) for law in laws.laws if not law.passed] == [(BOUNDS, "out of order")]


def test_a_class_inside_a_function_is_told_why_it_cannot_be_rebuilt() -> None:
    class Inner(Location):
        pass

    (law,) = [law for law in check(Inner((2,)), show_progress=False).laws if law.passed is False]
    assert law.name == DESCRIBED
    assert "move it to a module" in law.detail


def test_laws_that_build_on_a_broken_one_are_left_out() -> None:
    laws = check(NoEvent((2,)), show_progress=False).laws
    assert [law.passed for law in laws] == [True, False] + [None] * 9
    assert {law.detail for law in laws[2:]} == {f"builds on: {SHAPES}"}


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    laws = check(Unnormalized((2,)))
    lines = capsys.readouterr().out.splitlines()
    assert lines == str(laws).splitlines()
    assert [line.split()[0] for line in lines] == [*["pass"] * 2, "FAIL", *["pass"] * 7, "skip", "Unnormalized"]
    assert lines[-1] == "Unnormalized breaks 1 of 11 laws"
    assert max(map(len, lines)) <= 120
    check(Unnormalized((2,)), show_progress=False)
    assert capsys.readouterr().out == ""
    assert str(Laws("X", (Check("a", passed=True, detail=""),))) == "pass  a\nX obeys all laws"


@pytest.mark.parametrize("part", [DeadParameter((2,)), posteriors.IAF(2), priors.DiagonalNormal(2), Raises((2,))])
def test_a_check_leaves_everything_as_it_was(part: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    part.float().train()
    for parameter in part.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    torch.set_default_dtype(torch.float32)
    pyro.get_param_store()["theirs"] = torch.tensor(1.0)
    stream = torch.get_rng_state()
    for enabled in (True, False):
        with pyro.validation_enabled(enabled):
            check(part, show_progress=False)  # type: ignore[arg-type]
            assert torch.distributions.Distribution._validate_args is enabled
            assert pyro.infer.util.is_validation_enabled() is enabled
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), stream)
    assert list(pyro.get_param_store().keys()) == ["theirs"]
    assert part.training
    for name, value in part.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(parameter.grad is not None and (parameter.grad == 1).all() for parameter in part.parameters())
    assert {record.getMessage().split()[0] for record in caplog.records} <= {"training"}  # so many parameters


def test_the_same_seed_gives_the_same_findings() -> None:
    first, again, other = (check(Unnormalized((2,)), seed=seed, show_progress=False) for seed in (0, 0, 1))
    assert first == again
    assert first != other


class Conditional(Learned):
    conditional = True


@pytest.mark.parametrize(
    ("part", "error", "text"),
    [
        (likelihoods.Gaussian((3,)), ValueError, r"build Gaussian\(\(2,\), ...\)"),
        (likelihoods.Gaussian(()), ValueError, r"build Gaussian\(\(2,\), ...\)"),
        (posteriors.DiagonalNormal(3), ValueError, "build DiagonalNormal with 2"),
        (priors.StandardNormal(1), ValueError, "build StandardNormal with 2"),
        (Conditional(2), ValueError, "no covariates, which Conditional takes"),
        (nn.Linear(2, 2), TypeError, "a likelihood, a prior or a posterior, but received a Linear"),
        (likelihoods.Gaussian, TypeError, "the class Gaussian; make one"),
    ],
)
def test_refusals(part: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check(part)
