"""Conformance checks of a likelihood."""

from __future__ import annotations

import copy
import math
from typing import get_args

import torch
from torch import Tensor

from pyrovae.data.transforms import Form
from pyrovae.likelihoods import Likelihood
from pyrovae.testing import quadrature
from pyrovae.testing.common_checks import CheckFailed, Checks, DistributionChecks, Stages, require
from pyrovae.testing.small_models import small_vae
from pyrovae.vae import VAE

MAX_COUNT = 400  # largest count of the sums over each of two elements
UNIT_TOLERANCE = 5e-3  # of the total of a density that is infinite at 1, where floating-point numbers end 1e-16 below
MEANS = {  # two valid means of an element, by form of data
    "binary": (0.4, 0.9),
    "unit": (0.3, 0.1),
    "continuous": (0.3, 4.0),
    "counts": (2.5, 10.0),
}
OUTSIDE = {
    "binary": (0.5, 2.0),
    "unit": (1.5, -0.5, math.nan),
    "continuous": (math.nan,),
    "counts": (-1.0, 0.5, math.inf),
}


class LikelihoodChecks(DistributionChecks):
    """Checks of a likelihood of one or two elements."""

    part: Likelihood
    moments = ("mean",)

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__(likelihood, likelihood.x_shape)
        if getattr(likelihood, "base_measure", None) == "counting":
            self.verb = "sums"
        if getattr(likelihood, "form", None) == "unit":
            self.tolerance = UNIT_TOLERANCE

    def stages(self) -> Stages:
        """Return the checks by name; checks of attributes come first."""
        return {"form and base measure are stated": self.stated}, *super().stages()

    def own_checks(self) -> Checks:
        """Return the checks of means, the support and the encoder's input."""
        return {
            "the mean agrees with the density": self.mean,
            "initial_params gives the mean": self.initial_params,
            "start fits learned scales": self.start,
            "data outside the support raise an error": self.support,
            "encoder_input distinguishes data points": self.encoder_input,
        }

    def small_vae(self) -> VAE:
        """Return a small model with the likelihood."""
        return small_vae(likelihood=self.part)

    def mean_value(self, *, far: bool = False) -> float:
        """Return a mean of an element that is valid for every likelihood of this form."""
        if self.part.form == "levels":
            return (0.8 if far else 0.4) * (self.num_levels() - 1)
        return MEANS[self.part.form][far]

    def num_levels(self) -> int:
        """Return the number of levels of the likelihood, if it scores levels."""
        levels = getattr(self.part, "levels", None)
        if not isinstance(levels, int):
            raise CheckFailed("a likelihood of levels needs an attribute `levels`; derive it from LevelLikelihood")
        return levels

    def params(self, *batch: int, far: bool = False) -> Tensor:
        """Return random parameters around the initial ones of a mean."""
        params = self.part.initial_params(torch.full(self.event_shape, self.mean_value(far=far)))
        shape = tuple(params.shape)
        require(shape == self.part.param_shape, f"initial_params has shape {shape}, not {self.part.param_shape}")
        return params + 0.5 * torch.randn(*batch, *self.part.param_shape)

    def rule(self) -> quadrature.Rule:
        """Return a rule for the support."""
        form = self.part.form
        if form == "unit":
            rule = quadrature.unit_interval(401)
        elif form == "continuous":
            rule = quadrature.real_line(1001, center=0.3, scale=0.5)
        else:
            rule = quadrature.integers({"binary": 2, "counts": MAX_COUNT}.get(form) or self.num_levels())
        return quadrature.product_rule(rule, self.event_shape)

    def stated(self) -> str:
        """Check the attributes `form` and `base_measure`."""
        form, measure = getattr(self.part, "form", None), getattr(self.part, "base_measure", None)
        require(form in get_args(Form), f"`form` must be one of {', '.join(get_args(Form))}, got {form!r}")
        expected = "counting" if form in ("binary", "levels", "counts") else "Lebesgue"
        require(measure == expected, f"`base_measure` of {form!r} data must be {expected!r}, got {measure!r}")
        return f"{form} data, {measure} measure"

    @torch.no_grad()
    def mean(self) -> str:
        """Check the mean against quadrature."""
        mean = self.part(torch.stack(self.rows)).mean
        require(mean.isfinite().all(), "the mean is not finite, but reconstructions and figures need one")
        off = (mean - self.averages(self.rule()[0])).abs().max().item()
        return require(off < 1e-3 * (1 + self.mean_value(far=True)), f"off by {off:.2g} at most")

    @torch.no_grad()
    def initial_params(self) -> str:
        """Check the mean at initial parameters."""
        size = torch.Size(self.event_shape).numel()
        mean = self.mean_value() * torch.linspace(1.0, 1.4, size).reshape(self.event_shape)
        off = ((self.part(self.part.initial_params(mean)).mean - mean) / mean).abs().max().item()
        return require(off < 0.1, f"the mean is off by {100 * off:.2g} %")

    @torch.no_grad()
    def start(self) -> str:
        """Check that `start` returns initial parameters, and makes data drawn around them no less likely."""
        part = copy.deepcopy(self.part)
        x = part(self.params(200)).sample()
        mean = x.mean(0)
        before = part(part.initial_params(mean)).log_prob(x).mean()
        params = part.start(x, mean)
        require(params.shape == part.param_shape, f"start returns shape {tuple(params.shape)}, not {part.param_shape}")
        gain = (part(params).log_prob(x).mean() - before).item()
        return require(gain > -0.1, f"the log-likelihood at the mean changes by {gain:+.2g} nats per datum")

    def support(self) -> str:
        """Check that data outside the support raise a ValueError, and return its text."""
        p_x, text = self.part(self.params()), ""
        for value in OUTSIDE.get(self.part.form) or (-1.0, 0.5, float(self.num_levels())):
            x = p_x.sample().to(torch.get_default_dtype(), copy=True)
            x.view(-1)[0] = value
            try:
                p_x.log_prob(x)
            except ValueError as error:
                text = text or " ".join(str(error).split())
            else:
                raise CheckFailed(
                    f"log_prob accepts the value {value}; use `Likelihood.independent` and a distribution with the "
                    "right support"
                )
        return text if len(text) <= 70 else text[:67] + "..."

    @torch.no_grad()
    def encoder_input(self) -> str:
        """Check that the encoder's input is finite, and distinct for distinct data."""
        x = self.part(self.params(50)).sample()
        inputs = self.part.encoder_input(x)
        require(inputs.shape == x.shape, f"encoder_input has shape {tuple(inputs.shape)} for data {tuple(x.shape)}")
        finite = inputs.is_floating_point() and inputs.isfinite().all()
        require(finite, "encoder_input is not finite floating-point numbers")
        num_data, num_inputs = (len(torch.unique(rows, dim=0)) for rows in (x, inputs))
        return require(num_data == num_inputs, f"{num_data} distinct data points become {num_inputs} distinct inputs")
