"""Fewer operations where no gradient is computed: sums of log-probabilities, and tanh."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.distributions import BinaryBernoulli, Elements, bernoulli, normal
from pyrovae.distributions.normal import normal_log_prob_sum
from pyrovae.networks import MLPDecoder
from pyrovae.programs.layout import log_prob


def exact(logits: Tensor, x: Tensor) -> Tensor:
    """Return the log-probability of each row, in float64 by the textbook's formula."""
    logits, x = logits.double(), x.double()
    return (x * logits - logits.clamp(min=0) - logits.abs().neg().exp().log1p()).sum(-1)


def summed(logits: Tensor, x: Tensor, num_dims: int = 1) -> Tensor:
    return BinaryBernoulli(logits=logits, validate_args=False).log_prob_sum(x, num_dims)


@pytest.mark.parametrize("recording", [False, True])
@pytest.mark.parametrize("num_elements", [1, 7, 8, 15, 16, 17, 64, 787, 3072])
def test_sum_of_binary_bernoulli(num_elements: int, recording: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    monkeypatch.setattr(bernoulli, "is_recording", lambda: recording)
    sizes = torch.logspace(-8, 1.78, 200, dtype=torch.float64).unsqueeze(-1)
    logits = sizes * torch.randn(200, num_elements).sign()
    x = torch.randint(0, 2, (200, num_elements))
    for value in (x, x.byte(), x.bool(), x.half(), x.double(), torch.rand(200, num_elements)):  # also if not binary
        assert torch.allclose(summed(logits, value), exact(logits, value), rtol=1e-13, atol=1e-12)
    narrow = summed(logits.float(), x.float())
    assert narrow.dtype == torch.float64
    error = (narrow - exact(logits.float(), x.float())).abs()
    assert (error <= 2e-7 * (num_elements + logits.abs().sum(-1))).all()
    assert summed(logits, x * math.nan).isnan().all()


def test_sum_of_binary_bernoulli_in_float32() -> None:
    sizes = torch.logspace(-8, 1.78, 400, dtype=torch.float32).unsqueeze(-1)
    for logits in (sizes.expand(-1, 784), sizes * torch.randn(400, 784, dtype=torch.float32)):
        for x in ((logits > 0).float(), (logits <= 0).float()):  # as likely and as unlikely as can be
            error = (summed(logits, x) - exact(logits, x)).abs()
            by_elements = BinaryBernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1, dtype=torch.float64)
            assert error.max() < max(1.2e-4, (by_elements - exact(logits, x)).abs().max())
            assert error.mean() < 4e-5


def test_sum_of_binary_bernoulli_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, x = torch.randn(5, 3, 2, 4, 4), (torch.rand(3, 2, 4, 4) < 0.5).double()
    expected = BinaryBernoulli(logits=logits, validate_args=False).log_prob(x).sum((-1, -2))
    for limit in (1, 40, 70, 200, 10_000):  # a row, a datum, two particles, all
        monkeypatch.setattr(bernoulli, "BLOCK_ELEMENTS", limit)
        assert torch.allclose(summed(logits, x, 2), expected, rtol=1e-13)
        assert torch.allclose(summed(logits, x, 3), expected.sum(-1), rtol=1e-13)
    assert torch.allclose(summed(logits.mT.contiguous().mT, x, 3), expected.sum(-1), rtol=1e-13)


def test_sum_of_binary_bernoulli_where_products_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, x = 3 * torch.randn(6, 40, dtype=torch.float32), (torch.rand(6, 40) < 0.5).float()
    logits[2] = 40 * (1 - 2 * x[2])  # as wrong as can be: of eight factors exp(-40) nothing is left
    logits[3] = 12.5 * (1 - 2 * x[3])  # a product that has lost digits
    logits[4, 3] = 200 * (1 - 2 * x[4, 3])
    for limit in (40, 80, 10_000):
        monkeypatch.setattr(bernoulli, "BLOCK_ELEMENTS", limit)
        assert torch.allclose(summed(logits, x), exact(logits, x), rtol=1e-6)


