"""Checks shared by parts of several kinds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.bounds import iwae, monte_carlo_variances
from pyrovae.importance.sampling import particles
from pyrovae.runtime.serialization import build, describe
from pyrovae.testing.quadrature import log_evidence, plane
from pyrovae.testing.small_models import fit_guide
from pyrovae.testing.stages import require
from pyrovae.vae import VAE

BATCHES: Sequence[tuple[int, ...]] = ((), (3,), (2, 3))
MAX_ERRORS = 5.0  # allowed difference of averages, in standard errors
NUM_DRAWS = 20_000
NUM_DATA = 6  # data points of the check of bounds
NUM_PARTICLES = 20_000  # particles of the check of bounds
STEP = 1e-6  # step of finite differences
MAX_SHORTFALL = 0.02  # allowed distance of the largest bound below log p(x), in nats


@torch.no_grad()
def check_total(
    fn: TorchDistribution, points: Tensor, weights: Tensor, *, verb: str = "integrates", tolerance: float = 1e-3
) -> str:
    """Check that a density sums to one over points ``(N, *event_shape)`` with weights ``(N,)``."""
    total = (fn.log_prob(points).exp() * weights).sum().item()
    return require(abs(total - 1) < tolerance, f"it {verb} to {total:.6f}")


@torch.no_grad()
def check_draws(
    draws: Tensor,
    rows: Sequence[TorchDistribution],
    points: Tensor,
    weights: Tensor,
    *,
    center: float = 0.0,
    unit: float = 1.0,
) -> str:
    """Check that the draws of each row follow its own density and are independent of the other rows.

    It compares moments of ``tanh((x - center) / unit)``, which all exist.

    Args:
        draws: ``(R, NUM_DRAWS, *event_shape)``, from one distribution of batch shape ``(R, NUM_DRAWS)``.
        rows: the distribution of each row by itself.
        points: quadrature points ``(N, *event_shape)``.
        weights: quadrature weights ``(N,)``.
        center: typical value of an element.
        unit: scale on which elements differ.

    """

    def moments(x: Tensor) -> Tensor:
        bounded = ((x.flatten(1) - center) / unit).tanh()
        return torch.cat([bounded, bounded**2, bounded.prod(-1, keepdim=True)], -1)

    sampled, at_points = [moments(row) for row in draws], moments(points)
    largest = max(
        standard_errors(sample - masses(row, points, weights) @ at_points)
        for sample, row in zip(sampled, rows, strict=True)
    )
    detail = require(
        largest < MAX_ERRORS, f"moments of {NUM_DRAWS} draws: off by {largest:.1f} standard errors at most"
    )
    first, second = (sample - sample.mean(0) for sample in sampled[:2])
    dependence = standard_errors(first * second)
    require(dependence < MAX_ERRORS, f"draws of two data points are dependent: {dependence:.1f} standard errors")
    return detail


def standard_errors(values: Tensor) -> float:
    """Return the largest distance from 0 of the column means of ``(N, C)``, in standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    return (values.mean(0).abs() / error.clamp(min=1e-12)).max().item()


@torch.no_grad()
def masses(fn: TorchDistribution, points: Tensor, weights: Tensor) -> Tensor:
    """Return the probability of each quadrature point, ``(N,)``, normalized: the total is another check."""
    mass = fn.log_prob(points).exp() * weights
    return mass / mass.sum()


