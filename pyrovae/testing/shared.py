"""Laws that hold for parts of every role."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyrovae.bounds import iwae, monte_carlo_variances
from pyrovae.describe import build, describe
from pyrovae.particles import particles
from pyrovae.testing.laws import require
from pyrovae.testing.truth import fit_guide, log_evidence
from pyrovae.vae import VAE

BATCHES: Sequence[tuple[int, ...]] = ((), (3,), (2, 3))
ERRORS = 5.0  # standard errors that a comparison of averages allows
NUM_DATA = 6
NUM_PARTICLES = 20_000
REACHES = 0.02  # nats that the largest bound may stay below log p(x)


def check_description(part: nn.Module) -> str:
    """Check that a part can be kept in a run folder and built again."""
    package = type(part).__module__.partition(".")[0]
    again = build(json.loads(json.dumps(describe(part))), allow=[package])
    again.load_state_dict(part.state_dict())
    same = type(again) is type(part) and all(
        torch.equal(a, b) for a, b in zip(part.state_dict().values(), again.state_dict().values(), strict=True)
    )
    return require(
        same, f"describe and build give {type(again).__name__}, its {len(part.state_dict())} tensors restored"
    )


def check_gradients(part: nn.Module, outputs: Tensor, inputs: Sequence[Tensor] = ()) -> str:
    """Check that the gradient of a sum reaches all inputs and every parameter of a part."""
    part.zero_grad()
    if not outputs.requires_grad and not list(part.parameters()):
        return "it has none"
    outputs.sum().backward()
    missing = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    missing += ["the network's output" for tensor in inputs if tensor.grad is None or not tensor.grad.abs().sum() > 0]
    bad = [name for name, p in part.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    require(not bad, f"the gradient is not finite for {', '.join(bad)}")
    count = len(list(part.parameters()))
    return require(
        not missing, f"no gradient for {', '.join(missing)}" if missing else f"{count} tensors of parameters"
    )


def check_mean(draws: Tensor, expected: Tensor, what: str) -> str:
    """Check that the average of draws ``(N, ...)`` agrees with what is expected ``(...)``."""
    error = draws.std(0) / math.sqrt(len(draws))
    z = ((draws.mean(0) - expected).abs() / error.clamp(min=1e-12)).max().item()
    return require(z < ERRORS, f"{what}: off by {z:.1f} standard errors at most")


def check_bounds(vae: VAE, *, fitted: bool = True) -> str:
    """Check that the bounds of a small model are ordered below log p(x) by quadrature, and reach it."""
    vae = vae.double()
    x = vae.generate(NUM_DATA, seed=1)
    if fitted:
        fit_guide(vae, x)
    truth = log_evidence(vae, x).mean().item()
    record = particles(vae.model, vae.guide, x, num_particles=NUM_PARTICLES)
    log_weights = record.log_weights
    values = [iwae(log_weights, (k,))[0].mean().item() for k in (1, 5, 500, NUM_PARTICLES)]
    errors = [monte_carlo_variances(log_weights, k).sum(-1).amax().sqrt().item() / len(x) for k in (1, 5, 500)]
    errors.append(errors[-1])
    shown = ", ".join(f"{v:.4f}" for v in values) + f" <= {truth:.4f}"
    pairs = zip(values, [*values[1:], truth], errors, strict=True)
    require(all(low <= high + 4 * error + 1e-9 for low, high, error in pairs), f"out of order: {shown}")
    return require(truth - values[-1] < REACHES, f"{shown}; {truth - values[-1]:.4f} below the truth")
