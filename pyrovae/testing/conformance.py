"""The conformance checks of one part or objective, chosen by its base class."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pyrovae.likelihoods import Likelihood
from pyrovae.networks import Decoder, Encoder
from pyrovae.objectives import Objective
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.programs.site_checks import support_of
from pyrovae.runtime.annotations import checked
from pyrovae.runtime.context import forked_random, validation
from pyrovae.testing.common_checks import CheckFailed, Stages
from pyrovae.testing.latent import PosteriorChecks, PriorChecks
from pyrovae.testing.likelihood import LikelihoodChecks
from pyrovae.testing.network import NetworkChecks
from pyrovae.testing.objective import ObjectiveChecks

Part = Likelihood | Prior | Posterior | Encoder | Decoder | Objective


@dataclass(frozen=True)
class Check:
    """The result of one check of a part.

    Attributes:
        name: the property that must hold.
        passed: whether it holds; None if it was skipped because an earlier check failed.
        detail: the numbers that show it, or the error.

    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, repr=False)
class ConformanceReport:
    """The results of all checks of one part; true if all passed.

    Attributes:
        part: name of its class.
        checks: in the order in which they ran.

    """

    part: str
    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """Return one line per check and a summary."""
        width = max(len(check.name) for check in self.checks)
        words = {True: "pass", False: "FAIL", None: "skip"}
        lines = [f"{words[check.passed]}  {check.name.ljust(width)}  {check.detail}" for check in self.checks]
        return "\n".join([*(line.rstrip() for line in lines), repr(self)])

    def __repr__(self) -> str:
        failed = sum(check.passed is False for check in self.checks)
        return f"{self.part} {f'fails {failed} of {len(self.checks)} checks' if failed else 'passes all checks'}"


@checked
def check(part: Part, *, seed: int = 0, show_progress: bool = True) -> ConformanceReport:
    """Check a part or an objective against the properties that the package relies on, in float64 on the CPU.

    It takes a few seconds. The part is copied, put in eval mode, and not changed. Later checks are skipped if an
    earlier one that they need fails.

    - *Likelihoods, priors, posteriors*: normalized densities, shapes under any batch axes, draws that agree with the
      density, gradients to every parameter against finite differences, refusal of data outside the support, a
      description that builds the same part, and bounds ``L_1 <= L_5 <= L_500 <= log p(x)`` in a model whose log p(x)
      is known by quadrature. The largest must come within 0.02 nats of it, or 0.25 for priors and likelihoods: the
      normal guide of the check is loose for heavy tails.
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
        ValueError: if it is too large, or a prior of bounded support or with covariates.

    Example:
        >>> report = check(likelihoods.Laplace((2,)))

    """
    _check_size(part)
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with forked_random(seed), validation(enabled=True):
            report = ConformanceReport(type(part).__name__, _run(_stages(part)))
    finally:
        torch.set_default_dtype(dtype)
    if show_progress:
        sys.stdout.write(f"{report}\n")
    return report


def _stages(part: Part) -> Stages:
    part = copy.deepcopy(part)
    if isinstance(part, Objective):
        return ObjectiveChecks(part).stages()
    part = part.cpu().double().eval()
    if isinstance(part, Likelihood):
        return LikelihoodChecks(part).stages()
    if isinstance(part, Prior):
        return PriorChecks(part, (2,)).stages()
    if isinstance(part, Posterior):
        return PosteriorChecks(part, (2,)).stages()
    return NetworkChecks(part).stages()


def _run(stages: Stages) -> tuple[Check, ...]:
    """Run checks stage by stage; if a check fails, later stages are skipped."""
    results: list[Check] = []
    for stage in stages:
        failed = [check.name for check in results if check.passed is False]
        for name, run in stage.items():
            results.append(Check(name, None, f"needs: {failed[0]}") if failed else _run_check(name, run))
    return tuple(results)


def _run_check(name: str, run: Callable[[], str]) -> Check:
    """Run a check; any exception that the user's part raises fails it."""
    try:
        return Check(name, passed=True, detail=run())
    except CheckFailed as failure:
        return Check(name, passed=False, detail=str(failure))
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return Check(name, passed=False, detail=f"{type(error).__name__}: {text}")


def _check_size(part: Part) -> None:
    name = type(part).__name__
    if isinstance(part, Likelihood) and (not part.x_shape or torch.Size(part.x_shape).numel() > 2):
        raise ValueError(f"checks integrate over x of one or two elements, got {part.x_shape}; build {name}((2,), ...)")
    if isinstance(part, (Prior, Posterior)) and part.latent_dim != 2:
        raise ValueError(f"checks integrate over z of 2 dimensions, got {part.latent_dim}; build {name} with 2")
    if isinstance(part, Prior) and part.conditional:
        raise ValueError(f"checks give a prior no covariates, but {name} takes some; check it with some held fixed")
    if isinstance(part, Prior) and hasattr(support_of(part()), "lower_bound"):
        raise ValueError(f"checks score normal draws, but the support of {name} is bounded; give one on all of R^2")
