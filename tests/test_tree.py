"""Draws from p(z | x) that the installed ArviZ reads."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from conftest import linear_gaussian, pair_of

from pyrovae.particles import particles
from pyrovae.report import to_datatree
from pyrovae.results import Particles

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
    import arviz


def test_resampled_draws_follow_the_posterior_and_arviz_reads_them(tmp_path: Path) -> None:
    truth = linear_gaussian()
    x = truth.sample(4)
    record = particles(*pair_of(truth, offset=0.2, widen=1.3), x, num_particles=20_000)
    tree = to_datatree(record, x)
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    back = arviz.from_netcdf(tmp_path / "draws.nc")
    assert {"posterior", "log_likelihood", "sample_stats", "observed_data"} <= {str(g).strip("/") for g in groups(back)}
    z = torch.as_tensor(back["posterior"]["z"].values)
    assert back["posterior"]["z"].dims == ("chain", "draw", "datum", "z_dim_0")
    exact = truth.posterior(x)
    assert torch.allclose(z.mean((0, 1)), exact.mean, atol=0.03)
    assert torch.allclose(z.var((0, 1)), exact.variance, rtol=0.08)
    assert torch.equal(torch.as_tensor(back["sample_stats"]["log_weights"].values[0]), record.log_weights)
    assert torch.equal(torch.as_tensor(back["observed_data"]["x"].values), x)
    summary = arviz.summary(back, var_names=["z"], kind="stats")
    assert summary["mean"].astype(float).to_numpy() == pytest.approx(z.mean((0, 1)).flatten().tolist(), abs=0.01)


def groups(tree: object) -> list[str]:
    """Return the names of the groups: a method in one ArviZ, a property in the other."""
    found = tree.groups  # type: ignore[attr-defined]
    return list(found() if callable(found) else found)


def test_no_weight_no_draws() -> None:
    zeros = torch.zeros(5, 2)
    record = Particles({"z": zeros}, zeros, zeros - torch.tensor([0.0, torch.inf]), zeros)
    with pytest.raises(ValueError, match="1 of 2 data have none"):
        to_datatree(record, torch.zeros(2, 1))
