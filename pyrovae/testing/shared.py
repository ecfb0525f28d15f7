"""Laws that hold for parts of every role."""

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
from pyrovae.testing.laws import require
from pyrovae.testing.truth import fit_guide, log_evidence
from pyrovae.vae import VAE

BATCHES: Sequence[tuple[int, ...]] = ((), (3,), (2, 3))
ERRORS = 5.0  # standard errors that a comparison of averages allows
NUM_DRAWS = 20_000
NUM_DATA = 6
NUM_PARTICLES = 20_000
STEP = 1e-6  # of differences
REACHES = 0.02  # nats that the largest bound may stay below log p(x)


def grid() -> tuple[Tensor, Tensor]:
    """Return points of the plane ``(N, 2)`` and their areas ``(N,)``, equidistant in t with z = sinh(t).

    They are 0.03 apart near 0, for densities with a kink, and reach to 1490, for heavy tails.
    """
    t = torch.linspace(-8, 8, 601)
    width = t.cosh() * (t[1] - t[0])
    return torch.cartesian_prod(t.sinh(), t.sinh()), torch.cartesian_prod(width, width).prod(-1)


@torch.no_grad()
def check_total(fn: TorchDistribution, points: Tensor, weights: Tensor, *, word: str = "integrates") -> str:
    """Check that a density sums to one over points ``(N, *event_shape)`` with weights ``(N,)``."""
    total = (fn.log_prob(points).exp() * weights).sum().item()
    return require(abs(total - 1) < 1e-3, f"it {word} to {total:.6f}")


@torch.no_grad()
def check_draws(
    drawn: Tensor,
    alone: Sequence[TorchDistribution],
    points: Tensor,
    weights: Tensor,
    *,
    middle: float = 0.0,
    unit: float = 1.0,
) -> str:
    """Check that the draws of each row are those of its own density, and independent of the other rows.

    Moments of ``tanh((x - middle) / unit)`` are compared, which all exist.

    Args:
        drawn: ``(R, NUM_DRAWS, *event_shape)``, of one distribution with that batch shape.
        alone: the distribution of each row by itself.
        points: ``(N, *event_shape)``.
        weights: ``(N,)``.
        middle: of the data.
        unit: of the data.

    """

    def moments(x: Tensor) -> Tensor:
        bounded = ((x.flatten(1) - middle) / unit).tanh()
        return torch.cat([bounded, bounded**2, bounded.prod(-1, keepdim=True)], -1)

    found = [moments(row) for row in drawn]
    scores = [
        standard_errors(row - masses(each, points, weights) @ moments(points))
        for row, each in zip(found, alone, strict=True)
    ]
    largest = max(scores)
    require(largest < ERRORS, f"moments of {NUM_DRAWS} draws: off by {largest:.1f} standard errors at most")
    together = standard_errors((found[0] - found[0].mean(0)) * (found[1] - found[1].mean(0)))
    require(
        together < ERRORS, f"the draws of two data of a batch depend on each other, by {together:.1f} standard errors"
    )
    return f"moments of {NUM_DRAWS} draws: off by {largest:.1f} standard errors at most"


def standard_errors(values: Tensor) -> float:
    """Return how many standard errors the averages of values ``(N, C)``, expected to be 0, are off at most."""
    error = values.std(0) / math.sqrt(len(values))
    return (values.mean(0).abs() / error.clamp(min=1e-12)).max().item()


@torch.no_grad()
def masses(fn: TorchDistribution, points: Tensor, weights: Tensor) -> Tensor:
    """Return what a density gives to each of N points, divided by their sum, since its total is another law."""
    mass = fn.log_prob(points).exp() * weights
    return mass / mass.sum()


