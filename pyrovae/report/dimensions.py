"""What each latent dimension carries, and where the prior puts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.report.codes import device_of, first_rows
from pyrovae.runtime.context import forked_random, module_mode, stream_seed
from pyrovae.vae import VAE

DRAWS = 20_000  # from a prior that is no diagonal normal
TAIL = 0.001  # of the draws at either end, pulled in before moments are taken, which a Student t may not have


@dataclass(frozen=True)
class Carried:
    """How much each latent dimension tells about the data.

    Attributes:
        values: ``(D,)``.
        name: what they are, for titles.
        form: how one is printed.

    """

    values: Tensor
    name: str
    form: str

    @property
    def ranked(self) -> list[int]:
        """The dimensions, the one that carries most first."""
        return self.values.argsort(descending=True, stable=True).tolist()

    def text(self, dim: int) -> str:
        """Return the value of one dimension as it is printed."""
        return self.form.format(self.values[dim].item())


@torch.no_grad()
def carried(vae: VAE, mean: Tensor, stddev: Tensor, covariates: Sequence[Tensor] = ()) -> Carried:
    """Return for each latent dimension the mean KL from the posterior to the prior, where the prior is diagonal normal.

    Under another prior no dimension has a KL of its own: there it is the variance of the codes over the data, divided
    by the mean posterior variance, 0 for a dimension that the posterior ignores. A posterior with correlations or of
    another form counts by mean and standard deviation of each dimension.

    Args:
        vae: the model.
        mean: ``(N, D)``, from `pyrovae.report.codes.codes`.
        stddev: ``(N, D)``.
        covariates: ``(N, ...)`` each, of a conditional model.

    """
    normal = normal_prior(vae, covariates)
    if normal is not None:
        return Carried(kl_of_normals(mean, stddev, *normal), "mean KL to the prior", "{:.2f} nats")
    ratio = mean.var(0, correction=0) / stddev.square().mean(0)
    return Carried(ratio, "variance of the codes over posterior variance", "ratio {:.2f}")


def kl_of_normals(mean: Tensor, stddev: Tensor, loc: Tensor | float = 0.0, scale: Tensor | float = 1.0) -> Tensor:
    """Return for each latent dimension the mean over data of KL(N(mean, stddev^2) || N(loc, scale^2)), ``(D,)``, nats.

    Args:
        mean: ``(N, D)``.
        stddev: ``(N, D)``.
        loc: of the prior, ``(D,)`` or ``(N, D)``.
        scale: of the prior, alike.

    """
    ratio = stddev / scale
    return (0.5 * (((mean - loc) / scale) ** 2 + ratio**2 - 1) - ratio.log()).mean(0)


@torch.no_grad()
def normal_prior(vae: VAE, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor] | None:
    """Return location and scale of a prior that is a diagonal normal, on the CPU; None for any other.

    Each is ``(D,)``, or ``(N, D)`` where the prior is conditional and there are N rows of covariates.
    """
    with module_mode([vae], training=False):
        p_z = _prior(vae, covariates)
    base = p_z.base_dist if isinstance(p_z, torch.distributions.Independent) else None
    if not isinstance(base, torch.distributions.Normal):
        return None
    return base.loc.cpu().double(), base.scale.cpu().double()


@torch.no_grad()
def prior_draws(vae: VAE, covariates: Sequence[Tensor] = ()) -> Tensor:
    """Return draws from the prior, ``(DRAWS, D)``, the same at every call; of a conditional one given all the rows."""
    repeated = [first_rows(covariate, DRAWS) for covariate in covariates]
    with module_mode([vae], training=False), forked_random(stream_seed(0, "prior"), device_of(vae)):
        p_z = _prior(vae, repeated)
        return p_z.sample(() if vae.prior.conditional else (DRAWS,)).cpu().double()


def prior_spread(vae: VAE, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent dimension under the prior, ``(D,)`` each.

    Those of a diagonal normal are exact, others are of its draws.

    Args:
        vae: the model.
        covariates: ``(1, ...)`` each, of one datum.

    """
    normal = normal_prior(vae, covariates)
    if normal is not None:
        loc, scale = normal
        return loc.reshape(-1), scale.reshape(-1)
    draws = prior_draws(vae, covariates)
    draws = draws.clamp(*draws.quantile(torch.tensor([TAIL, 1 - TAIL], dtype=draws.dtype), dim=0))
    return draws.mean(0), draws.std(0)


def _prior(vae: VAE, covariates: Sequence[Tensor]) -> torch.distributions.Distribution:
    return vae.prior(*(c.to(device_of(vae)) for c in covariates)) if vae.prior.conditional else vae.prior()
