"""What is computed in fewer operations where no gradient is asked for: sums of log-probabilities, and tanh."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae
from pyrovae.distributions import BinaryBernoulli, Elements, normal
from pyrovae.distributions import bernoulli as room
from pyrovae.distributions.normal import normal_log_prob_sum
from pyrovae.networks import MLPDecoder
from pyrovae.programs.layout import log_prob
from pyrovae.runtime.serialization import build, describe


def exact(logits: Tensor, x: Tensor) -> Tensor:
    """Return the log-probability of each row, in float64 by the textbook's formula."""
    logits, x = logits.double(), x.double()
    return (x * logits - logits.clamp(min=0) - logits.abs().neg().exp().log1p()).sum(-1)


@pytest.mark.parametrize("num_elements", [1, 7, 8, 9, 64, 784, 787])
def test_sum_of_binary_bernoulli(num_elements: int) -> None:
    sizes = torch.logspace(-8, 1.78, 200, dtype=torch.float64).unsqueeze(-1)
    logits = sizes * torch.randn(200, num_elements).sign()
    x = (torch.rand(200, num_elements) < 0.5).double()
    found = BinaryBernoulli(logits=logits, validate_args=False).log_prob_sum(x, 1)
    assert found.dtype == torch.float64
    assert torch.allclose(found, exact(logits, x), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("num_elements", [0, 1, 15, 16, 17, 64, 784, 787, 1050, 3072])
def test_recorded_sum_of_binary_bernoulli(num_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_recording", lambda: True)
    sizes = torch.logspace(-8, 1.78, 200, dtype=torch.float64).unsqueeze(-1)
    logits = sizes * torch.randn(200, num_elements).sign()
    for x in ((torch.rand(200, num_elements) < 0.5).double(), torch.rand(200, num_elements)):
        found = BinaryBernoulli(logits=logits, validate_args=False).log_prob_sum(x, 1)
        assert torch.allclose(found, exact(logits, x), rtol=1e-13, atol=1e-12)
    narrow = BinaryBernoulli(logits=logits.float(), validate_args=False).log_prob_sum(x.float(), 1)
    assert narrow.dtype == torch.float64
    error = (narrow - exact(logits.float(), x.float())).abs()
    assert (error <= 2e-7 * (num_elements + logits.abs().sum(-1))).all()


def test_sum_of_binary_bernoulli_in_float32() -> None:
    sizes = torch.logspace(-8, 1.78, 400, dtype=torch.float32).unsqueeze(-1)
    for logits in (sizes.expand(-1, 784), sizes * torch.randn(400, 784, dtype=torch.float32)):
        for x in ((logits > 0).float(), (logits <= 0).float()):  # as likely and as unlikely as can be
            p_x = BinaryBernoulli(logits=logits, validate_args=False)
            error = (p_x.log_prob_sum(x, 1) - exact(logits, x)).abs()
            before = (p_x.log_prob(x).sum(-1, dtype=torch.float64) - exact(logits, x)).abs()
            assert error.max() < max(1.2e-4, before.max())
            assert error.mean() < 4e-5


def test_sum_of_binary_bernoulli_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, x = torch.randn(5, 3, 2, 4, 4), (torch.rand(3, 2, 4, 4) < 0.5).double()
    p_x = BinaryBernoulli(logits=logits, validate_args=False)
    whole = p_x.log_prob(x).sum((-1, -2, -3))
    for limit in (1, 40, 70, 200, 10_000):  # a row, a datum, two particles, all
        monkeypatch.setattr(room, "BLOCK_ELEMENTS", limit)
        assert torch.allclose(p_x.log_prob_sum(x, 3), whole, rtol=1e-13)
        assert torch.allclose(p_x.log_prob_sum(x, 2), p_x.log_prob(x).sum((-1, -2)), rtol=1e-13)
    one = BinaryBernoulli(logits=logits[0, 0, 0], validate_args=False)
    assert torch.allclose(one.log_prob_sum(x[0, 0], 2), one.log_prob(x[0, 0]).sum())
    turned = BinaryBernoulli(logits=logits.transpose(-1, -2), validate_args=False)  # not contiguous
    assert torch.allclose(turned.log_prob_sum(x, 3), turned.log_prob(x).sum((-1, -2, -3)), rtol=1e-13)


def test_sites_are_scored_by_sums_where_no_gradient_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, x = torch.randn(4, 3, 8, requires_grad=True), (torch.rand(3, 8) < 0.5).double()
    base = BinaryBernoulli(logits=logits, validate_args=False)
    sites = [{"fn": p_x, "value": x} for p_x in (base.to_event(1), Elements(base, 1, description="", hint=""))]
    with_gradient = log_prob(sites[0])
    (gradient,) = torch.autograd.grad(with_gradient.sum(), logits)
    assert torch.allclose(gradient, x - logits.sigmoid())
    calls = []
    summed = BinaryBernoulli.log_prob_sum
    monkeypatch.setattr(BinaryBernoulli, "log_prob_sum", lambda *args: calls.append(1) or summed(*args))
    assert log_prob(sites[0]).requires_grad
    assert not calls
    with torch.no_grad():
        for site in sites:
            assert torch.allclose(log_prob(site), with_gradient, rtol=1e-13)
        assert len(calls) == 2
        assert log_prob({"fn": base, "value": x}).shape == (4, 3, 8), "nothing to sum"
        other = {"fn": dist.Laplace(logits, 1.0).to_event(1), "value": x}
        assert torch.allclose(log_prob(other), dist.Laplace(logits, 1.0).log_prob(x).sum(-1))
    assert len(calls) == 2


def test_sum_of_binary_bernoulli_where_products_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, x = 3 * torch.randn(6, 40, dtype=torch.float32), (torch.rand(6, 40) < 0.5).float()
    logits[2] = 40 * (1 - 2 * x[2])  # as wrong as can be: of eight factors exp(-40) nothing is left
    logits[3] = 12.5 * (1 - 2 * x[3])  # a product that has lost digits
    logits[4, 3] = 200 * (1 - 2 * x[4, 3])
    p_x = BinaryBernoulli(logits=logits, validate_args=False)
    for limit in (40, 80, 10_000):
        monkeypatch.setattr(room, "BLOCK_ELEMENTS", limit)
        assert torch.allclose(p_x.log_prob_sum(x, 1), exact(logits, x), rtol=1e-6)
    monkeypatch.setattr(torch, "clamp_min", None)  # which only the longer way needs
    for moderate in (logits[:2], logits[:2].abs() * (2 * x[:2] - 1)):
        found = BinaryBernoulli(logits=moderate, validate_args=False).log_prob_sum(x[:2], 1)
        assert torch.allclose(found, exact(moderate, x[:2]), rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool, torch.float16])
def test_sum_of_binary_bernoulli_of_values_of_any_dtype(dtype: torch.dtype) -> None:
    logits, x = torch.randn(4, 24).abs(), torch.randint(0, 2, (4, 24))
    found = BinaryBernoulli(logits=logits, validate_args=False).log_prob_sum(x.to(dtype), 1)
    assert torch.allclose(found, exact(logits, x), rtol=1e-13)


def test_sum_of_binary_bernoulli_of_what_is_not_binary() -> None:
    logits, x = torch.randn(4, 3, 20), torch.rand(3, 20)
    p_x = BinaryBernoulli(logits=logits, validate_args=False)
    assert torch.allclose(p_x.log_prob_sum(x, 1), p_x.log_prob(x).sum(-1), rtol=1e-13)
    assert p_x.log_prob_sum(x.fill_(math.nan), 1).isnan().all()


SHAPES = [  # of loc, scale and value, and the axes of the event
    ((50,), (50,), (7, 3, 50), 1),
    ((3, 50), (3, 50), (7, 3, 50), 1),
    ((3, 1), (3, 1), (7, 3, 1), 1),
    ((7, 3, 200), (), (3, 200), 1),
    ((7, 3, 200), (3, 1), (1, 200), 1),
    ((7, 3, 200), (7, 1, 200), (3, 200), 1),
    ((1, 3, 2, 5), (7, 3, 1, 5), (3, 2, 5), 2),
    ((2, 5), (5,), (7, 3, 2, 1), 2),
    ((), (), (6,), 1),
    ((4, 5), (4, 5), (4, 5), 2),
    ((0,), (0,), (7, 3, 0), 1),
]


@pytest.mark.parametrize(("loc", "scale", "value", "num_dims"), SHAPES)
def test_sum_of_normal(
    loc: tuple[int, ...],
    scale: tuple[int, ...],
    value: tuple[int, ...],
    num_dims: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m, s, z = 3 * torch.randn(loc), torch.randn(scale).exp(), torch.randn(value)
    whole = torch.broadcast_shapes(loc, scale, value)
    expected = dist.Normal(m.expand(whole), s.expand(whole)).log_prob(z).sum(tuple(range(-num_dims, 0)))
    before = z.clone()
    for limit in (1, 300, 2**16):
        monkeypatch.setattr(normal, "BLOCK_ELEMENTS", limit)
        for expanded in (whole, torch.Size()):  # as plates leave it, and as it was given
            args = (m.expand(expanded), s.expand(expanded)) if expanded else (m, s)
            found = normal_log_prob_sum(*args, z, num_dims)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, rtol=1e-13, atol=1e-12)
    assert torch.equal(z, before), "what is scored stays as it is"
    turned = z.mT.contiguous().mT if z.ndim > 1 else z
    assert torch.allclose(normal_log_prob_sum(m, s, turned, num_dims), expected, rtol=1e-13, atol=1e-12)


def test_sum_of_normal_in_float32() -> None:
    m, log_s = torch.randn(4, 50, dtype=torch.float32), torch.randn(4, 50, dtype=torch.float32)
    s = log_s.exp()
    z = m + s * torch.randn(500, 4, 50, dtype=torch.float32)
    expected = dist.Normal(m.double(), s.double()).log_prob(z.double()).sum(-1)
    found = normal_log_prob_sum(m, s, z, 1)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    rows = (x.expand(500, 4, 50).clone() for x in (m, s))  # a scale for each row
    assert torch.allclose(normal_log_prob_sum(*rows, z, 1), expected, rtol=0, atol=1e-6)


def test_normal_sites_are_scored_by_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Tensor) -> Tensor:
        calls.append(1)
        return normal_log_prob_sum(*args)

    class Other(dist.Normal):
        """One that has another log-density."""

        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) - 1

    monkeypatch.setattr("pyrovae.programs.layout.normal_log_prob_sum", counted)
    loc, z = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 3, 5)
    site = {"fn": dist.Normal(loc, 0.5).to_event(1), "value": z}
    assert log_prob(site).requires_grad
    assert not calls
    with torch.no_grad():
        assert torch.allclose(log_prob(site), site["fn"].log_prob(z), rtol=1e-13)
        assert len(calls) == 1
        other = Other(loc, 0.5).to_event(1)
        assert torch.allclose(log_prob({"fn": other, "value": z}), other.log_prob(z), rtol=1e-13)
        assert len(calls) == 1
        checked = dist.Normal(loc, 0.5, validate_args=True).to_event(1)
        with pytest.raises(ValueError, match="within the support"):
            log_prob({"fn": checked, "value": z * math.nan})


