"""The check of one part, by its role."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
from torch import nn

from pyrovae.likelihoods import Likelihood
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.runtime.context import forked_random, validation
from pyrovae.testing.laws import Laws, Stages, go_through
from pyrovae.testing.likelihood import likelihood_laws
from pyrovae.testing.posterior import posterior_laws
from pyrovae.testing.prior import prior_laws


def check(part: Likelihood | Prior | Posterior, *, seed: int = 0, show_progress: bool = True) -> Laws:
    """Check a likelihood, a prior or a posterior against the laws of its role, in float64, on the CPU.

    Normalized densities, shapes under any batch axes, draws that agree with the density, gradients to every parameter,
    refusals, a description that builds the same part, and bounds: ``L_1 <= L_5 <= L_500 <= log p(x)`` in a model whose
    log p(x) is known by quadrature, the largest within 0.02 nats of it. It takes a few seconds, in evaluation mode, and
    the part itself is not changed. Laws that build on one that is broken are left out.

    Args:
        part: small enough for quadrature: a likelihood of one or two elements (of few levels), a prior or posterior of
            two latent dimensions.
        seed: of all draws. A law that compares averages allows five standard errors.
        show_progress: whether the findings are printed.

    Returns:
        One line for each law; true if all hold, so that ``assert check(part)`` is a test.

    Raises:
        TypeError: if it is none of the three.
        ValueError: if it is too large, or a prior that takes covariates.

    Example:
        >>> laws = check(likelihoods.Laplace((2,)))

    """
    laws = _laws_of(part)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with forked_random(seed), validation(enabled=True):
            found = go_through(type(part).__name__, laws(copy.deepcopy(part).cpu().double().eval()))
    finally:
        torch.set_default_dtype(before)
    if show_progress:
        sys.stdout.write(f"{found}\n")
    return found


def _laws_of(part: nn.Module) -> Callable[..., Stages]:
    name = type(part).__name__
    if isinstance(part, type):
        raise TypeError(f"a check takes a part, but received the class {part.__name__}; make one of it")
    if isinstance(part, Likelihood):
        if not part.x_shape or torch.Size(part.x_shape).numel() > 2:
            raise ValueError(f"a check integrates over x, so that it takes few elements; build {name}((2,), ...)")
        return likelihood_laws
    if isinstance(part, (Prior, Posterior)):
        if part.latent_dim != 2:
            raise ValueError(f"a check integrates over z, so that it takes two dimensions; build {name} with 2")
        if getattr(part, "conditional", False):
            raise ValueError(f"a check knows no covariates, which {name} takes; check it with some of them held fixed")
        return prior_laws if isinstance(part, Prior) else posterior_laws
    raise TypeError(
        f"a check takes a likelihood, a prior or a posterior, but received a {name}; derive it from "
        "likelihoods.Likelihood, priors.Prior or posteriors.Posterior"
    )
