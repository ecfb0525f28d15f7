"""One number: a mean over data with its two standard errors, or the reason why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pyrovae.results.table import Number

ROUNDING = 1e-3  # nats by which float32 may put a log-probability above 0


@dataclass(frozen=True)
class Estimate:
    """A mean over data, in nats per datum, with its two standard errors.

    Attributes:
        name: "ELBO", "reconstruction", "KL", "IWAE", "AIS" or "BDMC".
        num_particles: K, particles per datum inside the logarithm for an IWAE bound, in the average for the terms of
            the ELBO; chains for AIS and BDMC.
        value: the estimate, or None where there is none.
        se_data: standard error over the data, None for a single datum.
        se_monte_carlo: standard error over the draws at fixed data, None for a single draw.
        why: the reason for a None.

    """

    name: str
    num_particles: int
    value: float | None
    se_data: float | None
    se_monte_carlo: float | None
    why: str | None = None

    @property
    def label(self) -> str:
        """The name in tables and pictures, such as ``L_50``."""
        return f"L_{self.num_particles}" if self.name == "IWAE" else self.name

    def cells(self, *, signed: bool = False) -> tuple[Number, Number, Number]:
        """Return value and both standard errors as they stand in tables."""
        return Number(self.value, signed=signed), Number(self.se_data), Number(self.se_monte_carlo, 4)

    @classmethod
    def over_data(cls, name: str, num_particles: int, values: Tensor, variances: Tensor) -> Estimate:
        """Return the mean over data.

        Args:
            name: of the estimate.
            num_particles: K.
            values: of each datum ``(N,)``, nats.
            variances: ``(C, N)``, C estimates of the Monte Carlo variance of each; summed over the data, the largest
                counts. See `pyrovae.bounds.monte_carlo_variances`.

        """
        bad = int((~values.isfinite()).sum())
        if bad:
            why = f"{bad} of {len(values)} data have a value that is not finite, which no mean may hide"
            return cls(name, num_particles, None, None, None, why)
        known = variances.sum(1).clamp(min=0)
        known = known[known.isfinite()]
        monte_carlo = known.sqrt().amax().item() / len(values) if len(known) else None
        mean, error = mean_and_error(values)
        return cls(
            name,
            num_particles,
            mean,
            error,
            monte_carlo,
            "a single datum has no standard error" if error is None else None,
        )


def require_possible(*estimates: Estimate) -> None:
    """Refuse an estimate of a log-probability that is above zero by more than four standard errors.

    Args:
        estimates: bounds on the log-probability of discrete data. Those without a Monte Carlo standard error, of a
            single draw, are passed over.

    Raises:
        ValueError: with the estimate and the usual causes.

    """
    for estimate in estimates:
        error = estimate.se_monte_carlo
        if estimate.value is not None and error is not None and estimate.value > ROUNDING + 4 * error:
            raise ValueError(
                f"a log-probability of discrete data is at most 0, but {estimate.label} is {estimate.value:.4g} nats: "
                "the guide has no density on the prior's measure, or a log_prob is wrong; check the distributions of "
                "the latent variables in model and guide, and those of your own"
            )


def mean_and_error(values: Tensor) -> tuple[float | None, float | None]:
    """Return the mean of values ``(N,)`` and its standard error: None where one is not finite, or of a single one."""
    if not len(values) or not values.isfinite().all():
        return None, None
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return values.mean().item(), error
