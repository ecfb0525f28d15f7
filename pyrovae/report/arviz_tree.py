"""Draws from p(z | x) as a tree for ArviZ."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray
from torch import Tensor

from pyrovae.results import Particles
from pyrovae.results.tables import printable
from pyrovae.runtime.annotations import checked

PACKED = {"zlib": True, "complevel": 4, "shuffle": True}
DATA_AXES = {2: ("column",), 3: ("height", "width"), 4: ("channel", "height", "width")}
DRAWN = ("chain", "draw", "datum")


@checked
def to_datatree(
    record: Particles,
    x: Tensor,
    *,
    covariates: Sequence[Tensor] = (),
    labels: Tensor | None = None,
    per_datum: Mapping[str, Tensor] | None = None,
    attributes: Mapping[str, str | float | None] | None = None,
    num_draws: int | None = None,
    seed: int = 0,
) -> xarray.DataTree:
    """Resample particles in proportion to their weights and return the draws in ArviZ's groups.

    The draws follow p(z | x) as K grows; with few effective particles many draws are copies of one particle. The
    weights are importance weights: do not use ArviZ's ``loo`` and ``compare`` on them.

    *Using the SIR algorithm to simulate posterior distributions (Rubin 1988)*, in Bayesian Statistics 3

    Args:
        record: K particles of B data, from `pyrovae.particles`.
        x: ``(B, ...)``, the data.
        covariates: ``(B, ...)`` each, of a conditional model.
        labels: ``(B,)``.
        per_datum: ``(B,)`` each, such as k-hat and ESS; stored beside the weights.
        attributes: attributes of the tree, such as bounds, seed, hash and versions; None is left out.
        num_draws: S, number of draws per datum; K by default.
        seed: seed of the resampling.

    Returns:
        Groups ``posterior`` (each latent site, over chain, draw, datum, and its own dimensions), ``log_likelihood`` (x,
        nats), ``sample_stats`` (log_weights of the particles before resampling, nats, and per_datum),
        ``observed_data`` (x, images over channel, height, width) and, if given, ``constant_data`` (covariates, labels).
        The coordinate ``datum`` is the row of x. Data without a particle of positive, finite weight are left out and
        named in the attribute "data_left_out". `to_netcdf` writes the tree.

    Example:
        >>> to_datatree(record, x).to_netcdf("draws.nc", engine="h5netcdf")
        >>> arviz.plot_pair(arviz.from_netcdf("draws.nc"), coords={"datum": 0})

    """
    log_weights = record.log_weights.detach().cpu().double()
    size, num_data = log_weights.shape
    usable = log_weights.amax(0).isfinite()
    rows, missing = usable.nonzero().squeeze(-1), (~usable).nonzero().squeeze(-1).tolist()
    log_weights = log_weights[:, rows]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(log_weights.softmax(0).T, num_draws or size, replacement=True, generator=generator).T

    def of_rows(name: str, value: Tensor) -> xarray.Variable:
        return _variable(name, value.detach().cpu()[rows], ("datum",))

    def resampled(name: str, value: Tensor) -> xarray.Variable:
        draws = value.detach().cpu()[:, rows][chosen, torch.arange(len(rows))]  # (S, B, ...)
        return _variable(name, draws.unsqueeze(0), DRAWN)

    sites = {printable(name).replace("/", "."): value.float() for name, value in record.z.items()}  # / starts a group
    constant = {"covariates" if len(covariates) == 1 else f"covariates_{i}": c for i, c in enumerate(covariates)}
    constant |= {} if labels is None else {"labels": labels}
    diagnostics = {re.sub(r"\W+", "_", name): value for name, value in (per_datum or {}).items()}
    weights = _variable("", log_weights.unsqueeze(0), ("chain", "particle", "datum"))
    observed = _variable("x", x.detach().cpu()[rows], ("datum", *DATA_AXES.get(x.ndim, ())))
    groups: dict[str, dict[str, xarray.Variable]] = {
        "posterior": {name: resampled(name, value) for name, value in sites.items()},
        "log_likelihood": {"x": resampled("x", record.log_likelihood)},
        "sample_stats": {"log_weights": weights, **{name: of_rows(name, v) for name, v in diagnostics.items()}},
        "observed_data": {"x": observed},
        "constant_data": {name: of_rows(name, value) for name, value in constant.items()},
    }
    tree = xarray.DataTree.from_dict({name: _dataset(group, rows) for name, group in groups.items() if group})
    tree.attrs = {
        "inference_library": "pyrovae",
        "num_particles": size,
        "num_data": num_data,
        "seed": seed,
        **({"data_left_out": ", ".join(map(str, missing))} if missing else {}),
        **{
            name: printable(value) if isinstance(value, str) else value
            for name, value in (attributes or {}).items()
            if value is not None
        },
    }
    return tree


def to_netcdf(tree: xarray.DataTree) -> bytes:
    """Return a tree as the content of a compressed netCDF file; the same tree gives the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree.nc"
        tree.to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()


def _variable(name: str, value: Tensor, leading: tuple[str, ...]) -> xarray.Variable:
    """Return a compressed variable over the leading dimensions and its own dimensions, named after it."""
    num_own = value.ndim - len(leading)
    own = (f"{name}_dim",) if num_own == 1 else tuple(f"{name}_dim_{i}" for i in range(num_own))
    return xarray.Variable((*leading, *own), value.numpy(), encoding=dict(PACKED))


def _dataset(variables: dict[str, xarray.Variable], rows: Tensor) -> xarray.Dataset:
    """Return variables with coordinates: the rows of the data for ``datum``, numbers from 0 for other dimensions."""
    sizes = {name: size for variable in variables.values() for name, size in variable.sizes.items()}
    coordinates = {name: rows.numpy() if name == "datum" else np.arange(size) for name, size in sizes.items()}
    return xarray.Dataset(dict(variables), coords=coordinates)
