"""Programs that compute NaN: what evaluates them counts it and hides it in no mean, what trains them refuses it."""

from __future__ import annotations

import logging
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import Pair, TwoLayers, linear_gaussian, pair_of
from torch import Tensor
from torch.distributions import Distribution

import pyrovae
from pyrovae import VAE, bounds
from pyrovae.bounds import elbo
from pyrovae.evaluate import evaluate
from pyrovae.pair import inspect_pair, run_checked
from pyrovae.particles import log_weights
from pyrovae.recording import has_compiler
from pyrovae.training import Training, fit

TRUTH = linear_gaussian()
X = TRUTH.sample(40)
BAD = X[:, 0] > X[:, 0].median()
CPU = torch.device("cpu")


def broken(where: Any) -> Pair:
    """Return the exact pair, but for a location of x that is NaN where a function of x and z says so."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            loc = z @ TRUTH.weight.T + TRUTH.bias
            loc = torch.where(where(x, z).unsqueeze(-1), math.nan, loc)
            pyro.sample("x", dist.Normal(loc, TRUTH.scale).to_event(1), obs=x)

    return model, pair_of(TRUTH)[1]


def everywhere(x: Tensor, z: Tensor) -> Tensor:
    return torch.ones(z.shape[:-1], dtype=torch.bool)


def of_some_data(x: Tensor, z: Tensor) -> Tensor:
    return (x[..., 0] > X[:, 0].median()).expand(z.shape[:-1])


def of_some_particles(x: Tensor, z: Tensor) -> Tensor:
    return z[..., 0] > 0


def test_a_model_that_is_nan_for_all_data_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyrovae"):
        found = evaluate(*broken(everywhere), X, ks=(1, 50), shown=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"loc of Normal at the site 'x': {3 * X.shape[1]} of {3 * X.shape[1]} are NaN; "
        "data whose estimates are not finite are counted, and no mean hides them"
    ]
    assert found.elbo.value is None
    assert [rung.value for rung in found.iwae] == [None, None]
    assert found.weights is not None
    assert found.weights.num_nan == len(X)
    assert f"{len(X)} of {len(X)} data have a value that is not finite" in str(found)
    assert found.kl.value == pytest.approx(evaluate(*pair_of(TRUTH), X, ks=(1, 50), shown=False).kl.value)


@pytest.mark.parametrize("rows", [slice(None), X[:, 0].argsort()])  # the first data NaN or not
def test_nan_of_some_data_leaves_those_of_the_others(rows: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(*broken(of_some_data), X[rows], ks=(1, 50), shown=False)
    whole = evaluate(*pair_of(TRUTH), X[rows], ks=(1, 50), shown=False)
    bad = BAD[rows]
    assert found.weights is not None
    assert found.weights.num_nan == int(bad.sum()) == 20
    assert found.iwae[1].value is None
    assert len(caplog.records) == int(bad[:3].any())
    for name in ("ELBO", "L_1", "L_50"):
        assert found.per_datum[name][bad].isnan().all()
        torch.testing.assert_close(found.per_datum[name][~bad], whole.per_datum[name][~bad])


def test_nan_of_some_particles_is_never_averaged_away() -> None:
    found = evaluate(*broken(of_some_particles), X, ks=(1, 50), shown=False)
    assert found.per_datum["L_50"].isnan().all()
    finite = found.per_datum["L_1"].isfinite()
    assert 0 < finite.sum() < len(X) or not finite.any()
    assert found.iwae[0].value is None


@pytest.mark.parametrize("where", [everywhere, of_some_data, of_some_particles])
def test_nan_changes_nothing_about_the_structure(where: Any) -> None:
    found, whole = (
        inspect_pair(*pair, (X,), nan_counts=True) for pair in (broken(where), pair_of(TRUTH))
    )  # particles that are NaN in one run and not in another would look like a pair that takes no particles
    assert found.broadcasts
    assert (found.kl, found.latents, found.num_elements) == (whole.kl, whole.latents, whole.num_elements)
    assert whole.nan is None


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler is found")
def test_compiled_scores_are_nan_where_those_of_the_programs_are(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyrovae"):
        eager, captured = (
            evaluate(*broken(of_some_data), X, ks=(1, 50), engine=engine, shown=False)
            for engine in ("eager", "captured")
        )
    assert [record.getMessage()[:28] for record in caplog.records] == ["loc of Normal at the site 'x"] * 2
    for name in ("ELBO", "L_50"):
        torch.testing.assert_close(captured.per_datum[name], eager.per_datum[name], equal_nan=True)


def test_a_guide_that_is_nan_for_some_data() -> None:
    model, guide = pair_of(TRUTH)

    def spoiled(x: Tensor) -> None:
        guide(torch.where((x[..., :1] > X[:, 0].median()), math.nan, x))

    found = evaluate(model, spoiled, X, ks=(1, 50), shown=False)
    assert found.weights is not None
    assert found.weights.num_nan == 20
    assert found.kl.value is None
    assert found.per_datum["L_50"][~BAD].isfinite().all()


def test_all_estimates_take_a_model_that_is_nan() -> None:
    pair = broken(of_some_data)
    assert elbo(*pair, X, num_particles=4).elbo.isnan().tolist() == BAD.tolist()
    assert log_weights(*pair, X, num_particles=4).isnan().all(0).tolist() == BAD.tolist()
    annealed = bounds.ais(*pair, X[:6], num_chains=2, num_temperatures=3, shown=False)
    assert annealed.num_not_finite == int(BAD[:6].sum())


def test_nan_does_not_hide_data_outside_the_support() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            logits = torch.where(torch.arange(len(x)) % 2 == 0, math.nan, z[..., 0]).unsqueeze(-1)
            pyro.sample("x", dist.Bernoulli(logits=logits.expand(*z.shape[:-1], 4)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    x = torch.ones(7, 4)
    found = evaluate(model, guide, x, ks=(1, 2), shown=False)
    assert found.weights is not None
    assert found.weights.num_nan == 4
    x[5, 3] = 0.5
    with pytest.raises(ValueError, match=r"value at the site 'x': 1 of 28 lie outside the support Boolean\(\) .*0\.5"):
        evaluate(model, guide, x, ks=(1, 2), shown=False)


@pytest.mark.parametrize(
    ("prior", "draws", "told"),
    [
        (
            dist.Normal(0.0, 1.0),
            lambda x: dist.Normal(x[:, 0], -1.0),
            "scale of Normal at the site 'z': .* GreaterThan",
        ),
        (
            dist.LogNormal(0.0, 1.0),
            lambda x: dist.Normal(x[:, 0] - 9, 1.0),
            "'z': 2 of 2 lie outside the support Great",
        ),
    ],
)
def test_what_is_wrong_without_nan_is_told_in_one_line(prior: Any, draws: Any, told: str) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * torch.ones(5), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", draws(x))

    checks = Distribution._validate_args
    with pytest.raises(ValueError, match=told) as refused:
        evaluate(model, guide, X, ks=(1, 2), shown=False)
    assert len(str(refused.value).splitlines()) == 1
    assert Distribution._validate_args == checks


def test_data_are_not_simulated_from_nan() -> None:
    decoder = torch.nn.Linear(2, 5)
    vae = VAE.from_torch(
        lambda x: (x[:, :2], x[:, 2:4]),
        lambda z: decoder(z) * math.nan,
        latent_dim=2,
        x_shape=(5,),
        modules=[decoder],
    )
    x = torch.ones(6, 5)
    checks = pyrovae.Checks(num_annealed=2, num_simulated=2, num_refined=0, num_encoded=2)
    found = evaluate(vae.model, vae.guide, x, ks=(1, 2), checks=checks, shown=False)
    assert found.checked is not None
    assert found.checked.left_out == {
        "BDMC": "logits of BinaryBernoulli at the site 'x': 10 of 10 are NaN, so that no data can be simulated"
    }


def test_training_refuses_nan_in_one_line() -> None:
    with pytest.raises(ValueError, match="loc of Normal at the site 'x': 10 of 10 are NaN") as refused:
        fit(*broken(everywhere), X, training=Training(epochs=1), shown=False)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("layers", [{"bottom_up": False}, {"bottom_up": True}])
def test_a_later_layer_that_is_nan_for_some_data(layers: dict[str, bool]) -> None:
    torch.manual_seed(0)
    pair = TwoLayers(**layers)
    x = (torch.arange(6) % 2).unsqueeze(-1).expand(6, 4).double()

    def guide(x: Tensor) -> None:
        pair.guide(torch.where((x[..., :1] > 0), math.nan, x))

    whole = evaluate(pair.model, pair.guide, x, ks=(1, 30), shown=False)
    found = evaluate(pair.model, guide, x, ks=(1, 30), shown=False)
    assert found.per_datum["L_30"][1::2].isnan().all()
    for name in ("ELBO", "L_30"):
        torch.testing.assert_close(found.per_datum[name][::2], whole.per_datum[name][::2])


# the run under checks


def test_what_fails_is_tried_again_with_the_same_draws() -> None:
    drawn = []

    def attempt() -> Tensor:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        drawn.append(z)
        return pyro.sample("x", dist.Normal(torch.where(z > 0, math.nan, z), 1.0))

    told: list[str] = []
    torch.manual_seed(3)
    found = run_checked(attempt, CPU, on_nan=told.append)
    assert torch.equal(*drawn)
    nan = int((drawn[0] > 0).sum())
    assert found.isnan().sum() == nan > 0
    assert told == [f"loc of Normal at the site 'x': {nan} of 3 are NaN"]
    after = torch.rand(())
    torch.manual_seed(3)
    torch.randn(3), torch.randn(3)
    assert torch.rand(()) == after


def test_an_error_that_no_value_explains_stays_as_it_is() -> None:
    def attempt() -> None:
        pyro.sample("z", dist.Normal(math.nan, 1.0, validate_args=False))
        raise ValueError("a reason of its own")

    with pytest.raises(ValueError, match="^a reason of its own$"):
        run_checked(attempt, CPU, on_nan=lambda told: None)


def test_events_are_judged_as_a_whole() -> None:
    def attempt(matrix: Tensor) -> None:
        normal = dist.MultivariateNormal(torch.zeros(2), scale_tril=matrix)
        pyro.sample("z", normal, obs=torch.zeros(3, 2))

    good = torch.eye(2).expand(3, 2, 2).clone()
    good[1, 1, 0] = math.nan
    told: list[str] = []
    run_checked(lambda: attempt(good), CPU, on_nan=told.append)
    assert told == ["scale_tril of MultivariateNormal at the site 'z': 1 of 12 are NaN"]
    good[2, 0, 0] = -1.0
    with pytest.raises(ValueError, match=r"'z': 1 of 3 do not satisfy LowerCholesky\(\)"):
        run_checked(lambda: attempt(good), CPU, on_nan=told.append)
