"""Conformance checks of a likelihood."""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.data.transforms import Form
from pyrovae.likelihoods import Likelihood
from pyrovae.testing import quadrature
from pyrovae.testing.common_checks import (
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
from pyrovae.testing.small_models import small_vae
from pyrovae.testing.stages import CheckFailed, Stages, require

MAX_COUNT = 400  # largest count of the sums over each of two elements
UNIT_TOLERANCE = 5e-3  # of the total of a density that is infinite at 1, where floating-point numbers end 1e-16 below


def likelihood_checks(likelihood: Likelihood) -> Stages:
    """Return the checks of a likelihood of one or two elements, by name."""
    return (
        {"form and base measure are stated": lambda: _stated(likelihood)},
        {"shapes under any batch axes": lambda: _shapes(likelihood)},
        {
            "the density is normalized": lambda: _normalized(likelihood),
            "draws agree with the density": lambda: _draws(likelihood),
            "the mean agrees with the density": lambda: _mean(likelihood),
            "initial_params gives the mean": lambda: _initial(likelihood),
            "gradients reach every parameter": lambda: _gradients(likelihood),
            "data outside the support raise an error": lambda: _rejects(likelihood),
            "encoder_input distinguishes data points": lambda: _encoder_input(likelihood),
            "the description builds the same part": lambda: _described(likelihood),
        },
        {"bounds against quadrature": lambda: check_bounds(small_vae(likelihood=likelihood))},
    )


def _params(likelihood: Likelihood, *batch: int, far: bool = False) -> Tensor:
    """Return random parameters ``(*batch, *param_shape)`` around the initial ones of a mean."""
    params = likelihood.initial_params(torch.full(likelihood.x_shape, (_far_mean if far else _mean_value)(likelihood)))
    shape = tuple(params.shape)
    require(shape == likelihood.param_shape, f"initial_params has shape {shape}, not {likelihood.param_shape}")
    return params + 0.5 * torch.randn(*batch, *likelihood.param_shape)


def _mean_value(likelihood: Likelihood) -> float:
    """Return a mean that is valid for every likelihood of this form."""
    if likelihood.form == "levels":
        return 0.4 * (_num_levels(likelihood) - 1)
    return {"binary": 0.4, "unit": 0.3, "continuous": 0.3, "counts": 2.5}[likelihood.form]


def _far_mean(likelihood: Likelihood) -> float:
    """Return a second valid mean."""
    if likelihood.form == "levels":
        return 0.8 * (_num_levels(likelihood) - 1)
    return {"binary": 0.9, "unit": 0.1, "continuous": 4.0, "counts": 10.0}[likelihood.form]


def _num_levels(likelihood: Likelihood) -> int:
    levels = getattr(likelihood, "levels", None)
    if not isinstance(levels, int):
        raise CheckFailed("a likelihood of levels needs an attribute `levels`; derive it from LevelLikelihood")
    return levels


def _stated(likelihood: Likelihood) -> str:
    form, measure = getattr(likelihood, "form", None), getattr(likelihood, "base_measure", None)
    require(form in get_args(Form), f"`form` must be one of {', '.join(get_args(Form))}, got {form!r}")
    expected = "counting" if form in ("binary", "levels", "counts") else "Lebesgue"
    require(measure == expected, f"`base_measure` of {form!r} data must be {expected!r}, got {measure!r}")
    return f"{form} data, {measure} measure"


def _shapes(likelihood: Likelihood) -> str:
    for batch in BATCHES:
        params = _params(likelihood, *batch)
        p_x = likelihood(params)
        x = p_x.sample()
        shapes = {
            "batch_shape": (tuple(p_x.batch_shape), batch),
            "event_shape": (tuple(p_x.event_shape), likelihood.x_shape),
            "a draw": (tuple(x.shape), (*batch, *likelihood.x_shape)),
            "log_prob": (tuple(p_x.log_prob(x).shape), batch),
            "log_prob of four draws": (tuple(p_x.log_prob(p_x.sample((4,))).shape), (4, *batch)),
            "mean": (tuple(p_x.mean.shape), (*batch, *likelihood.x_shape)),
        }
        for name, (shape, expected) in shapes.items():
            require(shape == expected, f"{name} has shape {shape} for batch axes {batch}, not {expected}")
        if len(batch) == 1:
            check_rows(p_x.log_prob(x), [likelihood(p).log_prob(value) for p, value in zip(params, x, strict=True)])
    return ", ".join(str(batch) for batch in BATCHES)


def _normalized(likelihood: Likelihood) -> str:
    options: Any = {
        "verb": "sums" if likelihood.base_measure == "counting" else "integrates",
        "tolerance": UNIT_TOLERANCE if likelihood.form == "unit" else 1e-3,
    }
    check_total(likelihood(_params(likelihood, far=True)), *_rule(likelihood), **options)
    return check_total(likelihood(_params(likelihood)), *_rule(likelihood), **options)


def _rule(likelihood: Likelihood) -> quadrature.Rule:
    """Return quadrature points ``(N, *x_shape)`` that cover the support, and their weights ``(N,)``."""
    if likelihood.form == "unit":
        rule = quadrature.unit_interval(401)
    elif likelihood.form == "continuous":
        rule = quadrature.real_line(1001, reach=12.0, center=0.3, scale=0.5)
    else:
        num = {"binary": 2, "counts": MAX_COUNT}.get(likelihood.form) or _num_levels(likelihood)
        rule = quadrature.integers(num)
    return quadrature.product_rule(rule, likelihood.x_shape)


def _draws(likelihood: Likelihood) -> str:
    unit = {"binary": 0.5, "unit": 0.3, "continuous": 1.0, "counts": 2.5}.get(likelihood.form)
    center = _mean_value(likelihood)
    rows = [_params(likelihood), _params(likelihood, far=True)]
    drawn = likelihood(torch.stack([row.expand(NUM_DRAWS, *row.shape) for row in rows])).sample()
    return check_draws(drawn, [likelihood(row) for row in rows], *_rule(likelihood), center=center, unit=unit or center)


@torch.no_grad()
def _mean(likelihood: Likelihood) -> str:
    rows = [_params(likelihood), _params(likelihood, far=True)]
    mean = likelihood(torch.stack(rows)).mean
    require(mean.isfinite().all(), "the mean is not finite, but reconstructions and figures need one")
    x, weights = _rule(likelihood)
    exact = [torch.einsum("n,n...->...", masses(likelihood(row), x, weights), x) for row in rows]
    off = (mean - torch.stack(exact)).abs().max().item()
    return require(off < 1e-3 * (1 + abs(_far_mean(likelihood))), f"off by {off:.2g} at most")


@torch.no_grad()
def _initial(likelihood: Likelihood) -> str:
    size = torch.Size(likelihood.x_shape).numel()
    wanted = _mean_value(likelihood) * torch.linspace(1.0, 1.4, size).reshape(likelihood.x_shape)
    off = ((likelihood(likelihood.initial_params(wanted)).mean - wanted) / wanted).abs().max().item()
    return require(off < 0.1, f"the mean is off by {100 * off:.2g} %")


def _gradients(likelihood: Likelihood) -> str:
    params = _params(likelihood, 50).requires_grad_()
    x = likelihood(params.detach()).sample()
    weights = torch.rand(50)
    return check_gradients(likelihood, lambda: weights * likelihood(params).log_prob(x), params)


def _rejects(likelihood: Likelihood) -> str:
    outside = {"binary": (0.5, 2.0), "unit": (1.5, -0.5), "continuous": (math.nan,), "counts": (-1.0, 0.5)}
    values = outside.get(likelihood.form) or (-1.0, 0.5, float(_num_levels(likelihood)))
    p_x = likelihood(_params(likelihood))
    text = [_rejection(p_x, value) for value in values][0]
    return text if len(text) <= 70 else text[:67] + "..."


def _rejection(p_x: TorchDistribution, value: float) -> str:
    """Return the error for a data point with this value in one element."""
    x = p_x.sample().to(torch.get_default_dtype(), copy=True)
    x.view(-1)[0] = value
    try:
        p_x.log_prob(x)
    except ValueError as error:
        return " ".join(str(error).split())
    raise CheckFailed(
        f"log_prob accepts the value {value}; use `Likelihood.independent` and a distribution with the right support"
    )


@torch.no_grad()
def _encoder_input(likelihood: Likelihood) -> str:
    x = likelihood(_params(likelihood, 50)).sample()
    inputs = likelihood.encoder_input(x)
    require(inputs.shape == x.shape, f"encoder_input has shape {tuple(inputs.shape)} for data {tuple(x.shape)}")
    require(
        inputs.is_floating_point() and inputs.isfinite().all(), "encoder_input is not finite floating-point numbers"
    )
    num_data, num_inputs = (len(torch.unique(rows, dim=0)) for rows in (x, inputs))
    return require(num_data == num_inputs, f"{num_data} distinct data points become {num_inputs} distinct inputs")


def _described(likelihood: Likelihood) -> str:
    params = _params(likelihood, 20)
    x = likelihood(params).sample()
    return check_description(likelihood, lambda part: part(params).log_prob(x))