def check_gradients(part: nn.Module, score: Callable[[], Tensor], inputs: Tensor | None = None) -> str:
    """Check that the gradient reaches every parameter and each number that the network emits, and is the right one.

    Args:
        part: with the parameters.
        score: the same function of them, and of the inputs, at every call; its sum is differentiated.
        inputs: what the network emits, ``(*, n_params)``.

    """
    wanted: dict[str, Tensor] = {name: p for name, p in part.named_parameters() if p.requires_grad}
    if inputs is not None:
        wanted["the network's output"] = inputs
    if not wanted:
        return "it has none"
    outputs = score()
    require(outputs.requires_grad, f"no gradient for {', '.join(wanted)}")
    found = torch.autograd.grad(outputs.sum(), list(wanted.values()), allow_unused=True, materialize_grads=True)
    grads = dict(zip(wanted, found, strict=True))
    bad = [name for name, grad in grads.items() if not grad.isfinite().all()]
    require(not bad, f"the gradient is not finite for {', '.join(bad)}")
    missing = [name for name, grad in grads.items() if not grad.any()]
    require(not missing, f"no gradient for {', '.join(missing)}")
    if inputs is not None:
        of_each = grads["the network's output"].flatten(0, -2).any(0)  # (n_params,)
        unused = [str(index) for index, reached in enumerate(of_each) if not reached]
        require(not unused, f"of the {len(of_each)} numbers on the last axis, no gradient for {', '.join(unused)}")
    for name, grad in grads.items():
        along, expected = _slopes(wanted[name], grad, score)
        right = abs(along - expected) < 1e-4 * grad.abs().sum().item()
        require(right, f"the gradient for {name} is wrong: {along:.6g} along a line, by differences {expected:.6g}")
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
    """Check that the log-probability of each datum ``(B,)`` is what it is when the datum comes alone."""
    off = (rows - torch.stack(list(alone))).abs().max().item()
    require(off < 1e-8, f"log_prob of a datum changes by {off:.2g} nats with the other data of its batch")


@torch.no_grad()
def check_kl(q_z: TorchDistribution, p_z: TorchDistribution) -> str:
    """Check KL(q || p) of two distributions over two dimensions, where a closed form is registered."""
    try:
        kl = torch.distributions.kl_divergence(q_z, p_z)
    except NotImplementedError:
        return "none: estimated by Monte Carlo"
    require(tuple(kl.shape) == (), f"it has shape {tuple(kl.shape)}, not that of a batch of none, ()")
    z, area = grid()
    log_q, log_p = (fn.log_prob(z) for fn in (q_z, p_z))
    log_q, log_p = (log - (log.exp() * area).sum().log() for log in (log_q, log_p))  # their totals are another law
    inside = log_q > -300
    expected = ((log_q - log_p) * log_q.exp() * area)[inside].sum().item()
    off = abs(kl.item() - expected)
    return require(off < 1e-3 * (1 + expected), f"{kl.item():.6f}, by quadrature {expected:.6f}")


def check_description(part: nn.Module, score: Callable[[nn.Module], Tensor]) -> str:
    """Check that a part can be kept in a run folder and built again, to the same scores."""
    name, package = type(part).__qualname__, type(part).__module__.partition(".")[0]
    require("<locals>" not in name, f"{name} lies in a function, where nothing finds it; move it to a module")
    again = build(json.loads(json.dumps(describe(part))), allow=[package])
    again.load_state_dict(part.state_dict())
    with torch.no_grad():
        off = (score(part) - score(again.eval())).abs().max().item()
    require(
        type(again) is type(part) and off < 1e-8,
        f"a {type(again).__name__} is built whose log_prob is off by {off:.2g} nats; what its options say must follow "
        "from arguments that a description can hold, or lie in parameters and buffers",
    )
    return f"its tensors restored: {', '.join(part.state_dict()) or 'none'}"[:70]


def check_bounds(vae: VAE) -> str:
    """Check that the bounds of a small model are ordered below log p(x) by quadrature, and reach it."""
    vae = vae.double()
    x = vae.generate(NUM_DATA, seed=1)
    fit_guide(vae, x)
    truth = log_evidence(vae, x).mean().item()
    record = particles(vae.model, vae.guide, x, num_particles=NUM_PARTICLES)
    log_weights = record.log_weights
    values = [iwae(log_weights, (k,))[0].mean().item() for k in (1, 5, 500, NUM_PARTICLES)]
    errors = [monte_carlo_variances(log_weights, k).sum(-1).amax().sqrt().item() / len(x) for k in (1, 5, 500)]
    errors.append(errors[-1])
    show_progress = ", ".join(f"{v:.4f}" for v in values) + f" <= {truth:.4f}"
    pairs = zip(values, [*values[1:], truth], errors, strict=True)
    require(all(low <= high + 4 * error + 1e-9 for low, high, error in pairs), f"out of order: {show_progress}")
    return require(truth - values[-1] < REACHES, f"{show_progress}; {truth - values[-1]:.4f} below the truth")
