"""Draws from p(z | x) as a tree that ArviZ reads."""

from __future__ import annotations

import numpy as np
import torch
import xarray
from torch import Tensor

from pyrovae.results import Particles


def to_datatree(record: Particles, x: Tensor, *, num_draws: int | None = None, seed: int = 0) -> xarray.DataTree:
    """Resample particles in proportion to their weights and lay them out in ArviZ's groups.

    The draws follow p(z | x) as K grows; with few effective particles many of them are copies of one.

    *Using the SIR algorithm to simulate posterior distributions (Rubin 1988)*, in Bayesian Statistics 3

    Args:
        record: from `pyrovae.particles`, K particles of B data.
        x: ``(B, ...)``, the data.
        num_draws: S, how many draws per datum; K by default.
        seed: of the resampling.

    Returns:
        Groups ``posterior`` (each latent site, over chain, draw, datum, and its own dimensions), ``log_likelihood`` (x,
        nats), ``sample_stats`` (log_weights of the particles before resampling, nats) and ``observed_data``.

    Raises:
        ValueError: if a datum has no particle of positive, finite weight.

    Example:
        >>> to_datatree(record, x).to_netcdf("draws.nc", engine="h5netcdf")
        >>> arviz.plot_pair(arviz.from_netcdf("draws.nc"), coords={"datum": 0})

    """
    log_weights = record.log_weights.cpu().double()
    size, num_data = log_weights.shape
    if not log_weights.amax(0).isfinite().all():
        bad = int((~log_weights.amax(0).isfinite()).sum())
        raise ValueError(
            f"draws need a particle of positive, finite weight for each datum, but {bad} of {num_data} data have none; "
            "leave them out, or draw more particles"
        )
    generator = torch.Generator().manual_seed(seed)
    draws = num_draws or size
    chosen = torch.multinomial(log_weights.softmax(0).T, draws, replacement=True, generator=generator).T  # (S, B)
    data = torch.arange(num_data)

    def dataset(variables: dict[str, Tensor], lead: tuple[str, ...]) -> xarray.Dataset:
        named = {}
        for name, value in variables.items():
            own = tuple(f"{name}_dim_{i}" for i in range(value.ndim + (lead[0] == "chain") - len(lead)))
            array = value.detach().cpu().numpy()
            named[name] = ((*lead, *own), array[np.newaxis] if lead[0] == "chain" else array)
        return xarray.Dataset(named)

    z = {name: value.cpu()[chosen, data] for name, value in record.z.items()}
    return xarray.DataTree.from_dict(
        {
            "posterior": dataset(z, ("chain", "draw", "datum")),
            "log_likelihood": dataset({"x": record.log_likelihood.cpu()[chosen, data]}, ("chain", "draw", "datum")),
            "sample_stats": dataset({"log_weights": log_weights}, ("chain", "particle", "datum")),
            "observed_data": dataset({"x": x}, ("datum",)),
        }
    )
