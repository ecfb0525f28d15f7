"""Distributions against closed forms in float64 and against torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae import distributions
from pyrovae.distributions import BinaryBernoulli, ContinuousBernoulli, Event, NegativeBinomial, Poisson
from pyrovae.distributions.continuous_bernoulli import _quantile
from pyrovae.distributions.series import digamma_lack, log_and_excess
from pyrovae.runtime.context import validation

LOGITS = torch.tensor([-800.0, -40.0, -16.0, -3.0, -1e-9, 0.0, 1e-9, 0.5, 16.0, 40.0, 800.0], dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-7), (torch.float64, 4e-15)])
def test_binary_bernoulli_against_its_formula(dtype: torch.dtype, error: float) -> None:
    logits = torch.cat([LOGITS, torch.linspace(-30, 30, 4001)]).to(dtype).requires_grad_()
    x = torch.tensor([[0.0], [1.0]], dtype=dtype)
    signed = torch.stack([logits, -logits]).double()  # log p(x) = -softplus(l) for x = 0, -softplus(-l) for x = 1
    exact = -torch.tensor([[max(s, 0.0) + math.log1p(math.exp(-abs(s))) for s in row] for row in signed.tolist()])
    for value in (x, x.bool()):
        log_p = BinaryBernoulli(logits=logits).log_prob(value)
        assert ((log_p.double() - exact).abs() <= error + 2 * torch.finfo(dtype).eps * exact.abs()).all()
        (gradient,) = torch.autograd.grad(log_p[1].sum(), logits)
        assert torch.allclose(gradient, 1 - logits.sigmoid(), rtol=0, atol=error)


def test_a_subclass_with_its_own_log_probability_is_summed_by_it() -> None:
    class Weighted(BinaryBernoulli):
        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return 0.5 * super().log_prob(value)

    logits, x = torch.randn(4, 7), (torch.rand(4, 7) < 0.5).double()
    weighted = Weighted(logits=logits, validate_args=False).log_prob_sum(x, 1)
    assert torch.allclose(weighted, 0.5 * BinaryBernoulli(logits=logits).log_prob(x).sum(-1))


def test_an_event_is_expanded_only_where_it_grows() -> None:
    q_z = Event(dist.Normal(torch.randn(4, 2), torch.ones(4, 2)), 1)
    assert q_z.expand([4]) is q_z
    expanded = q_z.expand(torch.Size([3, 4]))
    assert type(expanded) is Event
    assert (expanded.batch_shape, expanded.event_shape) == ((3, 4), (2,))
    assert torch.equal(expanded.base_dist.loc[1], q_z.base_dist.loc)


def examples() -> dict[str, tuple[Callable[[Tensor, Tensor], dist.TorchDistribution], Tensor]]:
    """Return each distribution as a function of two parameters ``(4, 2)``, and a value for it."""
    x, count = torch.rand(4, 2), torch.tensor([[0.0, 1.0], [3.0, 17.0], [40.0, 2.0], [0.0, 900.0]])
    level = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 4.0], [0.0, 2.0]])

    def categorical(a: Tensor, b: Tensor) -> dist.TorchDistribution:
        angles = torch.arange(5.0)
        return distributions.LevelCategorical(a.unsqueeze(-1) * angles.cos() + b.unsqueeze(-1) * angles.sin())

    return {
        "bernoulli": (lambda a, b: BinaryBernoulli(logits=a + b), x.round()),
        "continuous bernoulli": (lambda a, b: ContinuousBernoulli(a + b), x),
        "discretized logistic": (lambda a, b: distributions.DiscretizedLogistic(a, b, 5), level),
        "poisson": (lambda a, b: Poisson(a + b), count),
        "negative binomial": (NegativeBinomial, count),
        "normal": (distributions.LogScaleNormal, x),
        "student": (lambda a, b: distributions.StudentT(3.0, a, b.exp()), x),
        "categorical": (categorical, level),
    }


@pytest.mark.parametrize("name", examples())
def test_derivatives_broadcasting_and_vmap(name: str) -> None:
    make, x = examples()[name]
    a, b, weights = torch.randn(3, 4, 2)

    def log_prob(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return make(a, b).log_prob(x)

    with validation(enabled=False):  # vmap cannot run checks of values
        expected = log_prob(a, b, x)
        assert torch.allclose(torch.func.vmap(log_prob)(a, b, x), expected, atol=1e-12)
        assert torch.allclose(torch.func.vmap(log_prob, in_dims=(0, 0, None))(a, b, x[0]), log_prob(a, b, x[0]))
        leaves = (a.clone().requires_grad_(), b.clone().requires_grad_())
        assert torch.autograd.gradcheck(lambda a, b: log_prob(a, b, x), leaves)
        assert torch.autograd.gradgradcheck(lambda a, b: log_prob(a, b, x), leaves)
        first = torch.autograd.grad(log_prob(*leaves, x), leaves, weights)
        graph = torch.autograd.grad(log_prob(*leaves, x), leaves, weights, create_graph=True)
        assert all(torch.allclose(*pair, atol=1e-12) for pair in zip(first, graph, strict=True))
        per_row = torch.func.vmap(torch.func.grad(lambda a, b, x: log_prob(a, b, x).sum()))(a, b, x)
        (together,) = torch.autograd.grad(log_prob(leaves[0], b, x).sum(), leaves[0])
        assert torch.allclose(per_row, together, atol=1e-12)
        for of_params, of_values in [((3, 1, 2), (4, 2)), ((1, 2), (4, 2)), ((2,), (3, 4, 2))]:
            values, params = x.expand(of_values), [torch.randn(of_params), torch.randn(2)]
            whole = torch.broadcast_shapes(of_params, of_values)
            narrow = [p.clone().requires_grad_() for p in params]
            full = [p.expand(whole).clone().requires_grad_() for p in params]
            log_p = log_prob(*narrow, values)
            assert torch.allclose(log_p, log_prob(*full, values.expand(whole)))
            grads = torch.autograd.grad(log_p.sum(), narrow)
            of_full = torch.autograd.grad(log_prob(*full, values).sum(), full)
            for grad, other in zip(grads, of_full, strict=True):
                assert torch.allclose(grad, other.sum_to_size(grad.shape), atol=1e-10)


@pytest.mark.parametrize("name", examples())
def test_expansion_and_values_outside_the_support(name: str) -> None:
    make, x = examples()[name]
    p_x = make(torch.randn(4, 2), 0.1 * torch.randn(4, 2))
    expanded = p_x.expand([3, 4, 2])
    assert type(expanded) is type(p_x)
    assert expanded.mean.shape == expanded.sample().shape == (3, 4, 2)
    assert torch.equal(expanded.log_prob(x), p_x.log_prob(x).expand(3, 4, 2))
    with pytest.raises(ValueError, match="within the support"):
        p_x.log_prob(x * math.nan)


def exact(function: Callable[[mpmath.mpf], Any], values: Tensor) -> Tensor:
    """Return a function of each value, computed in 700 digits."""
    with mpmath.workdps(700):
        return torch.tensor([float(function(mpmath.mpf(value))) for value in values.tolist()])


CB_LOGITS = [sign * size for size in (0.0, 1e-300, 1e-8, 1e-3, 0.09, 0.3, 0.499999, 0.5, 0.500001, 0.8, 2.0, 16.0, 40.0,
             90.0, 800.0, 1e4) for sign in (-1, 1)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_against_its_formula(dtype: torch.dtype) -> None:
    logits = torch.tensor(CB_LOGITS, dtype=dtype, requires_grad=True)
    x = torch.tensor([[0.0], [0.25], [0.5], [0.999], [1.0]], dtype=dtype)
    p_x, tolerance = ContinuousBernoulli(logits), 4 * torch.finfo(dtype).eps
    log_normalizer = exact(lambda a: mpmath.log(mpmath.expm1(a) / a) if a else 0, logits)
    mean = exact(lambda a: -1 / mpmath.expm1(-a) - 1 / a if a else 0.5, logits)
    variance = exact(lambda a: 1 / a**2 - 1 / (2 * mpmath.sinh(a / 2)) ** 2 if a else 1 / 12, logits)
    log_p = p_x.log_prob(x)
    off = (log_p.double() - x.double() * logits.double() + log_normalizer).abs()
    assert (off <= tolerance * (1 + logits.double().abs())).all()
    loose = tolerance + (10 * torch.finfo(torch.float64).eps if dtype == torch.float64 else tolerance)
    assert ((p_x.mean.double() - mean).abs() <= loose).all()
    (gradient,) = torch.autograd.grad(log_p[1].sum(), logits)
    assert ((gradient.double() - (0.25 - mean)).abs() <= loose).all()
    assert torch.allclose(p_x.variance.double(), variance, rtol=2e-5 if dtype == torch.float32 else 1e-13)


def test_quantile_of_continuous_bernoulli() -> None:
    logits = torch.tensor(CB_LOGITS)
    u = torch.tensor([0.0, 1e-6, 0.2, 0.5, 0.9, 1.0]).unsqueeze(-1)
    x = _quantile(logits, u)
    assert ((x >= 0) & (x <= 1)).all()
    assert (x.diff(dim=0) >= 0).all()
    medium = logits[(logits.abs() > 1e-3) & (logits.abs() < 20)]
    x = _quantile(medium, u)
    assert torch.allclose(torch.expm1(medium * x) / torch.expm1(medium), u.expand_as(x), atol=1e-12)
    assert torch.allclose(_quantile(torch.zeros(6, 1), u), u, atol=1e-15)
    draws = ContinuousBernoulli(torch.full((4,), 1e4, dtype=torch.float32)).sample((1000,))
    assert draws.dtype == torch.float32
    assert ((draws > 0.99) & (draws <= 1)).all()


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_discretized_logistic_against_its_formula(levels: int) -> None:
    u = torch.arange(float(levels)).unsqueeze(-1)
    loc, log_scale = torch.linspace(-1.2, 1.2, 9), torch.linspace(-2.0, 3.0, 9)
    p_u = distributions.DiscretizedLogistic(loc, log_scale, levels)
    edges = (2 * torch.arange(1.0, levels) - levels) / (levels - 1)  # between levels k - 1 and k
    cdf = ((edges.unsqueeze(-1) - loc) / log_scale.exp()).sigmoid()
    cdf = torch.cat([torch.zeros(1, 9), cdf, torch.ones(1, 9)])
    assert torch.allclose(p_u.log_prob(u).exp(), cdf.diff(dim=0), rtol=1e-10, atol=1e-15)
    assert torch.allclose(p_u.mean, (u * cdf.diff(dim=0)).sum(0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "place", [(0.01, -7.0), (40.0, -3.0), (300.0, -7.0), (0.0, 20.0), (0.0, -7.0), (-1e4, 0.0), (0.0, 60.0)]
)
def test_discretized_logistic_far_out(place: tuple[float, float], dtype: torch.dtype) -> None:
    leaves = [torch.tensor(value, dtype=dtype, requires_grad=True) for value in place]
    loc, scale = leaves[0].item(), mpmath.exp(leaves[1].item())

    def log_mass(u: mpmath.mpf) -> mpmath.mpf:
        low, high = ((2 * u / 255 - 1 + side / mpmath.mpf(255) - loc) / scale for side in (-1, 1))
        low, high = low if u > 0 else -mpmath.inf, high if u < 255 else mpmath.inf
        low, high = (-high, -low) if low + high > 0 else (low, high)  # the tail in which nothing cancels
        return mpmath.log(1 / (1 + mpmath.exp(-high)) - 1 / (1 + mpmath.exp(-low)))

    u = torch.tensor([0.0, 1.0, 100.0, 128.0, 254.0, 255.0], dtype=dtype)
    log_p = distributions.DiscretizedLogistic(*leaves, 256).log_prob(u)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert torch.allclose(log_p.double(), exact(log_mass, u), rtol=tolerance, atol=tolerance)
    assert all(gradient.isfinite() for gradient in torch.autograd.grad(log_p.sum(), leaves))


def test_a_logistic_far_away_still_pulls() -> None:
    """The usual formula with a floor under the probability has no gradient here."""
    loc = torch.tensor(0.9, dtype=torch.float32, requires_grad=True)
    logistic = distributions.DiscretizedLogistic(loc, torch.tensor(-6.5), 256)
    (gradient,) = torch.autograd.grad(logistic.log_prob(torch.tensor(3.0)), loc)
    assert gradient.item() == pytest.approx(-math.exp(6.5), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_series_of_factorials_and_digamma(dtype: torch.dtype) -> None:
    x = torch.cat([torch.logspace(-6, 3, 400), torch.tensor([15.999, 16.0, 16.001])]).to(dtype)
    tolerance = 100 * torch.finfo(dtype).eps
    log_x, excess = log_and_excess(x)
    wide = x.double()
    assert ((log_x.double() - wide.log()).abs() <= 0.05 * tolerance * (1 + wide.log().abs())).all()
    exact = torch.lgamma(wide + 1) - wide * wide.log() + wide
    assert ((excess.double() - exact).abs() <= 0.3 * tolerance + 1e-15 * wide * wide.log().abs()).all()
    lack, exact = digamma_lack(x).double(), wide.log() - torch.digamma(wide)
    absolute = (wide < 16).double()  # below, logarithms of up to 3 cancel
    assert ((lack - exact).abs() <= 0.08 * tolerance * (absolute + exact) + 1e-14).all()
    far = torch.tensor([1e4, 1e7, 1e10], dtype=dtype)  # where the first two terms are all
    assert torch.allclose(digamma_lack(far), 1 / (2 * far) + 1 / (12 * far * far), rtol=1e-6, atol=0)
    assert torch.allclose(log_and_excess(far)[1], 0.5 * (2 * math.pi * far).log() + 1 / (12 * far), rtol=1e-6)


@pytest.mark.parametrize("log_rate", [-30.0, -3.0, 0.7, 3.0, 8.0, 15.0])
def test_counts_in_float32(log_rate: float) -> None:
    """Against float64 and against torch, whose cancelling terms are off by up to tens of nats in float32."""
    mean = math.exp(log_rate)
    log_rates = torch.tensor(log_rate, dtype=torch.float32, requires_grad=True)
    deviations = torch.linspace(-3, 3, 25) * math.sqrt(mean)
    counts = (mean + deviations).round().clamp(min=0).unique()
    counts = torch.cat([counts, torch.tensor([0.0, 1.0, 15.0, 16.0, 17.0, 1e6])])
    exact = counts * log_rate - mean - torch.lgamma(counts + 1)
    slope = (counts - mean).abs() * max(1.0, abs(log_rate))  # by which the rounding of a log-rate moves log p
    tolerance = 4e-7 * (1 + exact.abs() + slope)
    log_p = Poisson(log_rates).log_prob(counts.float())
    assert ((log_p - exact).abs() <= tolerance).all()
    (gradient,) = torch.autograd.grad(log_p.sum(), log_rates)
    assert gradient.item() == pytest.approx((counts - mean).sum().item(), rel=1e-5)
    for log_total in (-8.0, -1.0, 2.0, 6.0, 14.0):
        total = math.exp(log_total)
        log_totals = torch.tensor(log_total, dtype=torch.float32, requires_grad=True)
        log_p = NegativeBinomial(log_rates, log_totals).log_prob(counts.float())
        exact = torch.lgamma(counts + total) - torch.lgamma(torch.tensor(total)) - torch.lgamma(counts + 1)
        exact += -total * math.log1p(mean / total) + counts * (log_rate - math.log(total + mean))
        pull = total * (counts - mean) / (total + mean)
        slope = pull.abs() * max(1.0, abs(log_rate))
        digammas = torch.digamma(counts + total) - torch.digamma(torch.tensor(total)) - math.log1p(mean / total)
        push = total * digammas - pull
        tolerance = 1e-6 * (1 + exact.abs() + slope + push.abs() * abs(log_total))
        assert ((log_p - exact).abs() <= tolerance).all()
        of_mean, of_total = torch.autograd.grad(log_p.sum(), (log_rates, log_totals))
        assert of_mean.item() == pytest.approx(pull.sum().item(), rel=1e-5, abs=1e-5 * pull.abs().max().item() + 1e-7)
        assert of_total.item() == pytest.approx(push.sum().item(), rel=2e-4, abs=1e-4)


def test_negative_binomial_tends_to_poisson_and_has_its_variance() -> None:
    count, log_mean = torch.tensor([0.0, 1.0, 7.0, 30.0, 1000.0]), torch.tensor([0.1, 2.0, -1.0, 3.0, 6.9])
    limit = NegativeBinomial(log_mean, torch.tensor(40.0)).log_prob(count)
    assert torch.allclose(limit, Poisson(log_mean).log_prob(count), rtol=1e-11)
    p_x = NegativeBinomial(torch.tensor(1.5), torch.tensor(0.4))
    x = torch.arange(3000.0)
    p = p_x.log_prob(x).exp()
    assert ((x - p_x.mean) ** 2 * p).sum().item() == pytest.approx(p_x.variance.item(), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 50.0])
def test_negative_binomial_beyond_the_range_of_its_mean(dtype: torch.dtype, value: float) -> None:
    for log_mean in (39.0, 41.0, 89.0, 500.0):
        at = torch.tensor(log_mean, dtype=dtype, requires_grad=True)
        log_r = torch.tensor(0.0, dtype=dtype, requires_grad=True)
        log_prob = NegativeBinomial(at, log_r).log_prob(torch.tensor(value, dtype=dtype))
        log_prob.backward()
        assert log_prob.item() == pytest.approx(-log_mean, rel=1e-6)  # r = 1: log 1 / (1 + m), for x << m
        assert at.grad.item() == pytest.approx(-1, rel=1e-5)
        assert log_r.grad.isfinite()
    for log_r in (-90.0, 90.0):
        x, mean = torch.tensor(3.0, dtype=dtype), torch.tensor(1.0, dtype=dtype)
        found = NegativeBinomial(mean, torch.tensor(log_r, dtype=dtype)).log_prob(x)
        limit = Poisson(mean).log_prob(x) if log_r > 0 else torch.tensor(-60 - math.log(3.0))
        assert found.item() == pytest.approx(limit.item(), rel=1e-5)


@pytest.mark.parametrize("df", [0.7, 1.5, 5.0, 1e4, 1e7])
def test_student_t_against_torch(df: float) -> None:
    loc, scale, x = torch.randn(5), torch.rand(5) + 0.1, torch.tensor([0.0, 1.0, -30.0, 1e3, 1e6])
    p_x = distributions.StudentT(df, loc, scale)
    exact = dist.StudentT(torch.tensor(df), loc, scale)
    log_p = exact.log_prob(x)
    assert torch.allclose(p_x.log_prob(x), log_p, rtol=1e-8, atol=1e-8)  # torch's loses digits for large df
    single = distributions.StudentT(df, loc.float(), scale.float()).log_prob(x.float())
    again = distributions.StudentT(df, loc.float().double(), scale.float().double()).log_prob(x)
    assert torch.allclose(single.double(), again, rtol=1e-6, atol=1e-6)
    assert torch.equal(p_x.mean.isnan(), exact.mean.isnan())
    assert torch.allclose(p_x.variance, exact.variance, equal_nan=True)


def test_level_categorical_against_torch() -> None:
    logits = torch.randn(3, 4, 7) * 5
    p_u, exact = distributions.LevelCategorical(logits), dist.Categorical(logits=logits)
    u = torch.randint(0, 7, (3, 4))
    assert torch.allclose(p_u.log_prob(u.double()), exact.log_prob(u), atol=1e-12)
    numbers = torch.arange(7.0)
    assert torch.allclose(p_u.mean, exact.probs @ numbers, atol=1e-12)
    assert torch.allclose(p_u.variance, exact.probs @ numbers**2 - p_u.mean**2, atol=1e-10)
    huge = distributions.LevelCategorical(torch.tensor([[0.0, 1e4, -1e4]], dtype=torch.float32))
    assert huge.log_prob(torch.tensor([2.0])).item() == -2e4


def test_a_categorical_holds_few_tensors_of_the_size_of_its_logits() -> None:
    logits, value = torch.randn(64, 100, 256, requires_grad=True), torch.zeros(64, 100)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        distributions.LevelCategorical(logits).log_prob(value).sum().backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    assert 1 <= max(held) / logits.nbytes < 1.2, "the softmax becomes the gradient"
