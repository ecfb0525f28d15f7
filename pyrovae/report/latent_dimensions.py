"""Posterior moments of data, the place of the prior, and the information in each latent dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from pyrovae.runtime.context import forked_random, module_mode, stream_seed
from pyrovae.vae import VAE

ROWS = 4096  # data encoded at once
DRAWS = 20_000  # draws from a prior that is not a diagonal normal
TAIL = 0.001  # share of the draws at either end that is clamped before moments, which a Student t may not have


def first_tensor(vae: VAE) -> Tensor:
    """Return a tensor of the model, for its device and dtype."""
    return next(chain(vae.parameters(), vae.buffers()), torch.empty(0))


def device_of(vae: VAE) -> torch.device:
    """Return the device of a model."""
    return first_tensor(vae).device


@torch.no_grad()
def encode(vae: VAE, x: Tensor, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of q(z | x) for each datum ``(N, *x_shape)``, each ``(N, D)``, on the CPU."""
    moments = []
    with module_mode([vae], training=False):
        for args in zip(*(tensor.split(ROWS) for tensor in (x, *covariates)), strict=True):
            q = vae.encode(*(rows.to(device_of(vae)) for rows in args))
            moments.append(torch.stack([q.mean, q.stddev]).cpu().double())
    mean, stddev = torch.cat(moments, 1)
    return mean, stddev


def first_rows(tensor: Tensor, num: int) -> Tensor:
    """Return the first `num` rows of ``(N, ...)``, from the start again after the last one."""
    return tensor[torch.arange(num, device=tensor.device) % len(tensor)]


@dataclass(frozen=True)
class Importance:
    """Importance of each latent dimension for the data."""

    values: Tensor  # (D,)
    name: str  # of the values
    form: str  # format of a value

    @property
    def ranked(self) -> list[int]:
        """The dimensions, the most important first."""
        return self.values.argsort(descending=True, stable=True).tolist()

    def text(self, dim: int) -> str:
        """Return the value of one dimension as text."""
        return self.form.format(self.values[dim].item())


@torch.no_grad()
def latent_importance(vae: VAE, mean: Tensor, stddev: Tensor, covariates: Sequence[Tensor] = ()) -> Importance:
    """Return the mean KL of each latent dimension; a ratio of variances if no KL per dimension exists.

    The KL needs a diagonal normal prior. Under another prior no dimension has a KL of its own, and the importance is
    the variance of the codes over the data divided by the mean posterior variance, 0 for a dimension that the posterior
    ignores. A posterior of another form counts by mean and standard deviation of each dimension.

    Args:
        vae: model.
        mean: ``(N, D)``, from `encode`.
        stddev: ``(N, D)``.
        covariates: ``(N, ...)`` each, of a conditional model.

    """
    normal = normal_prior(vae, covariates)
    if normal is None:
        ratio = mean.var(0, correction=0) / stddev.square().mean(0)
        return Importance(ratio, "variance of the codes over posterior variance", "ratio {:.2f}")
    loc, scale = normal
    ratio = stddev / scale
    kl = 0.5 * (((mean - loc) / scale) ** 2 + ratio**2 - 1) - ratio.log()  # (N, D)
    return Importance(kl.mean(0), "mean KL to the prior", "{:.2f} nats")


@torch.no_grad()
def normal_prior(vae: VAE, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor] | None:
    """Return location and scale of a diagonal normal prior, on the CPU; None for any other prior.

    Each is ``(D,)``, or ``(N, D)`` for a conditional prior and N rows of covariates.
    """
    with module_mode([vae], training=False):
        p_z = _prior(vae, covariates)
    base = p_z.base_dist if isinstance(p_z, torch.distributions.Independent) else None
    if not isinstance(base, torch.distributions.Normal):
        return None
    return base.loc.detach().cpu().double(), base.scale.detach().cpu().double()


@torch.no_grad()
def prior_draws(vae: VAE, covariates: Sequence[Tensor] = ()) -> Tensor:
    """Return draws from the prior, ``(DRAWS, D)``, the same in every call; of a conditional prior given all rows."""
    repeated = [first_rows(covariate, DRAWS) for covariate in covariates]
    with module_mode([vae], training=False), forked_random(stream_seed(0, "prior"), device_of(vae)):
        p_z = _prior(vae, repeated)
        return p_z.sample(() if vae.prior.conditional else (DRAWS,)).cpu().double()


def prior_moments(vae: VAE, covariates: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent dimension under the prior, ``(D,)`` each, given one datum.

    The moments of a diagonal normal are exact, others are moments of draws.
    """
    normal = normal_prior(vae, covariates)
    if normal is not None:
        loc, scale = normal
        return loc.reshape(-1), scale.reshape(-1)
    draws = prior_draws(vae, covariates)
    draws = draws.clamp(*draws.quantile(torch.tensor([TAIL, 1 - TAIL], dtype=draws.dtype), dim=0))
    return draws.mean(0), draws.std(0)


def prior_quantiles(vae: VAE, probabilities: Tensor, covariates: Sequence[Tensor] = ()) -> Tensor:
    """Return quantiles ``(P, D)`` of each latent dimension under the prior, for one datum and P probabilities."""
    normal = normal_prior(vae, covariates)
    if normal is None:
        return prior_draws(vae, covariates).quantile(probabilities.double(), dim=0)
    loc, scale = normal
    return loc + scale * torch.special.ndtri(probabilities.double()).unsqueeze(-1)


def check_dims(dims: Sequence[int], latent_dim: int, *, numbers: Sequence[int] = (1, 2)) -> list[int]:
    """Return the dimensions of a figure; raise a ValueError if they are not so many different ones of a model."""
    if len(set(dims)) != len(dims) or len(dims) not in numbers or not all(0 <= dim < latent_dim for dim in dims):
        raise ValueError(
            f"`dims` must be {' or '.join(map(str, numbers))} different latent dimensions from 0 to {latent_dim - 1}, "
            f"got {tuple(dims)}"
        )
    return list(dims)


def _prior(vae: VAE, covariates: Sequence[Tensor]) -> torch.distributions.Distribution:
    return vae.prior(*(c.to(device_of(vae)) for c in covariates)) if vae.prior.conditional else vae.prior()
