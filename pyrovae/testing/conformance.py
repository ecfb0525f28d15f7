"""The conformance checks of one part or objective, chosen by its base class."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn

from pyrovae.likelihoods import Likelihood
from pyrovae.networks import Decoder, Encoder
from pyrovae.objectives import Objective
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.runtime.context import forked_random, validation
from pyrovae.testing.likelihood import likelihood_checks
from pyrovae.testing.network import decoder_checks, encoder_checks
from pyrovae.testing.objective import objective_checks
from pyrovae.testing.posterior import posterior_checks
from pyrovae.testing.prior import prior_checks
from pyrovae.testing.stages import Check, ConformanceReport, Stages, run_stages

__all__ = ["Check", "ConformanceReport", "check"]

Part = Likelihood | Prior | Posterior | Encoder | Decoder | Objective


def check(part: Part, *, seed: int = 0, show_progress: bool = True) -> ConformanceReport:
    """Check a part or an objective against the properties that the package relies on, in float64 on the CPU.

    It takes a few seconds. The part is copied, put in eval mode, and not changed. Later checks are skipped if an
    earlier one that they need fails.

    - *Likelihoods, priors, posteriors*: normalized densities, shapes under any batch axes, draws that agree with the
      density, gradients to every parameter against finite differences, refusal of data outside the support, a
      description that builds the same part, and bounds ``L_1 <= L_5 <= L_500 <= log p(x)`` in a model whose log p(x)
      is known by quadrature, the largest within 0.02 nats of it.
    - *Encoders, decoders*: shapes, independent data points and deterministic output in eval mode, train mode, gradients
      to input and parameters, a description that builds the same network.
    - *Objectives*: terms, expected loss and unbiased gradients on a linear-Gaussian model whose ELBO and log p(x) are
      known in closed form; several particles; steps of `pyro.infer.SVI`.

    Args:
        part: small enough for quadrature: a likelihood of one or two elements (of few levels), a prior or posterior of
            two latent dimensions; a network or an objective of any size.
        seed: seed of all draws. Averages may differ by five standard errors.
        show_progress: whether to print the report.

    Returns:
        One line per check; true if all passed, so that ``assert check(part)`` is a test.

    Raises:
        TypeError: if the part has none of these base classes.
        ValueError: if it is too large, or a prior that takes covariates.

    Example:
        >>> report = check(likelihoods.Laplace((2,)))

    """
    _check_size(part)
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with forked_random(seed), validation(enabled=True):
            report = run_stages(type(part).__name__, _stages(part))
    finally:
        torch.set_default_dtype(dtype)
    if show_progress:
        sys.stdout.write(f"{report}\n")
    return report


def _stages(part: Part) -> Stages:
    part = copy.deepcopy(part)
    if isinstance(part, Objective):
        return objective_checks(part)
    checks: Any = next(checks for base, checks in _CHECKS.items() if isinstance(part, base))
    return checks(part.cpu().double().eval())


_CHECKS: dict[type[nn.Module], Any] = {
    Likelihood: likelihood_checks,
    Prior: prior_checks,
    Posterior: posterior_checks,
    Encoder: encoder_checks,
    Decoder: decoder_checks,
}


def _check_size(part: object) -> None:
    name = type(part).__name__
    if isinstance(part, type):
        raise TypeError(f"`part` must be an object, got the class {part.__name__}; give {part.__name__}(...)")
    if not isinstance(part, (*_CHECKS, Objective)):
        raise TypeError(
            "`part` must be a likelihood, prior, posterior, encoder, decoder or objective, "
            f"got a {name}; derive it from Likelihood, Prior, Posterior, Encoder, Decoder or Objective"
        )
    if isinstance(part, Likelihood) and (not part.x_shape or torch.Size(part.x_shape).numel() > 2):
        raise ValueError(f"checks integrate over x of one or two elements, got {part.x_shape}; build {name}((2,), ...)")
    if isinstance(part, (Prior, Posterior)) and part.latent_dim != 2:
        raise ValueError(f"checks integrate over z of 2 dimensions, got {part.latent_dim}; build {name} with 2")
    if isinstance(part, Prior) and part.conditional:
        raise ValueError(f"checks give a prior no covariates, but {name} takes some; check it with some held fixed")
