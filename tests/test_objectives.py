"""Objectives against Pyro's, where Pyro's are right, and against their definitions where they are not."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import (
    ModelGuide,
    TwoLayers,
    guide_from,
    likelihood_of,
    linear_gaussian,
    pair_from,
    pair_of,
    posterior_of,
    program,
    standard_normal,
)
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyrovae import bounds
from pyrovae.objectives import ELBO, IWAE, STL, DReG, ImportanceWeighted, Objective, schedules

TRUTH = linear_gaussian()
X = TRUTH.sample(12)
BITS = torch.randint(2, (6, 4), generator=torch.Generator().manual_seed(0)).double()
STUDENT = dist.StudentT(5.0, torch.zeros(3).double(), 1.0).to_event(1)
VECTORIZED = {"vectorize_particles": True, "max_plate_nesting": 1}
KINDS = ["plain", "subsampled", "masked", "scaled", "scaled by a tensor"]
FACTORS = {"subsampled": 1000 / 12, "scaled": 0.3, "scaled by a tensor": 0.3}
EVERY: dict[str, Callable[[], Objective]] = {
    "ELBO": ELBO,
    "annealed, with free bits": lambda: ELBO(free_bits=0.1, annealing=schedules.Linear(100)),
    "IWAE": lambda: IWAE(num_particles=3),
    "STL": lambda: STL(num_particles=3),
    "DReG": lambda: DReG(num_particles=3),
}
WEIGHTED = (IWAE, STL, DReG)


class Both(nn.Module):
    """A trainable pair whose plate, scales, masks, prior or posterior are chosen by name."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind, self.mask = kind, X[:, 0] > 0
        self.encoder, self.decoder = nn.Linear(5, 6), nn.Linear(3, 5)

    @contextlib.contextmanager
    def plate(self, x: Tensor) -> Iterator[None]:
        size, rows = (1000, torch.arange(len(x))) if self.kind == "subsampled" else (len(x), None)
        contexts: dict[str, Any] = {
            "masked": poutine.mask(mask=x[:, 0] > 0),
            "masked by one tensor": poutine.mask(mask=self.mask),
            "scaled": poutine.scale(scale=0.3),
            "scaled by a tensor": poutine.scale(scale=torch.tensor(0.3)),
        }
        with pyro.plate("data", size, subsample=rows), contexts.get(self.kind, contextlib.nullcontext()):
            yield

    def model(self, x: Tensor) -> None:
        pyro.module("both", self)
        prior = STUDENT if self.kind == "student" else standard_normal(3)
        with self.plate(x):
            z = pyro.sample("z", prior)
            pyro.deterministic("mean", self.decoder(z), event_dim=1)
            pyro.sample("x", dist.Normal(self.decoder(z), 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("both", self)
        mean, log_scale = self.encoder(x).chunk(2, -1)
        posterior = dist.Normal(mean, log_scale.exp()).to_event(1)
        if self.kind == "joint":
            factor = log_scale.exp().diag_embed() + torch.full((3, 3), 0.1).tril(-1)
            posterior = dist.MultivariateNormal(mean, scale_tril=factor)
        with self.plate(x):
            pyro.sample("z", posterior)


def loss_and_gradients(objective: Any, pair: nn.Module, x: Tensor, *, checked: bool) -> tuple[float, list[Tensor]]:
    pyro.clear_param_store()
    pair.zero_grad()
    torch.manual_seed(7)
    with pyro.validation_enabled(checked):
        loss = objective.differentiable_loss(pair.model, pair.guide, x)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in pair.parameters() if p.grad is not None]


def latent_weighted(a: Any, b: Any) -> ModelGuide:
    """Return a pair whose log q(z) is inside the context a, or multiplied by the factor a, and log p(z) likewise b."""
    of_guide, of_prior = (
        value if isinstance(value, poutine.messenger.Messenger) else poutine.scale(scale=value) for value in (a, b)
    )

    def model(x: Tensor) -> None:
        with of_prior:
            z = pyro.sample("z", standard_normal(3))
        pyro.sample("x", likelihood_of(TRUTH)(z), obs=x)

    def guide(x: Tensor) -> None:
        with of_guide:
            pyro.sample("z", posterior_of(TRUTH)(x))

    return program(model), program(guide)


def log_weights_by_hand(pair: nn.Module, x: Tensor, num_particles: int) -> Tensor:
    """Return log p(x, z) - log q(z | x) of draws from the seed of `loss_and_gradients`, ``(K, B)``."""
    torch.manual_seed(7)
    with pyro.plate("K", num_particles, dim=-2):
        guide_trace = poutine.trace(pair.guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x)
    total = torch.zeros(num_particles, len(x))
    for trace, sign in ((guide_trace, -1.0), (model_trace, 1.0)):
        for site in trace.nodes.values():
            if site["type"] == "sample" and type(site["fn"]).__name__ in ("Independent", "Normal"):
                log_prob = site["fn"].log_prob(site["value"])
                total = total + sign * (log_prob if site["mask"] is None else log_prob * site["mask"])
    return total.detach()


# the ELBO


@pytest.mark.parametrize("options", [{"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_pyros(kind: str, options: dict[str, Any]) -> None:
    pair = Both(kind)
    expected, gradients = loss_and_gradients(TraceMeanField_ELBO(**options, max_plate_nesting=1), pair, X, checked=True)
    for checked in (True, False):
        loss, own = loss_and_gradients(ELBO(**options), pair, X, checked=checked)
        assert loss == pytest.approx(expected, rel=1e-12)
        assert len(own) == len(gradients) == 4
        assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(own, gradients, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_reported_terms_have_no_scales(kind: str) -> None:
    def terms(kind: str) -> Any:
        pair = Both(kind)
        pyro.clear_param_store()
        torch.manual_seed(7)
        return ELBO().terms(pair.model, pair.guide, X)

    expected, scaled = terms("masked" if kind == "masked" else "plain"), terms(kind)
    assert scaled.reconstruction.item() == pytest.approx(expected.reconstruction.item(), rel=1e-12)
    assert scaled.kl.item() == pytest.approx(expected.kl.item(), rel=1e-12)
    assert scaled.loss.item() == pytest.approx(FACTORS.get(kind, 1.0) * expected.loss.item(), rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.2), (torch.tensor(0.5), torch.tensor(0.5))])
def test_scales_of_one_latent_follow_the_definition(a: Any, b: Any) -> None:
    objective = ELBO(num_particles=100, **VECTORIZED)
    losses = torch.tensor([objective.loss(*latent_weighted(a, b), X).item() for _ in range(20)])
    q = TRUTH.posterior(X)
    entropy = dist.Normal(q.mean, q.variance.sqrt()).entropy().sum()
    mean_log_prior = (-0.5 * (q.mean**2 + q.variance) - 0.5 * math.log(2 * math.pi)).sum()
    residual = X - q.mean @ TRUTH.weight.T - TRUTH.bias
    spread = q.variance.expand_as(q.mean) @ (TRUTH.weight**2).T
    mean_log_likelihood = (
        -0.5 * (residual**2 + spread) / TRUTH.scale**2 - math.log(TRUTH.scale) - 0.5 * math.log(2 * math.pi)
    ).sum()
    expected = -(mean_log_likelihood + b * mean_log_prior + a * entropy)
    assert abs(losses.mean() - expected) < 4 * losses.std() / math.sqrt(len(losses))


def test_masks_of_model_and_guide_may_differ() -> None:
    of_model, of_guide = X[:, 0] > 0, X[:, 1] > 0
    model, guide = latent_weighted(poutine.mask(mask=of_guide), poutine.mask(mask=of_model))
    terms = ELBO(num_particles=4000, **VECTORIZED).terms(model, guide, X)
    q = posterior_of(TRUTH)(X)
    kl = torch.distributions.kl_divergence(q, standard_normal(3))
    expected = (of_model * (kl + q.entropy()) - of_guide * q.entropy()).sum()
    assert abs(terms.kl - expected) < 5 * math.sqrt(12 * 3 / 4000)


@pytest.mark.parametrize(
    ("make", "x", "site", "reason"),
    [
        (lambda: TwoLayers(bottom_up=True), BITS, "z1", "'z2' comes before 'z1' in the model but not in the guide"),
        (lambda: Both("student"), X, "z", "no closed form is known for KL(Normal || StudentT)"),
    ],
)
def test_estimated_kl_is_reported_once_and_right_in_expectation(
    make: Callable[[], Any], x: Tensor, site: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    pair = make()
    objective, pyros = (kind(num_particles=500, **VECTORIZED) for kind in (ELBO, Trace_ELBO))
    with caplog.at_level(logging.WARNING, logger="pyrovae"), torch.no_grad():
        own, expected = (
            torch.tensor([float(loss.loss(pair.model, pair.guide, x)) for _ in range(10)])
            for loss in (objective, pyros)
        )
    assert caplog.messages == [f"the KL of {site!r} is estimated by Monte Carlo: {reason}"]
    assert objective.kl_methods[site] == reason
    assert abs(own.mean() - expected.mean()) < 4 * math.hypot(own.std(), expected.std()) / math.sqrt(10)


def test_an_auxiliary_draw_of_the_guide_counts() -> None:
    def guide(x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(torch.tensor(0.0), 2.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(torch.zeros(3) + u.unsqueeze(-1), 1.0).to_event(1))

    losses = []
    for objective in (TraceMeanField_ELBO(), ELBO()):
        torch.manual_seed(7)
        losses.append(objective.differentiable_loss(pair_of(TRUTH)[0], program(guide), X).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# every objective


@pytest.mark.parametrize("name", ["annealed, with free bits", "DReG"])
def test_a_step_frees_its_tensors_without_garbage_collection(name: str) -> None:
    pair, objective, counts = TwoLayers(bottom_up=True), EVERY[name](), []
    gc.disable()
    try:
        for _ in range(6):
            objective.loss_and_grads(pair.model, pair.guide, BITS)
            counts.append(sum(type(thing) is Tensor for thing in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[-1] == counts[1]


@pytest.mark.parametrize("name", EVERY)
def test_steps_of_svi_lower_the_loss_and_a_loss_alone_moves_nothing(name: str) -> None:
    pair, objective = Both(), EVERY[name]()
    assert not objective.loss(pair.model, pair.guide, X).requires_grad
    assert all(parameter.grad is None for parameter in pair.parameters())
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), loss=objective)
    losses = [svi.step(X) / 12 for _ in range(30)]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 1.0
    before = [parameter.detach().clone() for parameter in pair.parameters()]
    assert svi.evaluate_loss(X) / 12 == pytest.approx(sum(losses[-10:]) / 10, abs=1.5)
    assert objective.step == 30
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


class Fixed(dist.Normal):
    has_rsample = False


@pytest.mark.parametrize("name", ["ELBO", "DReG"])
def test_a_draw_without_gradient_is_refused(name: str) -> None:
    guide = guide_from(lambda x: Fixed(torch.zeros(3), 1.0).to_event(1))
    with pytest.raises(ValueError, match="draw of 'z' must have a gradient.*cannot be reparametrized.*TraceGraph_ELBO"):
        EVERY[name]().differentiable_loss(pair_of(TRUTH)[0], guide, X)


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (ELBO, {"beta": -0.1}, "`beta`.* must be .*, got"),
        (ELBO, {"free_bits": -0.1}, "`free_bits` of ELBO must be a finite number >= 0, got"),
        (DReG, {"num_particles": 0}, "num_particles"),
        (schedules.Linear, {"num_steps": 0}, "`num_steps` of .* must be an integer >= 1"),
        (schedules.Linear, {"start": math.nan}, "must be .*, got"),
        (schedules.Cyclical, {"rise": 0.0}, r"`rise` of Cyclical must be a number in \(0, 1\]"),
        (schedules.Cyclical, {"rise": 1.5}, r"`rise` of Cyclical must be a number in \(0, 1\]"),
    ],
)
def test_options_are_checked(make: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**options)


# importance-weighted objectives


@pytest.mark.parametrize("make", WEIGHTED)
@pytest.mark.parametrize("kind", ["plain", "subsampled", "masked", "scaled"])
def test_weighted_losses_are_bounds_of_each_datum_with_factors_outside(kind: str, make: Any) -> None:
    pair = Both(kind)
    log_weights = log_weights_by_hand(pair, X, 5)
    expected = -FACTORS.get(kind, 1.0) * bounds.iwae(log_weights).sum().item()
    for checked in (True, False):
        loss, _ = loss_and_gradients(make(num_particles=5), pair, X, checked=checked)
        assert loss == pytest.approx(expected, rel=1e-12)
    torch.manual_seed(7)
    terms = make(num_particles=5).terms(pair.model, pair.guide, X)
    assert (terms.reconstruction - terms.kl).item() == pytest.approx(log_weights.mean(0).sum().item(), rel=1e-9)


class Renyi(ImportanceWeighted):
    alpha = 0.5

    def bound(self, log_weights: Tensor) -> Tensor:
        return bounds.log_mean_exp((1 - self.alpha) * log_weights) / (1 - self.alpha)


def test_a_bound_of_a_users_own_equals_pyros() -> None:
    pair = Both()
    pyros = RenyiELBO(alpha=0.5, num_particles=5, **VECTORIZED)
    torch.manual_seed(7)
    expected = pyros.loss(pair.model, pair.guide, X)
    assert loss_and_gradients(Renyi(), pair, X, checked=True)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.2), (torch.tensor(0.5), torch.tensor(0.5))])
def test_scales_inside_the_logarithm_are_refused(a: Any, b: Any) -> None:
    with pytest.raises(ValueError, match=r"one scale for all sites.*pyro.poutine.scale.*or weigh the KL with ELBO"):
        DReG(num_particles=2).loss(*latent_weighted(a, b), X)


def test_the_contract_is_checked() -> None:
    coins = dist.Bernoulli(torch.full((3,), 0.5)).to_event(1)
    with pytest.raises(ValueError, match="latent variable 'z' is discrete"):
        IWAE().loss(*pair_from(coins, likelihood_of(TRUTH), lambda x: coins), X)


def test_the_encoder_sees_each_datum_once_whatever_the_number_of_particles() -> None:
    pair, objective = Both(), DReG(num_particles=7)
    objective.loss_and_grads(pair.model, pair.guide, X)
    rows = []
    pair.encoder.register_forward_hook(lambda module, args, out: rows.append(out.numel() // 6))
    objective.loss_and_grads(pair.model, pair.guide, X)
    assert rows == [12]


# free bits


def loss_parts(pair: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return minus the reconstruction, from the seed of `loss_and_gradients`, and KL_bj, ``(B, 3)``."""
    pyro.clear_param_store()
    torch.manual_seed(7)
    reconstruction = ELBO(beta=0.0).differentiable_loss(pair.model, pair.guide, x)
    mean, log_scale = pair.encoder(x).chunk(2, -1)
    return reconstruction, 0.5 * (mean**2 + (2 * log_scale).exp() - 1) - log_scale


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["plain", "subsampled", "masked by one tensor"])
def test_free_bits_are_those_of_each_dimension_averaged_over_the_minibatch(kind: str, share: float) -> None:
    pair = Both(kind)
    kept = slice(None) if kind != "masked by one tensor" else X[:, 0] > 0
    means = loss_parts(pair, X)[1][kept].mean(0).sort().values
    free_bits = (1e-6 + share * means[:2].mean()).item()  # at 1, one dimension lies below the floor and two above
    objective = ELBO(free_bits=free_bits, beta=2.0)
    found, gradients = loss_and_gradients(objective, pair, X, checked=False)
    reconstruction, kl = loss_parts(pair, X)
    factor = {"subsampled": 1000 / 12, "scaled": 0.3}.get(kind, 1.0)
    kl = kl[kept]
    expected = reconstruction + 2.0 * factor * len(kl) * kl.mean(0).clamp(min=free_bits).sum()
    assert found == pytest.approx(expected.item(), rel=1e-12)
    pair.zero_grad()
    expected.backward()
    assert all(torch.allclose(p.grad, g, atol=1e-10) for p, g in zip(pair.parameters(), gradients, strict=True))
    terms = objective.terms(pair.model, pair.guide, X)
    assert terms.kl.item() == pytest.approx(kl.sum().item(), rel=1e-9)  # reported without free bits and beta


def test_a_joint_kl_has_the_free_bits_of_its_dimensions_together() -> None:
    pair = Both("joint")
    without, _ = loss_and_gradients(ELBO(beta=0.0), pair, X, checked=True)
    whole, _ = loss_and_gradients(ELBO(), pair, X, checked=True)
    joint = (whole - without) / 12
    for free_bits, expected in ((joint / 3 - 1e-3, joint), (joint / 3 + 1e-3, joint + 3e-3)):
        found, _ = loss_and_gradients(ELBO(free_bits=free_bits), pair, X, checked=True)
        assert found == pytest.approx(without + 12 * expected, rel=1e-9)


def test_free_bits_of_sampled_terms_are_those_of_each_dimension() -> None:
    pair = Both("student")
    torch.manual_seed(7)
    mean, log_scale = pair.encoder(X).chunk(2, -1)
    q = dist.Normal(mean, log_scale.exp())
    z = q.rsample()
    terms = (q.log_prob(z) - STUDENT.base_dist.log_prob(z)).mean(0)
    without, _ = loss_and_gradients(ELBO(beta=0.0), pair, X, checked=True)
    found, _ = loss_and_gradients(ELBO(free_bits=terms.median().item()), pair, X, checked=True)
    assert found == pytest.approx(without + 12 * terms.clamp(min=terms.median()).sum().item(), rel=1e-10)


@pytest.mark.parametrize("programs", [(1.0, 0.2), (torch.ones(12), 1.0), None])
def test_free_bits_need_one_scale_and_one_mask(programs: Any) -> None:
    masked = Both("masked")
    model, guide = (masked.model, masked.guide) if programs is None else latent_weighted(*programs)
    with pytest.raises(ValueError, match="free bits need one scale and mask for 'z'.*do not share.*or set free_bits=0"):
        ELBO(free_bits=0.1).differentiable_loss(model, guide, X)


# annealing


def test_schedules_by_hand() -> None:
    linear = schedules.Linear(4, start=0.2)
    assert [linear(step) for step in (0, 1, 2, 4, 5, 1000)] == pytest.approx([0.2, 0.4, 0.6, 1.0, 1.0, 1.0])
    cyclical = schedules.Cyclical(8, rise=0.5)
    assert [cyclical(step) for step in range(10)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 0, 0.25])
    assert schedules.Cyclical(4, rise=1.0, start=0.5)(2) == pytest.approx(0.75)
    assert schedules.Constant()(10**9) == 1.0
    assert linear.describe() == {"class": "Linear", "num_steps": 4, "start": 0.2}


def test_gradient_steps_are_counted_and_nothing_else_is() -> None:
    pair, objective = Both(), ELBO(annealing=schedules.Linear(4), beta=3.0)
    svi = SVI(pair.model, pair.guide, pyro.optim.SGD({"lr": 0.0}), loss=objective)
    found = []
    for step in range(6):
        assert objective.step == step
        torch.manual_seed(7)
        found.append(svi.step(X))
        svi.evaluate_loss(X)
        objective.differentiable_loss(pair.model, pair.guide, X)
        objective.loss(pair.model, pair.guide, X)
    reconstruction, kl = loss_parts(pair, X)
    factors = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    expected = [(reconstruction + 3.0 * factor * kl.sum()).item() for factor in factors]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_schedule_whose_options_are_unknown_is_not_described() -> None:
    class Other(schedules.Linear):
        power = 0.5

    with pytest.raises(TypeError, match=r"derive it as a @dataclass\(frozen=True\)"):
        ELBO(annealing=Other(30)).describe()