def test_sums_in_plates_and_under_masks() -> None:
    x = torch.randn(4, 3, 2)
    keep = torch.tensor([[True, False, True], [True] * 3, [False] * 3, [True, True, False]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
            rows = keep[: len(x)]
            with pyro.poutine.mask(mask=rows):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
                pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
            with pyro.poutine.mask(mask=keep[: len(x)]):
                pyro.sample("z", dist.Normal(0.3 * x, 0.7).to_event(1))

    found = pyrovae.particles(model, guide, x, num_particles=6)
    z = found.z["z"]
    prior = dist.Normal(0.0, torch.tensor([1.0, 2.0])).log_prob(z).sum(-1)
    posterior = dist.Normal(0.3 * x, 0.7).log_prob(z).sum(-1)
    assert torch.allclose(found.log_prior, (prior * keep).sum(-1))
    assert torch.allclose(found.log_guide, (posterior * keep).sum(-1))
    assert torch.allclose(found.log_likelihood, (dist.Normal(z, 0.5).log_prob(x).sum(-1) * keep).sum(-1))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-7), (torch.float64, 5e-16)])
def test_tanh_without_gradients(dtype: torch.dtype, bound: float) -> None:
    layer = MLPDecoder(2, (3, 1)).layers[1]
    small = torch.logspace(-12, 2, 20_001, dtype=dtype)
    x = torch.cat([torch.linspace(-20, 20, 200_001, dtype=dtype), small, -small])
    before = x.clone()
    with torch.no_grad():
        found = layer(x)
        ends = layer(torch.tensor([0.0, math.inf, -math.inf, math.nan], dtype=dtype))
    assert (found.double() - x.double().tanh()).abs().max() <= bound
    assert not torch.equal(found, x.tanh())
    assert torch.equal(x, before)
    assert torch.equal(ends[:3], torch.tensor([0.0, 1.0, -1.0], dtype=dtype))
    assert ends[3].isnan()
    assert torch.equal(layer(x), x.tanh()), "with gradients it is torch's"
    assert torch.autograd.gradcheck(layer, torch.randn(5, dtype=torch.float64, requires_grad=True))


def test_tanh_is_described_as_it_was_given() -> None:
    decoder = MLPDecoder(2, (3, 1), activation=nn.Tanh)
    described = describe(decoder)
    assert described["arguments"]["activation"] == {"type": "torch.nn.modules.activation.Tanh"}
    assert describe(build(described)) == described
    assert [str(layer) for layer in decoder.layers if isinstance(layer, nn.Tanh)] == ["Tanh()"] * 2
    assert type(MLPDecoder(2, (3, 1), activation=nn.ReLU).layers[1]) is nn.ReLU
