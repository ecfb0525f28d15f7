"""Sums of log-probabilities that are taken in fewer operations than one by one."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.distributions import BinaryBernoulli, Elements
from pyrovae.distributions import bernoulli as room
from pyrovae.scoring.layout import log_prob


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
    sites = [{"fn": p_x, "value": x} for p_x in (base.to_event(1), Elements(base, 1, told="", cure=""))]
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
        normal = {"fn": dist.Normal(logits, 1.0).to_event(1), "value": x}
        assert torch.allclose(log_prob(normal), dist.Normal(logits, 1.0).log_prob(x).sum(-1))
    assert len(calls) == 2
