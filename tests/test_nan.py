"""Programs that compute NaN: what evaluates them counts it and hides it in no mean, what trains them refuses it."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import (
    ModelGuide,
    evaluate,
    inspect_programs,
    linear_gaussian,
    model_from,
    pair_from,
    pair_of,
    program,
    standard_normal,
)
from torch import Tensor, nn
from torch.distributions import AffineTransform

import pyrovae
from pyrovae import bounds, likelihoods
from pyrovae.bounds import elbo
from pyrovae.compile import has_compiler
from pyrovae.diagnostics import latents
from pyrovae.importance.sampling import log_weights
from pyrovae.programs import run_validated
from pyrovae.results import Latents
from pyrovae.results.record import from_plain, to_plain
from pyrovae.training import Training, capture, fit

TRUTH = linear_gaussian()
X = TRUTH.sample(40)
MEDIAN = X[:, 0].median()
BAD = X[:, 0] > MEDIAN
EXACT = pair_of(TRUTH)
CPU = torch.device("cpu")
Where = Callable[[Tensor, Tensor], Tensor]


def normal(loc: Tensor) -> Any:
    return dist.Normal(loc, TRUTH.scale).to_event(1)


def of(p_x: Callable[..., Any]) -> ModelGuide:
    """Return the model with p(x | z) = p_x(z, x) and the exact guide."""
    return model_from(lambda _: standard_normal(3), p_x), EXACT[1]


def broken(where: Where) -> ModelGuide:
    """Return the exact pair, but for a location of x that is NaN where a function of x and z says so."""
    return of(lambda z, x: normal(torch.where(where(x, z).unsqueeze(-1), math.nan, z @ TRUTH.weight.T + TRUTH.bias)))


def spoiled(x: Tensor) -> None:
    """Draw from the exact guide, NaN for some data."""
    EXACT[1](torch.where(x[..., :1] > MEDIAN, math.nan, x))


def everywhere(x: Tensor, z: Tensor) -> Tensor:
    return torch.ones(z.shape[:-1], dtype=torch.bool)


def of_some_data(x: Tensor, z: Tensor) -> Tensor:
    return (x[..., 0] > MEDIAN).expand(z.shape[:-1])


def test_a_model_that_is_nan_for_all_data_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyrovae"):
        found = evaluate(*broken(everywhere), X, ks=(1, 50))
    assert [record.getMessage() for record in caplog.records] == [
        f"loc of Normal at the site 'x': {3 * X.shape[1]} of {3 * X.shape[1]} are NaN; "
        "data whose estimates are not finite are counted, and no mean hides them"
    ]
    assert found.elbo.value is None
    assert [rung.value for rung in found.iwae] == [None, None]
    assert found.weights.num_nan == len(X)
    assert f"{len(X)} of {len(X)} data have a value that is not finite" in str(found)
    assert found.kl.value == pytest.approx(evaluate(*EXACT, X, ks=(1, 50)).kl.value)


@pytest.mark.parametrize("rows", [slice(None), X[:, 0].argsort()])  # the first data NaN or not
def test_nan_of_some_data_leaves_those_of_the_others(rows: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(*broken(of_some_data), X[rows], ks=(1, 50))
    whole = evaluate(*EXACT, X[rows], ks=(1, 50))
    bad = BAD[rows]
    assert found.weights.num_nan == int(bad.sum()) == 20
    assert found.iwae[1].value is None
    assert len(caplog.records) == int(bad[:3].any())
    for name in ("ELBO", "L_1", "L_50"):
        assert found.per_datum[name][bad].isnan().all()
        torch.testing.assert_close(found.per_datum[name][~bad], whole.per_datum[name][~bad])


def test_nan_of_some_particles_is_never_averaged_away() -> None:
    found = evaluate(*broken(lambda x, z: z[..., 0] > 0), X, ks=(1, 50))
    assert found.per_datum["L_50"].isnan().all()
    assert found.iwae[0].value is None


@pytest.mark.parametrize("where", [everywhere, of_some_data])
def test_nan_changes_nothing_about_the_structure(where: Any, caplog: pytest.LogCaptureFixture) -> None:
    found, whole = (inspect_programs(*pair, (X,), nan_counts=True) for pair in (broken(where), EXACT))
    assert found.broadcasts == (where is not everywhere)  # then nobody knows, and nothing is said
    assert not caplog.records
    assert (found.kl, found.latents, found.num_elements) == (whole.kl, whole.latents, whole.num_elements)
    assert whole.nan is None


def test_nan_do_not_prove_that_a_pair_takes_particles() -> None:
    """The first rows, on which a pair is inspected, are NaN; the others are wrong with an axis of particles."""

    def p_x(z: Tensor, x: Tensor) -> Any:
        loc = z @ TRUTH.weight.T + TRUTH.bias + (1.0 if z.ndim > 2 else 0.0)
        return normal(torch.where(x[..., :1] == 0, math.nan, loc))

    x = X[:20].clone()
    x[:3] = 0.0
    found = evaluate(*of(p_x), x, ks=(1, 50)).per_datum["L_50"]
    assert found[:3].isnan().all()
    torch.testing.assert_close(found[3:], TRUTH.log_prob(x[3:]))  # the guide is the posterior


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler is found")
def test_compiled_scores_are_nan_where_those_of_the_programs_are(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pyrovae"):
        eager, captured = (
            evaluate(*broken(of_some_data), X, ks=(1, 50), engine=engine) for engine in ("eager", "captured")
        )
    assert [record.getMessage()[:28] for record in caplog.records] == ["loc of Normal at the site 'x"] * 2
    for name in ("ELBO", "L_50"):
        torch.testing.assert_close(captured.per_datum[name], eager.per_datum[name], equal_nan=True)


@pytest.mark.parametrize("which", ["model", "guide"])
def test_all_estimates_take_a_pair_that_is_nan(which: str) -> None:
    pair = broken(of_some_data) if which == "model" else (EXACT[0], spoiled)
    assert elbo(*pair, X, num_particles=4).elbo.isnan().tolist() == BAD.tolist()
    assert log_weights(*pair, X, num_particles=4).isnan().all(0).tolist() == BAD.tolist()
    annealed = bounds.ais(*pair, X[:6], num_chains=2, num_temperatures=3, show_progress=False)
    assert annealed.num_not_finite == int(BAD[:6].sum())


def test_units_that_are_nan_for_some_data_have_not_collapsed() -> None:
    found = latents(EXACT[0], spoiled, X)
    assert {unit.verdict for unit in found.units} == {"unknown: not finite for some data"}
    assert "0 of 3 units are active (variance of the mean above 0.01), 3 unknown" in str(found)
    assert from_plain(Latents, json.loads(json.dumps(to_plain(found), allow_nan=False))) == found


def test_nan_does_not_hide_data_outside_the_support() -> None:
    def p_x(z: Tensor, x: Tensor) -> Any:
        logits = torch.where(torch.arange(len(x)) % 2 == 0, math.nan, z[..., 0]).unsqueeze(-1)
        return dist.Bernoulli(logits=logits.expand(*z.shape[:-1], 4)).to_event(1)

    pair = pair_from(standard_normal(3), p_x, lambda x: standard_normal(3).expand([len(x)]))
    x = torch.ones(7, 4)
    assert evaluate(*pair, x, ks=(1, 2)).weights.num_nan == 4
    x[5, 3] = 0.5
    with pytest.raises(ValueError, match=r"value at the site 'x': 1 of 28 lie outside the support Boolean\(\) .*0\.5"):
        evaluate(*pair, x, ks=(1, 2))


def on_a_line(p_z: Any, q_z: Callable[[Tensor], Any]) -> ModelGuide:
    """Return a pair with one latent dimension."""
    return pair_from(lambda _: p_z(0.0, 1.0), lambda z, _: normal(z.unsqueeze(-1) * torch.ones(5)), q_z)


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (
            on_a_line(dist.Normal, lambda x: dist.Normal(x[:, 0], -1.0)),
            "^scale of Normal at the site 'z': .* GreaterThan",
        ),
        (
            on_a_line(dist.LogNormal, lambda x: dist.Uniform(x[:, 0] - 90, x[:, 0] - 80)),
            "'z': 3 of 3 lie outside the support Great",
        ),
        (
            of(lambda z, _: dist.Uniform(torch.zeros(5), torch.full((5,), 0.5) + 0 * z[..., :1]).to_event(1)),
            r"the value at the site 'x': .* lie outside the support Interval\(\.\.\.\)",
        ),
    ],
)
def test_what_is_wrong_without_nan_is_told_in_one_line(pair: ModelGuide, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        evaluate(*pair, X, ks=(1, 2))
    assert len(str(refused.value).splitlines()) == 1
    assert "Trace Shapes" in str(refused.value.__cause__)  # where Pyro's traceback leads to the user's line


def test_nan_bounds_are_nan_and_not_wrong() -> None:
    def p_x(z: Tensor, x: Tensor) -> Any:
        low = torch.where(x[..., :1] > MEDIAN, math.nan, -50.0 + 0 * z[..., :1])
        return dist.Uniform(low.expand(*low.shape[:-1], 5), 50.0).to_event(1)

    assert evaluate(*of(p_x), X, ks=(1, 2)).weights.num_nan == 20


def test_nan_do_not_hide_a_shape_that_does_not_fit() -> None:
    def model(x: Tensor) -> None:
        loc = torch.where(x[..., :1] > 0, math.nan, pyro.sample("z", standard_normal(3)) @ TRUTH.weight.T)
        pyro.sample("x", dist.MultivariateNormal(loc, torch.eye(5)), obs=x[..., :1])

    with pytest.raises(ValueError, match=r"value at the site 'x' has the shape \(3, 1\), but .* of events \(5,\)"):
        evaluate(program(model), EXACT[1], X, ks=(1, 2))


def test_nan_that_no_check_sees_are_named_too(caplog: pytest.LogCaptureFixture) -> None:
    class Unchecked(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value) * math.nan

    pair = of(lambda z, _: Unchecked(z @ TRUTH.weight.T, 1.0).to_event(1))
    assert evaluate(*pair, X, ks=(1, 2)).weights.num_nan == 40
    assert caplog.records[0].getMessage().startswith("the log-probability at the site 'x': 3 of 3 are NaN; data whose")
    with pytest.raises(ValueError, match="the log-probability at the site 'x': 3 of 3 are NaN"):
        fit(*pair, X, training=Training(epochs=1), show_progress=False)


def test_simulation_alone_says_so_in_one_line() -> None:
    with pytest.raises(
        ValueError, match=r"^loc of Normal at the site 'x': \d+ of \d+ are NaN, so that no data can be s"
    ) as refused:
        bounds.bdmc(*broken(everywhere), X[:4], num_chains=2, num_temperatures=3, show_progress=False)
    assert len(str(refused.value).splitlines()) == 1


def far(x: Tensor, z: Tensor) -> Tensor:
    return (x[..., 0] > 1e5).expand(z.shape[:-1])


def learned(x: Tensor, net: nn.Module) -> None:
    pyro.module("net", net)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("row", [0, 15])
def test_training_names_the_nan_of_one_datum(row: int, part: str) -> None:
    data = pyrovae.data.from_arrays(X, validation=16, test=4)
    getattr(data, part).stored[row, 0] = 1e6
    guide = functools.partial(learned, net=nn.Linear(5, 3))
    with pytest.raises(ValueError, match="^loc of Normal at the site 'x': 5 of (15|80|100) are NaN") as refused:
        fit(broken(far)[0], guide, data, training=Training(epochs=1, batch_size=20), show_progress=False)
    assert len(str(refused.value).splitlines()) == 1


def test_a_step_of_ones_own_names_the_nan_too() -> None:
    step = capture(broken(far)[0], functools.partial(learned, net=nn.Linear(5, 3)), X, engine="eager")
    x = X.clone()
    x[7] = 1e6
    with pytest.raises(ValueError, match="^loc of Normal at the site 'x': 5 of 200 are NaN$"):
        step(x)


# the run under checks


def test_what_fails_is_tried_again_with_the_same_draws() -> None:
    drawn = []

    def attempt() -> Tensor:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        drawn.append(z)
        return pyro.sample("x", dist.Normal(torch.where(z > 0, math.nan, z), 1.0))

    torch.manual_seed(3)
    found = run_validated(attempt, CPU, nan_counts=True)
    assert torch.equal(*drawn)
    nan = int((drawn[0] > 0).sum())
    assert found.isnan().sum() == nan > 0
    after = torch.rand(())
    torch.manual_seed(3)
    torch.randn(3), torch.randn(3)
    assert torch.rand(()) == after
    torch.manual_seed(3)
    with pytest.raises(ValueError, match=f"^loc of Normal at the site 'x': {nan} of 3 are NaN$"):
        run_validated(attempt, CPU, nan_counts=False)


def test_what_a_program_raises_is_left_as_it_is() -> None:
    """Though there are NaN, though it was raised because of an error of ours, and without a second run."""
    runs = []

    def attempt() -> None:
        runs.append(pyro.sample("z", dist.Normal(math.nan, 1.0, validate_args=False)))
        try:
            likelihoods.Bernoulli((4,))(torch.zeros(3))
        except ValueError as error:
            raise ValueError(f"a reason of its own, {len(runs)}") from error

    for run in (attempt, lambda: pyro.poutine.trace(attempt).get_trace()):
        runs.clear()
        with pytest.raises(ValueError, match="^a reason of its own, 1") as raised:
            run_validated(run, CPU, nan_counts=True)
        assert raised.value.__cause__ is not None
        assert len(runs) == 1


def test_events_are_judged_as_a_whole() -> None:
    def attempt(matrix: Tensor) -> None:
        normal = dist.MultivariateNormal(torch.zeros(2), scale_tril=matrix)
        pyro.sample("z", normal, obs=torch.zeros(3, 2))

    good = torch.eye(2).expand(3, 2, 2).clone()
    good[1, 1, 0] = math.nan
    run_validated(lambda: attempt(good), CPU, nan_counts=True)
    with pytest.raises(ValueError, match="^scale_tril of MultivariateNormal at the site 'z': 1 of 12 are NaN$"):
        run_validated(lambda: attempt(good), CPU, nan_counts=False)
    good[2, 0, 0] = -1.0
    with pytest.raises(ValueError, match=r"'z': 1 of 3 do not satisfy LowerCholesky\(\)"):
        run_validated(lambda: attempt(good), CPU, nan_counts=True)


def test_nan_of_a_transform_are_counted() -> None:
    def attempt() -> None:
        loc = torch.tensor([0.0, math.nan])
        y = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [AffineTransform(loc, 1.0)])
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]))
            pyro.poutine.trace(lambda: pyro.sample("y", y, obs=torch.ones(2))).get_trace().compute_log_prob()

    run_validated(attempt, CPU, nan_counts=True)
    with pytest.raises(ValueError, match="^the log-probability at the site 'y': 1 of 2 are NaN$"):
        run_validated(attempt, CPU, nan_counts=False)
