"""Conformance checks of a posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae.posteriors import Posterior
from pyrovae.priors import StandardNormal
from pyrovae.runtime.context import forked_random
from pyrovae.testing.common_checks import (
    BATCHES,
    NUM_DRAWS,
    check_bounds,
    check_description,
    check_draws,
    check_gradients,
    check_kl,
    check_rows,
    check_total,
    masses,
)
from pyrovae.testing.quadrature import plane
from pyrovae.testing.small_models import small_vae
from pyrovae.testing.stages import Stages, require

MOMENT_TOLERANCE = 0.25  # allowed error of mean and stddev in standard deviations; a flow estimates them from few draws


def posterior_checks(posterior: Posterior) -> Stages:
    """Return the checks of a posterior of two latent dimensions, by name."""
    return (
        {"shapes under any batch axes": lambda: _shapes(posterior)},
        {
            "the density is normalized": lambda: check_total(posterior(_params(posterior)), *plane()),
            "draws agree with the density": lambda: _draws(posterior),
            "mean and stddev agree with the density": lambda: _moments(posterior),
            "log_prob of a draw equals log_prob of its value": lambda: _own_draws(posterior),
            "gradients reach every parameter": lambda: _gradients(posterior),
            "the closed-form KL is right": lambda: check_kl(posterior(_params(posterior)), StandardNormal(2)()),
            "the description builds the same part": lambda: _described(posterior),
        },
        {"bounds against quadrature": lambda: check_bounds(small_vae(posterior=posterior))},
    )


def _params(posterior: Posterior, *batch: int) -> Tensor:
    return 0.5 * torch.randn(*batch, *posterior.param_shape)


def _shapes(posterior: Posterior) -> str:
    for batch in BATCHES:
        params = _params(posterior, *batch)
        q_z = posterior(params)
        require(tuple(q_z.batch_shape) == batch, f"batch_shape is {tuple(q_z.batch_shape)}, not {batch}")
        require(tuple(q_z.event_shape) == (2,), f"event_shape is {tuple(q_z.event_shape)}, not (2,)")
        z = q_z.expand((4, *batch)).sample()
        require(tuple(z.shape) == (4, *batch, 2), f"four particles have shape {tuple(z.shape)} for batch axes {batch}")
        shape = tuple(q_z.log_prob(z).shape)
        require(shape == (4, *batch), f"log_prob of four particles has shape {shape} for batch axes {batch}")
        for name in ("mean", "stddev"):
            shape = tuple(getattr(q_z, name).shape)
            require(shape == (*batch, 2), f"{name} has shape {shape} for batch axes {batch}")
        if len(batch) == 1:
            check_rows(
                q_z.log_prob(z[0]), [posterior(p).log_prob(value) for p, value in zip(params, z[0], strict=True)]
            )
    return ", ".join(str(batch) for batch in BATCHES)


@torch.no_grad()
def _moments(posterior: Posterior) -> str:
    q_z = posterior(_params(posterior))
    z, area = plane()
    mass = masses(q_z, z, area)
    mean = mass @ z
    stddev = (mass @ (z - mean) ** 2).sqrt()
    off = {"mean": (q_z.mean - mean) / stddev, "stddev": q_z.stddev / stddev - 1}
    largest = {name: value.abs().max().item() for name, value in off.items()}
    detail = ", ".join(f"{name} off by {value:.2f} standard deviations" for name, value in largest.items())
    return require(all(value < MOMENT_TOLERANCE for value in largest.values()), detail)


def _draws(posterior: Posterior) -> str:
    rows = [_params(posterior), _params(posterior) + 1.0]
    drawn = posterior(torch.stack([row.expand(NUM_DRAWS, *row.shape) for row in rows])).sample()
    return check_draws(drawn, [posterior(row) for row in rows], *plane())


def _own_draws(posterior: Posterior) -> str:
    q_z = posterior(_params(posterior, 50))
    z = q_z.rsample() if q_z.has_rsample else q_z.sample()
    off = (q_z.log_prob(z) - q_z.log_prob(z.detach().clone())).abs().max().item()
    return require(off < 1e-8, f"differs by {off:.2g} nats from log_prob of a copy of the draw")


def _gradients(posterior: Posterior) -> str:
    params = _params(posterior, 50).requires_grad_()
    q_z = posterior(params)
    require(q_z.has_rsample, f"draws of {type(q_z).__name__} have no gradient; choose a distribution with has_rsample")
    z = q_z.rsample()
    require(z.requires_grad, "rsample returns draws without gradient")
    weights, values = torch.rand(50), z.detach()

    def pathwise() -> Tensor:
        with forked_random(0):
            return weights * (posterior(params).rsample() ** 3).sum(-1)

    detail = check_gradients(posterior, pathwise, params)
    check_gradients(posterior, lambda: weights * posterior(params).log_prob(values), params)
    return detail


def _described(posterior: Posterior) -> str:
    params, z = _params(posterior, 20), torch.randn(20, 2)
    return check_description(posterior, lambda part: part(params).log_prob(z))
