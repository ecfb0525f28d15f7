"""Laws of a likelihood."""

from __future__ import annotations

import math
from typing import get_args

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.data.transforms import Form
from pyrovae.likelihoods import Likelihood
from pyrovae.testing.laws import CheckFailed, Stages, require
from pyrovae.testing.shared import (
    BATCHES,
    NUM_DRAWS,
    check_bounds,
    check_description,
    check_draws,
    check_gradients,
    check_rows,
    check_total,
    masses,
)
from pyrovae.testing.truth import small_vae

MOST_COUNTS = 400  # along each of two axes, to which counts are summed


def likelihood_laws(likelihood: Likelihood) -> Stages:
    """Return the laws of a likelihood of one or two elements, by name."""
    return (
        {"form and base measure are stated": lambda: _stated(likelihood)},
        {"shapes under any batch axes": lambda: _shapes(likelihood)},
        {
            "the density is normalized": lambda: _normalized(likelihood),
            "draws agree with the density": lambda: _draws(likelihood),
            "the mean is that of the density": lambda: _mean(likelihood),
            "it starts at a wanted mean": lambda: _starts(likelihood),
            "gradients reach every parameter": lambda: _gradients(likelihood),
            "data outside the support are refused": lambda: _refuses(likelihood),
            "the encoder tells data apart": lambda: _seen(likelihood),
            "it is rebuilt from its description": lambda: _described(likelihood),
        },
        {"bounds against quadrature": lambda: check_bounds(small_vae(likelihood=likelihood))},
    )


def _params(likelihood: Likelihood, *batch: int, far: bool = False) -> Tensor:
    """Return parameters around the start at a usual mean or at one that is far from it, of the given batch axes."""
    params = likelihood.initial_params(torch.full(likelihood.x_shape, (_far if far else _middle)(likelihood)))
    shape = tuple(params.shape)
    require(shape == likelihood.param_shape, f"initial_params has shape {shape}, not {likelihood.param_shape}")
    return params + 0.5 * torch.randn(*batch, *likelihood.param_shape)


def _middle(likelihood: Likelihood) -> float:
    """Return a mean that every likelihood of this form can have."""
    if likelihood.form == "levels":
        return 0.4 * (_num_levels(likelihood) - 1)
    return {"binary": 0.4, "unit": 0.4, "continuous": 0.3, "counts": 2.5}[likelihood.form]


def _far(likelihood: Likelihood) -> float:
    """Return another."""
    if likelihood.form == "levels":
        return 0.8 * (_num_levels(likelihood) - 1)
    return {"binary": 0.9, "unit": 0.9, "continuous": 4.0, "counts": 10.0}[likelihood.form]


def _num_levels(likelihood: Likelihood) -> int:
    levels = getattr(likelihood, "levels", None)
    if not isinstance(levels, int):
        raise CheckFailed("a likelihood of levels says how many there are; derive it from LevelLikelihood")
    return levels


def _stated(likelihood: Likelihood) -> str:
    form, measure = getattr(likelihood, "form", None), getattr(likelihood, "base_measure", None)
    require(form in get_args(Form), f"form is one of {', '.join(get_args(Form))}, but it states {form!r}")
    right = "counting" if form in ("binary", "levels", "counts") else "Lebesgue"
    return require(measure == right, f"{form!r} data have the {right} measure, and it states {measure!r}")


def _shapes(likelihood: Likelihood) -> str:
    for batch in BATCHES:
        params = _params(likelihood, *batch)
        p_x = likelihood(params)
        x = p_x.sample()
        found = {
            "batch_shape": (tuple(p_x.batch_shape), batch),
            "event_shape": (tuple(p_x.event_shape), likelihood.x_shape),
            "a draw": (tuple(x.shape), (*batch, *likelihood.x_shape)),
            "log_prob": (tuple(p_x.log_prob(x).shape), batch),
            "log_prob of four draws": (tuple(p_x.log_prob(p_x.sample((4,))).shape), (4, *batch)),
            "mean": (tuple(p_x.mean.shape), (*batch, *likelihood.x_shape)),
        }
        for what, (shape, expected) in found.items():
            require(shape == expected, f"{what} has shape {shape} for batch axes {batch}, not {expected}")
        if len(batch) == 1:
            check_rows(p_x.log_prob(x), [likelihood(p).log_prob(value) for p, value in zip(params, x, strict=True)])
    return ", ".join(str(batch) for batch in BATCHES)


def _normalized(likelihood: Likelihood) -> str:
    word = "sums" if likelihood.base_measure == "counting" else "integrates"
    check_total(likelihood(_params(likelihood, far=True)), *_grid(likelihood), word=word)
    return check_total(likelihood(_params(likelihood)), *_grid(likelihood), word=word)


