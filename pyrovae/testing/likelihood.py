"""Laws of a likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import get_args

import torch
from torch import Tensor

from pyrovae.data.transforms import Form
from pyrovae.likelihoods import Likelihood
from pyrovae.testing.laws import Broken, require
from pyrovae.testing.shared import BATCHES, check_bounds, check_description, check_gradients, check_mean
from pyrovae.testing.truth import small_vae

NUM_DRAWS = 20_000
MOST_COUNTS = 400  # along each of two axes, to which counts are summed


def likelihood_laws(likelihood: Likelihood) -> Mapping[str, Callable[[], str]]:
    """Return the laws of a likelihood of one or two elements, by name."""
    return {
        "form and base measure are stated": lambda: _stated(likelihood),
        "the density is normalized": lambda: _normalized(likelihood),
        "shapes under any batch axes": lambda: _shapes(likelihood),
        "draws agree with the mean": lambda: _draws(likelihood),
        "the wanted mean is where it starts": lambda: _starts(likelihood),
        "gradients reach every parameter": lambda: _gradients(likelihood),
        "data outside the support are refused": lambda: _refuses(likelihood),
        "it is rebuilt from its description": lambda: check_description(likelihood),
        "bounds against quadrature": lambda: check_bounds(small_vae(likelihood=likelihood)),
    }


def _params(likelihood: Likelihood, *batch: int) -> Tensor:
    """Return parameters around the start, of the given batch axes."""
    params = likelihood.initial_params(torch.full(likelihood.x_shape, _middle(likelihood)))
    return params + 0.5 * torch.randn(*batch, *likelihood.param_shape)


def _middle(likelihood: Likelihood) -> float:
    """Return a mean that every likelihood of this form can have."""
    if likelihood.form == "levels":
        return 0.4 * (_num_levels(likelihood) - 1)
    return {"binary": 0.4, "unit": 0.4, "continuous": 0.3, "counts": 2.5}[likelihood.form]


def _num_levels(likelihood: Likelihood) -> int:
    levels = getattr(likelihood, "levels", None)
    if not isinstance(levels, int):
        raise Broken("a likelihood of levels says how many there are; derive it from LevelLikelihood")
    return levels


def _stated(likelihood: Likelihood) -> str:
    measure = "counting" if likelihood.form in ("binary", "levels", "counts") else "Lebesgue"
    require(likelihood.form in get_args(Form), f"form is one of {', '.join(get_args(Form))}, not {likelihood.form!r}")
    found = f"{likelihood.form!r} data have the {measure} measure, and it states {likelihood.base_measure!r}"
    return require(likelihood.base_measure == measure, found)


def _normalized(likelihood: Likelihood) -> str:
    p_x = likelihood(_params(likelihood))
    points, weights = _grid(likelihood)
    size = torch.Size(likelihood.x_shape).numel()
    x = torch.cartesian_prod(*[points] * size).reshape(-1, *likelihood.x_shape)
    volume = torch.cartesian_prod(*[weights] * size).reshape(len(x), -1).prod(-1)
    inside = volume > 0
    total = (p_x.log_prob(x[inside]).exp() * volume[inside]).sum().item()
    word = "sums" if likelihood.base_measure == "counting" else "integrates"
    return require(abs(total - 1) < 1e-3, f"it {word} to {total:.6f}")


def _grid(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Return points that cover the support of one element, and their weights."""
    if likelihood.form == "unit":
        points = (torch.arange(2000) + 0.5) / 2000
        return points, torch.full_like(points, 1 / 2000)
    if likelihood.form == "continuous":
        t = torch.linspace(-12, 12, 2001)
        return 0.3 + 0.5 * t.sinh(), 0.5 * t.cosh() * (t[1] - t[0])
    most = {"binary": 2, "counts": MOST_COUNTS}.get(likelihood.form) or _num_levels(likelihood)
    return torch.arange(float(most)), torch.ones(most)


def _shapes(likelihood: Likelihood) -> str:
    for batch in BATCHES:
        p_x = likelihood(_params(likelihood, *batch))
        x = p_x.sample()
        found = {
            "batch_shape": (tuple(p_x.batch_shape), batch),
            "event_shape": (tuple(p_x.event_shape), likelihood.x_shape),
            "a draw": (tuple(x.shape), (*batch, *likelihood.x_shape)),
            "log_prob": (tuple(p_x.log_prob(x).shape), batch),
            "mean": (tuple(p_x.mean.shape), (*batch, *likelihood.x_shape)),
        }
        for what, (shape, expected) in found.items():
            require(shape == expected, f"{what} has shape {shape} for batch axes {batch}, not {expected}")
    return ", ".join(str(batch) for batch in BATCHES)


def _draws(likelihood: Likelihood) -> str:
    p_x = likelihood(_params(likelihood))
    return check_mean(p_x.sample((NUM_DRAWS,)), p_x.mean, "the mean of draws")


def _starts(likelihood: Likelihood) -> str:
    mean = torch.full(likelihood.x_shape, _middle(likelihood))
    params = likelihood.initial_params(mean)
    require(tuple(params.shape) == likelihood.param_shape, f"initial_params has shape {tuple(params.shape)}")
    off = (likelihood(params).mean - mean).abs().max().item()
    return require(off < 0.1 * mean.abs().max(), f"the mean is off by {off:.2g}")


def _gradients(likelihood: Likelihood) -> str:
    params = _params(likelihood, 50).requires_grad_()
    x = likelihood(params.detach()).sample()
    weights = torch.rand(50)
    return check_gradients(likelihood, weights * likelihood(params).log_prob(x), [params])


def _refuses(likelihood: Likelihood) -> str:
    outside = {"binary": 0.5, "unit": 1.5, "continuous": math.nan, "levels": 0.5, "counts": -1.0}[likelihood.form]
    p_x = likelihood(_params(likelihood))
    try:
        p_x.log_prob(torch.full(likelihood.x_shape, outside))
    except ValueError as error:
        return " ".join(str(error).split())[:70] + "..."
    raise Broken(f"the value {outside} is scored without a word; give the distribution its support")
