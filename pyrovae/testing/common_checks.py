"""Checks shared by parts of several kinds."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.bounds import iwae, monte_carlo_variances
from pyrovae.importance.sampling import particles
from pyrovae.runtime.serialization import build, describe
from pyrovae.testing.quadrature import Rule, log_evidence
from pyrovae.testing.small_models import fit_guide
from pyrovae.vae import VAE

Checks = Mapping[str, Callable[[], str]]
Stages = Sequence[Checks]

BATCHES: Sequence[tuple[int, ...]] = ((), (3,), (2, 3))
MAX_ERRORS = 5.0  # allowed difference of averages, in standard errors
NUM_DRAWS = 20_000
NUM_DATA = 6  # data points of the check of bounds
NUM_PARTICLES = 20_000  # particles of the check of bounds
STEP = 1e-6  # step of finite differences
TIGHT = 0.02  # distance of the largest bound below log p(x), in nats, that a fitted guide reaches
LOOSE = 0.25  # likewise, of a normal guide with lighter tails than the posterior


class CheckFailed(Exception):
    """A property does not hold; the text gives the numbers."""


def require(holds: object, detail: str) -> str:
    """Return the detail of a check if a property holds.

    Raises:
        CheckFailed: with the same text if it does not.

    """
    if not holds:
        raise CheckFailed(detail)
    return detail


def require_shape(name: str, shape: Sequence[int], expected: Sequence[int], batch: tuple[int, ...]) -> None:
    """Check a shape under some batch axes."""
    shape, expected = tuple(shape), tuple(expected)
    require(shape == expected, f"{name} has shape {shape} for batch axes {batch}, not {expected}")


class DistributionChecks(ABC):
    """Checks that likelihoods, priors and posteriors share: of densities, draws, gradients and descriptions.

    Args:
        part: the part, in float64 and eval mode.
        event_shape: shape of one event.

    """

    moments: ClassVar[tuple[str, ...]] = ()  # moments that the distribution must have
    verb: str = "integrates"
    tolerance: float = 1e-3  # of the total of the density
    max_shortfall: float = LOOSE  # allowed distance of the largest bound below log p(x), in nats

    def __init__(self, part: nn.Module, event_shape: tuple[int, ...]) -> None:
        self.part, self.event_shape = part, event_shape

    def stages(self) -> Stages:
        """Return the checks by name, in the order in which they run."""
        return (
            {"shapes under any batch axes": self.shapes},
            {
                "the density is normalized": self.normalized,
                "draws agree with the density": self.draws,
                **self.own_checks(),
                "gradients reach every parameter": self.gradients,
                "the description builds the same part": self.described,
            },
            {"bounds against quadrature": lambda: check_bounds(self.small_vae(), self.max_shortfall)},
        )

    @abstractmethod
    def own_checks(self) -> Checks:
        """Return the checks of this kind of part."""

    @abstractmethod
    def small_vae(self) -> VAE:
        """Return a small model with the part."""

    @abstractmethod
    def params(self, *batch: int, far: bool = False) -> Tensor:
        """Return random parameters ``(*batch, ...)``, with ``far`` around other values."""

    @abstractmethod
    def rule(self) -> Rule:
        """Return quadrature points ``(N, *event_shape)`` that cover the support, and their weights ``(N,)``."""

    def distribution(self, params: Tensor, part: nn.Module | None = None) -> TorchDistribution:
        """Return the distribution of some parameters, by default of the part itself."""
        return (part or self.part)(params)

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Parameters of two data points."""
        return self.params(), self.params(far=True)

    @cached_property
    def masses(self) -> Tensor:
        """Probability of each quadrature point for both rows, ``(2, N)``."""
        points, weights = self.rule()
        with torch.no_grad():
            return torch.stack([self.distribution(row).log_prob(points).exp() * weights for row in self.rows])

    def averages(self, values: Tensor) -> Tensor:
        """Return the mean of values ``(N, ...)`` at quadrature points for both rows, ``(2, ...)``."""
        normalized = self.masses / self.masses.sum(-1, keepdim=True)  # the total is a check of its own
        return torch.einsum("rn,n...->r...", normalized, values)

    def shapes(self) -> str:
        """Check the shapes of draws, log-probabilities and moments, and that data points are independent."""
        for batch in BATCHES:
            params = self.params(*batch)
            fn = self.distribution(params)
            require_shape("batch_shape", fn.batch_shape, batch, batch)
            require_shape("event_shape", fn.event_shape, self.event_shape, batch)
            draws = fn.expand(torch.Size((4, *batch))).sample()
            require_shape("a tensor of four draws", draws.shape, (4, *batch, *self.event_shape), batch)
            require_shape("log_prob of four draws", fn.log_prob(draws).shape, (4, *batch), batch)
            for name in self.moments:
                require_shape(name, getattr(fn, name).shape, (*batch, *self.event_shape), batch)
            if len(batch) == 1:
                pairs = zip(params, draws[0], strict=True)
                alone = torch.stack([self.distribution(row).log_prob(value) for row, value in pairs])
                off = (fn.log_prob(draws[0]) - alone).abs().max().item()
                require(off < 1e-8, f"log_prob of a data point changes by {off:.2g} nats with the others of its batch")
        return ", ".join(map(str, BATCHES))

    def normalized(self) -> str:
        """Check that the density of each row sums to one."""
        totals = self.masses.sum(-1)
        worst = totals[(totals - 1).abs().argmax()].item()
        return require(abs(worst - 1) < self.tolerance, f"it {self.verb} to {worst:.6f}")

    def draws(self) -> str:
        """Check that the draws of each row follow its own density and are independent of the other row.

        It compares moments of ``tanh((x - center) / unit)``, which all exist.
        """
        params = torch.stack([row.expand(NUM_DRAWS, *row.shape) for row in self.rows])
        points, _ = self.rule()
        center = self.averages(points).mean(0)
        unit = self.averages((points - center).abs()).mean(0)

        def moments(x: Tensor) -> Tensor:
            bounded = ((x - center) / unit).tanh().flatten(1)
            return torch.cat([bounded, bounded**2, bounded.prod(-1, keepdim=True)], -1)

        sampled, expected = [moments(row) for row in self.distribution(params).sample()], self.averages(moments(points))
        off = max(standard_errors(row - mean) for row, mean in zip(sampled, expected, strict=True))
        detail = require(off < MAX_ERRORS, f"moments of {NUM_DRAWS} draws: off by {off:.1f} standard errors at most")
        first, second = (row - row.mean(0) for row in sampled)
        dependence = standard_errors(first * second)
        require(dependence < MAX_ERRORS, f"draws of two data points are dependent: {dependence:.1f} standard errors")
        return detail

    def gradients(self) -> str:
        """Check the gradients of log_prob."""
        params = self.params(50).requires_grad_()
        x, weights = self.distribution(params.detach()).sample(), torch.rand(50)
        return check_gradients(self.part, lambda: weights * self.distribution(params).log_prob(x), params)

    def described(self) -> str:
        """Check that the description of the part builds the same part."""
        params = self.params(20)
        x = self.distribution(params).sample()
        return check_description(self.part, lambda part: self.distribution(params, part).log_prob(x))