def _grid(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Return points ``(N, *x_shape)`` that cover the support, and their weights ``(N,)``."""
    if likelihood.form == "unit":
        points = (torch.arange(600) + 0.5) / 600
        weights = torch.full_like(points, 1 / 600)
    elif likelihood.form == "continuous":
        t = torch.linspace(-12, 12, 1001)
        points, weights = 0.3 + 0.5 * t.sinh(), 0.5 * t.cosh() * (t[1] - t[0])
    else:
        most = {"binary": 2, "counts": MOST_COUNTS}.get(likelihood.form) or _num_levels(likelihood)
        points, weights = torch.arange(float(most)), torch.ones(most)
    size = torch.Size(likelihood.x_shape).numel()
    x = torch.cartesian_prod(*[points] * size).reshape(-1, *likelihood.x_shape)
    return x, torch.cartesian_prod(*[weights] * size).reshape(len(x), -1).prod(-1)


def _draws(likelihood: Likelihood) -> str:
    unit = {"binary": 0.5, "unit": 0.3, "continuous": 1.0, "counts": 2.5}.get(likelihood.form)
    middle = _middle(likelihood)
    rows = [_params(likelihood), _params(likelihood, far=True)]
    drawn = likelihood(torch.stack([row.expand(NUM_DRAWS, *row.shape) for row in rows])).sample()
    return check_draws(drawn, [likelihood(row) for row in rows], *_grid(likelihood), middle=middle, unit=unit or middle)


@torch.no_grad()
def _mean(likelihood: Likelihood) -> str:
    rows = [_params(likelihood), _params(likelihood, far=True)]
    mean = likelihood(torch.stack(rows)).mean
    require(mean.isfinite().all(), "the mean is not finite, but pictures and reconstructions show it")
    x, weights = _grid(likelihood)
    exact = [torch.einsum("n,n...->...", masses(likelihood(row), x, weights), x) for row in rows]
    off = (mean - torch.stack(exact)).abs().max().item()
    return require(off < 1e-3 * (1 + abs(_far(likelihood))), f"off by {off:.2g} at most")


@torch.no_grad()
def _starts(likelihood: Likelihood) -> str:
    size = torch.Size(likelihood.x_shape).numel()
    wanted = _middle(likelihood) * torch.linspace(1.0, 1.4, size).reshape(likelihood.x_shape)
    off = ((likelihood(likelihood.initial_params(wanted)).mean - wanted) / wanted).abs().max().item()
    return require(off < 0.1, f"the mean is off by {100 * off:.2g} % of the wanted one")


def _gradients(likelihood: Likelihood) -> str:
    params = _params(likelihood, 50).requires_grad_()
    x = likelihood(params.detach()).sample()
    weights = torch.rand(50)
    return check_gradients(likelihood, lambda: weights * likelihood(params).log_prob(x), params)


def _refuses(likelihood: Likelihood) -> str:
    outside = {"binary": (0.5, 2.0), "unit": (1.5, -0.5), "continuous": (math.nan,), "counts": (-1.0, 0.5)}
    values = outside.get(likelihood.form) or (-1.0, 0.5, float(_num_levels(likelihood)))
    p_x = likelihood(_params(likelihood))
    said = [_refusal(p_x, value) for value in values]
    return said[0] if len(said[0]) <= 70 else said[0][:67] + "..."


def _refusal(p_x: TorchDistribution, value: float) -> str:
    """Return what is said to one datum with this value in one place."""
    x = p_x.sample().to(torch.get_default_dtype(), copy=True)
    x.view(-1)[0] = value
    try:
        p_x.log_prob(x)
    except ValueError as error:
        return " ".join(str(error).split())
    raise CheckFailed(f"the value {value} is scored without a word; give the distribution its support")


@torch.no_grad()
def _seen(likelihood: Likelihood) -> str:
    x = likelihood(_params(likelihood, 50)).sample()
    seen = likelihood.encoder_input(x)
    require(seen.shape == x.shape, f"encoder_input gives {tuple(seen.shape)} for data {tuple(x.shape)}")
    require(seen.is_floating_point() and seen.isfinite().all(), "encoder_input is not made of finite floating points")
    data, inputs = (len(torch.unique(rows, dim=0)) for rows in (x, seen))
    return require(data == inputs, f"{data} different data are {inputs} different inputs")


def _described(likelihood: Likelihood) -> str:
    params = _params(likelihood, 20)
    x = likelihood(params).sample()
    return check_description(likelihood, lambda part: part(params).log_prob(x))
