"""Distributions of our own against those of torch."""

from __future__ import annotations

import math

import pytest
import torch

from pyrovae.distributions import BinaryBernoulli

LOGITS = torch.tensor([-800.0, -40.0, -16.0, -3.0, -1e-9, 0.0, 1e-9, 0.5, 16.0, 40.0, 800.0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_of_binary_bernoulli(dtype: torch.dtype) -> None:
    logits = torch.cat([LOGITS, torch.linspace(-30, 30, 4001)]).to(dtype)
    x = torch.tensor([[0.0], [1.0]], dtype=dtype)
    ours = BinaryBernoulli(logits=logits).log_prob(x)
    signed = torch.stack([logits, -logits]).double()  # log p(x) = -softplus(l) for x = 0, -softplus(-l) for x = 1
    exact = -torch.tensor([[max(s, 0.0) + math.log1p(math.exp(-abs(s))) for s in row] for row in signed.tolist()])
    tolerance = 2 * torch.finfo(dtype).eps
    assert ((ours.double() - exact).abs() <= tolerance * (1 + exact.abs())).all()


def test_gradients_of_binary_bernoulli() -> None:
    logits = LOGITS.clone().requires_grad_()
    for value in (0.0, 1.0):
        (gradient,) = torch.autograd.grad(BinaryBernoulli(logits=logits).log_prob(torch.tensor(value)).sum(), logits)
        assert torch.allclose(gradient, value - logits.sigmoid(), atol=1e-15)
    smooth = torch.linspace(-3, 3, 8).requires_grad_()
    x = torch.rand(8).requires_grad_()

    def log_prob(logits: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return BinaryBernoulli(logits=logits, validate_args=False).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, (smooth, x))
    assert torch.autograd.gradgradcheck(log_prob, (smooth, x))
    columns = torch.func.vmap(log_prob)(smooth.reshape(4, 2), x.reshape(4, 2))
    assert torch.equal(columns.flatten(), log_prob(smooth, x))


def test_binary_bernoulli_broadcasts_and_expands() -> None:
    p_x = BinaryBernoulli(logits=torch.randn(3, 1, 5)).to_event(1)
    x = (torch.rand(4, 5) < 0.5).double()
    assert p_x.log_prob(x).shape == (3, 4)
    wide = p_x.expand([3, 4])
    assert isinstance(wide.base_dist, BinaryBernoulli)
    assert torch.equal(wide.log_prob(x), p_x.log_prob(x))
    with pytest.raises(ValueError, match="binarize them"):
        wide.log_prob(x + 0.5)
