"""Draws from p(z | x) as a tree that ArviZ reads."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray
from torch import Tensor

from pyrovae.results import Particles
from pyrovae.results.tables import printable

PACKED = {"zlib": True, "complevel": 4, "shuffle": True}
DATA_AXES = {2: ("column",), 3: ("height", "width"), 4: ("channel", "height", "width")}

Variables = Mapping[str, xarray.Variable]


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
    leave_out: bool = False,
) -> xarray.DataTree:
    """Resample particles in proportion to their weights and lay them out in ArviZ's groups.

    The draws follow p(z | x) as K grows; with few effective particles many of them are copies of one. The weights are
    those of a proposal, not of posterior draws: ArviZ's ``loo`` and ``compare`` mean nothing here.

    *Using the SIR algorithm to simulate posterior distributions (Rubin 1988)*, in Bayesian Statistics 3

    Args:
        record: from `pyrovae.particles`, K particles of B data.
        x: ``(B, ...)``, the data.
        covariates: ``(B, ...)`` each, of a conditional model.
        labels: ``(B,)``.
        per_datum: ``(B,)`` each, such as k-hat and ESS; kept beside the weights.
        attributes: of the whole, such as bounds, seed, hash and versions; those that are None are left out.
        num_draws: S, how many draws per datum; K by default.
        seed: of the resampling.
        leave_out: data without a particle of positive, finite weight are left out and named in the attribute
            "data_left_out", instead of refused.

    Returns:
        Groups ``posterior`` (each latent site, over chain, draw, datum, and its own dimensions), ``log_likelihood`` (x,
        nats), ``sample_stats`` (log_weights of the particles before resampling, nats, and per_datum),
        ``observed_data`` (x, images over channel, height, width) and, where there are such, ``constant_data``
        (covariates, labels). The coordinate ``datum`` is the row of x. Write it by `to_netcdf`.

    Raises:
        ValueError: if a datum has no particle of positive, finite weight and is not to be left out.
        TypeError: if an attribute is neither text nor a number.

    Example:
        >>> to_datatree(record, x).to_netcdf("draws.nc", engine="h5netcdf")
        >>> arviz.plot_pair(arviz.from_netcdf("draws.nc"), coords={"datum": 0})

    """
    log_weights = record.log_weights.detach().cpu().double()
    size, num_data = log_weights.shape
    kept, bad = _kept(log_weights, leave_out=leave_out)
    log_weights = log_weights[:, kept]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(log_weights.softmax(0).T, num_draws or size, replacement=True, generator=generator).T
    column = torch.arange(len(kept))
    z = {  # a slash would be read as a path of groups
        printable(name).replace("/", "."): value.detach().cpu()[:, kept][chosen, column].float()
        for name, value in record.z.items()
    }
    likelihood = record.log_likelihood.detach().cpu()[:, kept][chosen, column]  # (S, B)
    drawn = ("chain", "draw", "datum")
    constant = {"covariates" if len(covariates) == 1 else f"covariates_{i}": c for i, c in enumerate(covariates)}
    constant |= {} if labels is None else {"labels": labels}
    groups: dict[str, Variables] = {
        "posterior": {name: _variable(value.unsqueeze(0), drawn, name) for name, value in z.items()},
        "log_likelihood": {"x": _variable(likelihood.unsqueeze(0), drawn)},
        "sample_stats": {
            "log_weights": _variable(log_weights.unsqueeze(0), ("chain", "particle", "datum")),
            **{_identifier(name): _variable(value[kept], ("datum",)) for name, value in _on_cpu(per_datum or {})},
        },
        "observed_data": {"x": _variable(x.detach().cpu()[kept], ("datum", *DATA_AXES.get(x.ndim, ())), "x")},
        "constant_data": {name: _variable(value[kept], ("datum",), name) for name, value in _on_cpu(constant)},
    }
    tree = xarray.DataTree.from_dict({name: _dataset(held, kept) for name, held in groups.items() if held})
    tree.attrs = {
        "inference_library": "pyrovae",
        "num_particles": size,
        "num_data": num_data,
        "seed": seed,
        **({"data_left_out": ", ".join(map(str, bad))} if bad else {}),
        **_attributes(attributes or {}),
    }
    return tree


def to_netcdf(tree: xarray.DataTree) -> bytes:
    """Return a tree as the content of a netCDF file, compressed; the same tree gives the same bytes.

    Raises:
        ValueError: if there is no space for a temporary file.

    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tree.nc"
            tree.to_netcdf(path, engine="h5netcdf")
            return path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"netCDF goes through a temporary file, which cannot be written ({error.strerror or error}); free space, "
            "or set TMPDIR to another folder"
        ) from None


def _kept(log_weights: Tensor, *, leave_out: bool) -> tuple[Tensor, list[int]]:
    """Return the rows of data with a particle of positive, finite weight, and the others."""
    usable = log_weights.amax(0).isfinite()
    bad = (~usable).nonzero().squeeze(-1).tolist()
    if bad and not leave_out:
        which = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(
            f"draws need a particle of positive, finite weight for each datum, but {len(bad)} of {len(usable)} data "
            f"have none (rows {which}); leave them out (leave_out=True), or draw more particles"
        )
    return usable.nonzero().squeeze(-1), bad


def _on_cpu(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value.detach().cpu()) for name, value in tensors.items())


def _variable(value: Tensor, lead: tuple[str, ...], name: str = "") -> xarray.Variable:
    """Return a compressed variable over the leading dimensions and dimensions of its own, named after it."""
    own = value.ndim - len(lead)
    names = (f"{name}_dim",) if own == 1 else tuple(f"{name}_dim_{i}" for i in range(own))
    return xarray.Variable((*lead, *names), value.numpy(), encoding=dict(PACKED))


def _dataset(variables: Variables, data: Tensor) -> xarray.Dataset:
    """Return variables with a coordinate for each dimension: the rows for ``datum``, numbers from 0 for the others."""
    sizes = {name: size for variable in variables.values() for name, size in variable.sizes.items()}
    places = {name: data.numpy() if name == "datum" else np.arange(size) for name, size in sizes.items()}
    return xarray.Dataset(dict(variables), coords=places)


def _identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def _attributes(given: Mapping[str, str | float | None]) -> dict[str, str | float]:
    for name, value in given.items():
        if value is not None and not isinstance(value, (str, int, float)):
            raise TypeError(
                f"attributes of a netCDF file are text or numbers, but {name!r} is a {type(value).__name__}; "
                f"give str(...) or several attributes"
            )
    return {
        name: int(value) if isinstance(value, bool) else printable(value) if isinstance(value, str) else value
        for name, value in given.items()
        if value is not None
    }