class ShiftedNormal(dist.Normal):
    """A normal distribution with another log-density."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) - 1


PARAMETERS = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0)).double()
BITS = BinaryBernoulli(logits=PARAMETERS, validate_args=False)
FNS = {
    "Bernoulli": BITS.to_event(1),
    "Elements": Elements(BITS, 1, description="", hint=""),
    "no event": BITS,
    "Laplace": dist.Laplace(PARAMETERS, 1.0).to_event(1),
    "Normal": dist.Normal(PARAMETERS, 0.5).to_event(1),
    "subclass of Normal": ShiftedNormal(PARAMETERS, 0.5).to_event(1),
}


@pytest.mark.parametrize("name", FNS)
def test_scores_without_gradients_are_those_of_the_distribution(name: str) -> None:
    site = {"fn": FNS[name], "value": (torch.rand(3, 8) < 0.5).double()}
    expected = site["fn"].log_prob(site["value"])
    with torch.no_grad():
        scored = log_prob(site)
    assert scored.shape == expected.shape
    assert torch.allclose(scored, expected, rtol=1e-13)
    assert torch.allclose(log_prob(site), expected, rtol=1e-13)


def test_sums_of_normals_are_validated() -> None:
    site = {"fn": dist.Normal(PARAMETERS, 0.5, validate_args=True).to_event(1), "value": PARAMETERS * math.nan}
    with torch.no_grad(), pytest.raises(ValueError, match="within the support"):
        log_prob(site)


SHAPES = [  # of loc, scale and value, and the axes of the event
    ((50,), (50,), (7, 3, 50), 1),
    ((3, 50), (3, 50), (7, 3, 50), 1),
    ((3, 1), (3, 1), (7, 3, 1), 1),
    ((7, 3, 200), (), (3, 200), 1),
    ((7, 3, 200), (7, 1, 200), (3, 200), 1),
    ((1, 3, 2, 5), (7, 3, 1, 5), (3, 2, 5), 2),
    ((2, 5), (5,), (7, 3, 2, 1), 2),
    ((), (), (6,), 1),
    ((0,), (0,), (7, 3, 0), 1),
]


@pytest.mark.parametrize("shapes", SHAPES)
def test_sum_of_normal(shapes: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch) -> None:
    *shapes, num_dims = shapes
    m, s, z = 3 * torch.randn(shapes[0]), torch.randn(shapes[1]).exp(), torch.randn(shapes[2])
    whole = torch.broadcast_shapes(*shapes)
    expected = dist.Normal(m.expand(whole), s.expand(whole)).log_prob(z).sum(tuple(range(-num_dims, 0)))
    before = z.clone()
    for limit in (1, 300, 2**16):
        monkeypatch.setattr(normal, "BLOCK_ELEMENTS", limit)
        for args in ((m, s, z), (m.expand(whole), s.expand(whole), z)):  # as given, and as plates leave it
            scored = normal_log_prob_sum(*args, num_dims)
            assert scored.shape == expected.shape
            assert torch.allclose(scored, expected, rtol=1e-13, atol=1e-12)
    assert torch.equal(z, before), "what is scored stays as it is"


def test_sum_of_normal_in_float32() -> None:
    m, s = torch.randn(4, 50, dtype=torch.float32), torch.randn(4, 50, dtype=torch.float32).exp()
    z = m + s * torch.randn(500, 4, 50, dtype=torch.float32)
    expected = dist.Normal(m.double(), s.double()).log_prob(z.double()).sum(-1)
    assert torch.allclose(normal_log_prob_sum(m, s, z, 1), expected, rtol=0, atol=1e-12)
    rows = (x.expand(500, 4, 50).clone() for x in (m, s))  # a scale for each row
    assert torch.allclose(normal_log_prob_sum(*rows, z, 1), expected, rtol=0, atol=1e-6)


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
    assert torch.equal(x, before)
    assert torch.equal(ends[:3], torch.tensor([0.0, 1.0, -1.0], dtype=dtype))
    assert ends[3].isnan()
    assert torch.equal(layer(x), x.tanh()), "with gradients it is torch's"
    assert torch.autograd.gradcheck(layer, torch.randn(5, dtype=torch.float64, requires_grad=True))