def standard_errors(values: Tensor) -> float:
    """Return the largest distance from 0 of the column means of ``(N, C)``, in standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    return (values.mean(0).abs() / error.clamp(min=1e-12)).max().item()


def check_gradients(
    part: nn.Module, score: Callable[[], Tensor], inputs: Tensor, *, name: str = "the network's output"
) -> str:
    """Check that the gradient reaches every parameter and every number of an input, and equals finite differences.

    Directions have length one, so that a step crosses few kinks of a large network with ReLU.

    Args:
        part: module with the parameters.
        score: function of the parameters and the input; the sum of its result is differentiated.
        inputs: input that requires a gradient, ``(*, n_params)``; it may be empty.
        name: name of the input in messages.

    """
    wanted: dict[str, Tensor] = {name: p for name, p in part.named_parameters() if p.requires_grad}
    if inputs.numel():
        wanted[name] = inputs
    if not wanted:
        return "no parameters"
    outputs = score()
    require(outputs.requires_grad, f"no gradient for {', '.join(wanted)}")
    gradients = torch.autograd.grad(outputs.sum(), list(wanted.values()), allow_unused=True, materialize_grads=True)
    grads = dict(zip(wanted, gradients, strict=True))
    infinite = [key for key, grad in grads.items() if not grad.isfinite().all()]
    require(not infinite, f"the gradient is not finite for {', '.join(infinite)}")
    missing = [key for key, grad in grads.items() if not grad.any()]
    require(not missing, f"no gradient for {', '.join(missing)}")
    if name in grads:
        reached = grads[name].flatten(0, -2).any(0)  # (n_params,)
        unused = [str(index) for index, value in enumerate(reached) if not value]
        require(not unused, f"of the {len(reached)} numbers on the last axis, no gradient for {', '.join(unused)}")
    for key, grad in grads.items():
        direction = torch.randn_like(grad)
        direction /= direction.norm()
        slope, expected = (grad * direction).sum().item(), slope_along(wanted[key], direction, score).item()
        typical = grad.norm().item() / math.sqrt(grad.numel())
        right = abs(slope - expected) < 1e-4 * typical
        require(right, f"the gradient for {key} is wrong: {slope:.6g} along a line, {expected:.6g} by differences")
    return f"{', '.join(wanted)}"[:70]


@torch.no_grad()
def slope_along(tensor: Tensor, direction: Tensor, score: Callable[[], Tensor]) -> Tensor:
    """Return the slope of a summed score along a line through a tensor, by central differences."""
    values, before = [], tensor.clone()
    for side in (STEP, -STEP):
        tensor.copy_(before + side * direction)
        values.append(score().sum())
    tensor.copy_(before)
    return (values[0] - values[1]) / (2 * STEP)


def check_description(part: nn.Module, score: Callable[[nn.Module], Tensor]) -> str:
    """Check that the description of a part in a run folder builds the same part, with the same scores."""
    name, package = type(part).__qualname__, type(part).__module__.partition(".")[0]
    require("<locals>" not in name, f"{name} is defined inside a function and cannot be imported; move it to a module")
    loose = [attribute for attribute, value in vars(part).items() if isinstance(value, Tensor)]
    require(not loose, f"the tensor {', '.join(loose)} does not move to a device; use register_buffer or nn.Parameter")
    again = build(json.loads(json.dumps(describe(part))), allow=[package])
    again.load_state_dict(part.state_dict())
    with torch.no_grad():
        off = (score(part) - score(again.eval())).abs().max().item()
    require(
        type(again) is type(part) and off < 1e-8,
        f"the built {type(again).__name__} differs by {off:.2g}; its state must follow from constructor arguments that "
        "JSON can hold, or be stored in parameters and buffers",
    )
    return f"restored tensors: {', '.join(part.state_dict()) or 'none'}"[:70]


def check_bounds(vae: VAE, max_shortfall: float) -> str:
    """Check that the bounds of a small model increase, stay below log p(x) by quadrature, and come near it."""
    vae = vae.double()
    x = vae.generate(NUM_DATA, seed=1)
    fit_guide(vae, x)
    truth = log_evidence(vae, x).mean().item()
    log_weights = particles(vae.model, vae.guide, x, num_particles=NUM_PARTICLES).log_weights
    values = [iwae(log_weights, (k,))[0].mean().item() for k in (1, 5, 500, NUM_PARTICLES)]
    errors = [monte_carlo_variances(log_weights, k).sum(-1).amax().sqrt().item() / len(x) for k in (1, 5, 500)]
    errors.append(errors[-1])
    text = ", ".join(f"{v:.4f}" for v in values)
    steps = zip(values, [*values[1:], truth], errors, strict=True)
    require(all(low <= high + 4 * error + 1e-9 for low, high, error in steps), f"out of order: {text} <= {truth:.4f}")
    gap = truth - values[-1]
    text += f"; the last {abs(gap):.4f} {'below' if gap > 0 else 'above'} log p(x) {truth:.4f}"
    if gap <= 0:
        text += ", within Monte Carlo error"
    elif TIGHT < gap < max_shortfall:
        text += ": the guide of the check is loose for this density, which may have heavy tails"
    return require(gap < max_shortfall, text)
