"""The KL of each of several latent sites: numbers, table, JSON, page and figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae import report
from pyrovae.evaluation import evaluate
from pyrovae.results import Evaluation, mean_and_error

X = torch.linspace(-2, 2, 10).reshape(5, 2)
STATED = {"ks": (1, 50), "show_progress": False}


class Chain:
    """z_n -> ... -> z_1 -> x, each a Normal around the one before; the guide draws in the same order."""

    def __init__(self, num_sites: int) -> None:
        self.names = [f"z_{i}" for i in range(num_sites, 0, -1)]

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = torch.zeros(len(x), 2)
            for name in self.names:
                z = pyro.sample(name, dist.Normal(z, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = x
            for name in self.names:
                z = pyro.sample(name, dist.Normal(z / 2, 0.7).to_event(1))

    def evaluate(self) -> Evaluation:
        return evaluate(self.model, self.guide, X, **STATED)


def rows_of(evaluation: Evaluation) -> dict[str, Any]:
    return {str(row[0]): row for row in evaluation.bounds_table().rows}


def test_each_site_has_its_own_kl() -> None:
    evaluation = Chain(3).evaluate()
    assert list(evaluation.kl_by_site) == ["z_3", "z_2", "z_1"]
    first = torch.distributions.kl_divergence(dist.Normal(X / 2, 0.7), dist.Normal(0.0, 1.0)).sum(1)
    assert (evaluation.per_datum["KL of z_3"] - first).abs().max() < 1e-6
    assert evaluation.kl_by_site["z_3"].se_monte_carlo == 0  # the same for every particle
    # z_2 - z_3 is -z_3 / 2 on average over z_3 ~ N(x / 2, 0.49): its square is x^2 / 16 + 0.49 / 4
    second = (0.5 * (0.49 - 1 + X**2 / 16 + 0.49 / 4) - torch.tensor(0.7).log()).sum(1)
    estimate = evaluation.kl_by_site["z_2"]
    assert 0 < estimate.se_monte_carlo < 0.03
    assert abs(estimate.value - second.mean().item()) < 4 * estimate.se_monte_carlo
    total = sum(evaluation.per_datum[f"KL of {name}"] for name in evaluation.kl_by_site)
    assert (total - evaluation.per_datum["KL"]).abs().max() < 1e-12
    assert estimate.se_data == mean_and_error(evaluation.per_datum["KL of z_2"])[1]


def test_monte_carlo_error_of_a_site_is_the_spread_over_seeds() -> None:
    chain = Chain(2)
    runs = [evaluate(chain.model, chain.guide, X, seed=seed, **STATED).kl_by_site["z_1"] for seed in range(20)]
    spread = torch.tensor([run.value for run in runs]).std().item()
    assert spread == pytest.approx(torch.tensor([run.se_monte_carlo for run in runs]).mean().item(), rel=0.5)


def test_one_row_for_each_site_with_the_digits_of_the_json() -> None:
    evaluation = Chain(3).evaluate()
    again = Evaluation.from_json(evaluation.to_json(), evaluation.per_datum)
    assert again.kl_by_site == evaluation.kl_by_site
    assert rows_of(again)["    z_2"][2].value == evaluation.kl_by_site["z_2"].value
    assert list(rows_of(evaluation))[2:7] == ["  KL", "    z_3", "    z_2", "    z_1", "L_1"]


def test_many_sites_are_folded_and_one_has_no_rows() -> None:
    alone = Chain(1).evaluate()
    assert not alone.kl_by_site
    assert not any(name.startswith("    ") for name in rows_of(alone))
    assert report.kl_by_site(alone) is None
    evaluation = Chain(12).evaluate()
    rows = rows_of(evaluation)
    sites = [name.strip() for name in rows if name.startswith("    ")]
    assert sites == ["z_12", "z_11", "z_10", "z_9 to z_4 (6 sites)", "z_3", "z_2", "z_1"]
    shown = sum(row[2].value for name, row in rows.items() if name.startswith("    "))
    assert shown == pytest.approx(evaluation.kl.value, rel=1e-12)
    assert "KL of 12 sites: closed form" in str(evaluation)


def test_figure_has_a_bar_or_a_point_for_each_site(tmp_path: Any) -> None:
    few, many = Chain(3).evaluate(), Chain(14).evaluate()
    bars = report.kl_by_site({"a": few, "b": few}).axes[0].patches
    assert [bar.get_height() for bar in bars[:3]] == [estimate.value for estimate in few.kl_by_site.values()]
    axes = report.kl_by_site(few).subfigures(1, 1).subplots()
    assert report.kl_by_site(many, ax=axes) is axes.figure.figure
    assert axes.lines[0].get_ydata().tolist() == [estimate.value for estimate in many.kl_by_site.values()]
    with pytest.raises(ValueError, match=r"same latent sites, got 3 .* and 14 \(.*, \.\.\.\) of many; draw each"):
        report.kl_by_site({"few": few, "many": many})
    renamed = replace(few, kl_by_site={f"y{name}": kl for name, kl in few.kl_by_site.items()})
    with pytest.raises(ValueError, match="same latent sites"):
        report.kl_by_site({"few": few, "renamed": renamed})
    folder = report.write_report(tmp_path / "run", few, model=Chain(3).model, guide=Chain(3).guide, data=X)
    assert "The KL of each latent site" in (folder / "index.html").read_text()