def check_gradients(
    part: nn.Module, score: Callable[[], Tensor], inputs: Tensor | None = None, *, name: str = "the network's output"
) -> str:
    """Check that the gradient reaches every parameter and every number of an input, and equals finite differences.

    Args:
        part: module with the parameters.
        score: function of the parameters and the input; the sum of its result is differentiated.
        inputs: input that requires a gradient, ``(*, n_params)``.
        name: name of the input in messages.

    """
    wanted: dict[str, Tensor] = {name: p for name, p in part.named_parameters() if p.requires_grad}
    if inputs is not None:
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
    if inputs is not None:
        reached = grads[name].flatten(0, -2).any(0)  # (n_params,)
        unused = [str(index) for index, value in enumerate(reached) if not value]
        require(not unused, f"of the {len(reached)} numbers on the last axis, no gradient for {', '.join(unused)}")
    for key, grad in grads.items():
        slope, expected = _slopes(wanted[key], grad, score)
        right = abs(slope - expected) < 1e-4 * grad.abs().sum().item()
        require(right, f"the gradient for {key} is wrong: {slope:.6g} along a line, {expected:.6g} by differences")
    return f"{', '.join(wanted)}"[:70]


@torch.no_grad()
def _slopes(tensor: Tensor, grad: Tensor, score: Callable[[], Tensor]) -> tuple[float, float]:
    """Return the slope of a summed score along a random line through a tensor, by gradient and by differences."""
    direction = torch.randn_like(tensor)
    values, before = [], tensor.clone()
    for side in (STEP, -STEP):
        tensor.copy_(before + side * direction)
        values.append(score().sum())
    tensor.copy_(before)
    return (grad * direction).sum().item(), ((values[0] - values[1]) / (2 * STEP)).item()


def check_rows(rows: Tensor, alone: Sequence[Tensor]) -> None:
    """Check that the log-probability of each data point ``(B,)`` does not depend on the others of its batch."""
    off = (rows - torch.stack(list(alone))).abs().max().item()
    require(off < 1e-8, f"log_prob of a data point changes by {off:.2g} nats with the other data points of its batch")


@torch.no_grad()
def check_kl(q_z: TorchDistribution, p_z: TorchDistribution) -> str:
    """Check KL(q || p) of two distributions over two dimensions, if a closed form is registered."""
    try:
        kl = torch.distributions.kl_divergence(q_z, p_z)
    except NotImplementedError:
        return "no closed form: estimated by Monte Carlo"
    require(tuple(kl.shape) == (), f"it has shape {tuple(kl.shape)}, not ()")
    z, area = plane()
    log_q, log_p = (fn.log_prob(z) for fn in (q_z, p_z))
    log_q, log_p = (log - (log.exp() * area).sum().log() for log in (log_q, log_p))  # the total is another check
    inside = log_q > -300
    expected = ((log_q - log_p) * log_q.exp() * area)[inside].sum().item()
    off = abs(kl.item() - expected)
    return require(off < 1e-3 * (1 + expected), f"{kl.item():.6f}, by quadrature {expected:.6f}")


def check_description(part: nn.Module, score: Callable[[nn.Module], Tensor]) -> str:
    """Check that the description of a part in a run folder builds the same part, with the same scores."""
    name, package = type(part).__qualname__, type(part).__module__.partition(".")[0]
    require("<locals>" not in name, f"{name} is defined inside a function and cannot be imported; move it to a module")
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


def check_bounds(vae: VAE) -> str:
    """Check that the bounds of a small model increase, stay below log p(x) by quadrature, and reach it."""
    vae = vae.double()
    x = vae.generate(NUM_DATA, seed=1)
    fit_guide(vae, x)
    truth = log_evidence(vae, x).mean().item()
    log_weights = particles(vae.model, vae.guide, x, num_particles=NUM_PARTICLES).log_weights
    values = [iwae(log_weights, (k,))[0].mean().item() for k in (1, 5, 500, NUM_PARTICLES)]
    errors = [monte_carlo_variances(log_weights, k).sum(-1).amax().sqrt().item() / len(x) for k in (1, 5, 500)]
    errors.append(errors[-1])
    text = ", ".join(f"{v:.4f}" for v in values) + f" <= {truth:.4f}"
    steps = zip(values, [*values[1:], truth], errors, strict=True)
    require(all(low <= high + 4 * error + 1e-9 for low, high, error in steps), f"out of order: {text}")
    return require(truth - values[-1] < MAX_SHORTFALL, f"{text}; {truth - values[-1]:.4f} below the truth")
