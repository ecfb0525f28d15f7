"""Draws from p(z | x) that the installed ArviZ reads and plots."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import xarray
from conftest import linear_gaussian, pair_of
from matplotlib import pyplot
from torch import Tensor

from pyrovae.importance.sampling import particles
from pyrovae.report import to_datatree
from pyrovae.report.arviz_tree import to_netcdf
from pyrovae.results import Particles

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
    import arviz


@pytest.fixture
def _plots() -> Iterator[None]:
    """Let ArviZ draw through pyplot without a screen, and forget what it drew."""
    with matplotlib.rc_context({"backend": "agg"}):
        yield
        pyplot.close("all")


def test_resampled_draws_follow_the_posterior_and_arviz_reads_them(tmp_path: Path) -> None:
    truth = linear_gaussian()
    x = truth.sample(4)
    record = particles(*pair_of(truth, offset=0.2, widen=1.3), x, num_particles=20_000)
    back = written(to_datatree(record, x), tmp_path)
    assert {"posterior", "log_likelihood", "sample_stats", "observed_data"} == groups(back)
    z = torch.as_tensor(back["posterior"]["z"].values)
    assert z.dtype == torch.float32
    exact = truth.posterior(x)
    assert torch.allclose(z.double().mean((0, 1)), exact.mean, atol=0.03)
    assert torch.allclose(z.double().var((0, 1)), exact.variance, rtol=0.08)
    assert torch.equal(torch.as_tensor(back["sample_stats"]["log_weights"].values[0]), record.log_weights)
    assert torch.equal(torch.as_tensor(back["observed_data"]["x"].values), x)
    summary = arviz.summary(back, var_names=["z"], kind="stats")
    assert summary["mean"].astype(float).to_numpy() == pytest.approx(z.mean((0, 1)).flatten().tolist(), abs=0.01)


def groups(back: Any) -> set[str]:
    """Return the names of the groups: a method in one ArviZ, a property in the other."""
    found = back.groups
    return {str(name).strip("/") for name in (found() if callable(found) else found)} - {""}


def few(num: int = 3) -> tuple[Particles, Tensor]:
    """Return particles of a few images whose log-likelihood is the first of the two latent dimensions."""
    z = torch.randn(40, num, 2)
    record = Particles({"z": z}, torch.randn(40, num), z[..., 0].clone(), torch.randn(40, num))
    return record, torch.randint(2, (num, 1, 4, 6)).double()


def written(made: xarray.DataTree, folder: Path) -> Any:
    """Return a tree as ArviZ reads it from its file."""
    (folder / "draws.nc").write_bytes(to_netcdf(made))
    return arviz.from_netcdf(folder / "draws.nc")


@pytest.mark.usefixtures("_plots")
def test_what_is_written_comes_back_and_arviz_plots_it(tmp_path: Path) -> None:
    record, x = few()
    made = to_datatree(
        record,
        x,
        covariates=[torch.eye(3)],
        labels=torch.tensor([7, 8, 9]),
        per_datum={"khat": torch.tensor([0.1, 0.2, 0.3]), "largest weight": torch.tensor([0.5, 0.6, float("nan")])},
        attributes={"L_50": -20.25, "data_hash": "ab", "bits_per_dimension": None, "K": 40},
        num_draws=25,
        seed=3,
    )
    back = written(made, tmp_path)
    datum = ("datum",)
    expected = {
        "posterior": {"z": ("chain", "draw", "datum", "z_dim")},
        "log_likelihood": {"x": ("chain", "draw", "datum")},
        "sample_stats": {"log_weights": ("chain", "particle", "datum"), "khat": datum, "largest_weight": datum},
        "observed_data": {"x": ("datum", "channel", "height", "width")},
        "constant_data": {"covariates": ("datum", "covariates_dim"), "labels": datum},
    }
    assert groups(back) == set(expected)
    for group, variables in expected.items():
        assert {name: back[group][name].dims for name in back[group].data_vars} == variables
        for name in variables:
            np.testing.assert_array_equal(back[group][name].values, made[group][name].values)
    assert back["posterior"]["z"].shape == (1, 25, 3, 2)
    given = {"L_50": -20.25, "data_hash": "ab", "K": 40}
    own = {"inference_library": "pyrovae", "seed": 3, "num_particles": 40, "num_data": 3}
    assert dict(back.attrs) == given | own
    assert len(arviz.summary(back, var_names=["z"], kind="stats")) == 6
    arviz.plot_forest(back, var_names=["z"])
    arviz.plot_pair(back, var_names=["z"], coords={"datum": 0})
    assert len(pyplot.get_fignums()) >= 2


def test_draws_and_their_log_likelihood_belong_together() -> None:
    record, x = few()
    made = to_datatree(record, x, num_draws=500)
    z, likelihood = made["posterior"]["z"].values[0], made["log_likelihood"]["x"].values[0]
    assert np.allclose(z[..., 0], likelihood, atol=1e-6)  # as the particles were made
    for datum in range(3):
        assert set(likelihood[:, datum]) <= set(record.log_likelihood[:, datum].tolist())
        often = record.log_weights[:, datum].argmax()
        share = (likelihood[:, datum] == record.log_likelihood[often, datum].item()).mean()
        assert share == pytest.approx(record.log_weights[:, datum].softmax(0).max().item(), abs=0.08)


def test_dimensions_have_names() -> None:
    record, _ = few()
    record.z.update(scale=torch.rand(40, 3), field=torch.rand(40, 3, 2, 5))
    axes = {
        (3,): (),
        (3, 5): ("column",),
        (3, 4, 6): ("height", "width"),
        (3, 2, 4, 6): ("channel", "height", "width"),
        (3, 2, 2, 4, 6): ("x_dim_0", "x_dim_1", "x_dim_2", "x_dim_3"),
    }
    for shape, dims in axes.items():
        made = to_datatree(record, torch.zeros(shape), covariates=[torch.eye(3), torch.zeros(3)])
        assert made["observed_data"]["x"].dims == ("datum", *dims)
    assert made["posterior"]["scale"].dims == ("chain", "draw", "datum")
    assert made["posterior"]["field"].dims == ("chain", "draw", "datum", "field_dim_0", "field_dim_1")
    assert made["constant_data"]["covariates_0"].dims == ("datum", "covariates_0_dim")
    assert made["constant_data"]["covariates_1"].dims == ("datum",)


def test_data_without_weight_are_left_out_and_named(tmp_path: Path) -> None:
    record, x = few(5)
    record.log_prior[:, 1] = -torch.inf
    record.log_prior[3, 3] = torch.nan
    record.log_prior[2, 4] = -torch.inf  # one particle only
    rows = torch.arange(5)
    made = to_datatree(record, x, covariates=[rows.double()], labels=rows, per_datum={"ESS": rows})
    back = written(made, tmp_path)
    assert back.attrs["data_left_out"] == "1, 3"
    assert back.attrs["num_data"] == 5
    for group in groups(back):
        assert back[group]["datum"].values.tolist() == [0, 2, 4]
    for group, name in (("constant_data", "labels"), ("constant_data", "covariates"), ("sample_stats", "ESS")):
        assert back[group][name].values.tolist() == [0, 2, 4]
    assert np.array_equal(back["observed_data"]["x"].values, x[[0, 2, 4]])
    lost = record.log_likelihood[2, 4].item()
    assert lost not in back["log_likelihood"]["x"].sel(datum=4).values
    assert set(back["log_likelihood"]["x"].sel(datum=2).values[0]) <= set(record.log_likelihood[:, 2].tolist())
