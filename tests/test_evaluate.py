"""What an evaluation says, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import (
    evaluate,
    likelihood_of,
    linear_gaussian,
    make_vae,
    pair_from,
    pair_of,
    posterior_of,
    standard_normal,
)
from pyro import poutine
from torch import Tensor, nn

import pyrovae
from pyrovae.data import Data
from pyrovae.evaluation import EvaluationOptions
from pyrovae.evaluation.evaluator import _num_distinct
from pyrovae.importance import chunks as sizes
from pyrovae.report import write_report
from pyrovae.results import Evaluation, compare


@pytest.fixture
def digits() -> Data:
    return pyrovae.data.digits().for_form("binary")


def test_values_per_datum_give_the_table(digits: Data) -> None:
    vae = make_vae()
    found = evaluate(vae.model, vae.guide, digits, ks=(1, 4, 8))
    assert found.num_data == 300
    assert found.data == "digits/test"
    assert found.data_hash == digits.test.hash()
    for estimate in found.estimates:
        values = found.per_datum[estimate.label]
        assert values.shape == (300,)
        assert values.dtype == torch.float64
        assert estimate.value == values.mean().item()
        assert estimate.se_data == pytest.approx(values.std().item() / math.sqrt(300))
        assert f"{estimate.value:.3f}" in str(found)
    assert found.elbo.value == pytest.approx(found.reconstruction.value - found.kl.value)
    difference = found.per_datum["L_8"] - found.per_datum["ELBO"]
    assert found.gains["L_8"] == pytest.approx((difference.mean().item(), difference.std().item() / math.sqrt(300)))
    assert found.bits_per_dimension == pytest.approx(-found.iwae[-1].value / (64 * math.log(2)))


def test_copies_among_the_data_are_counted() -> None:
    truth = linear_gaussian()
    x = truth.sample(5)
    note = "20 data, 5 distinct: the standard errors count copies as independent"
    found = evaluate(*pair_of(truth), x.repeat(4, 1), ks=(1, 2))
    assert found.num_distinct == 5
    assert note in str(found)
    assert "(20 data of tensors, 5 distinct; " in found.recommendation.sentence
    assert f"{note}." in str(compare({"a": found, "b": found}))
    alone = evaluate(*pair_of(truth), x, ks=(1, 2))
    assert alone.num_distinct is None
    assert "distinct" not in f"{alone}{compare({'a': alone, 'b': alone})}"
    assert Evaluation.from_json(found.to_json()).num_distinct == 5
    older = json.loads(alone.to_json())
    del older["num_distinct"]
    assert Evaluation.from_json(json.dumps(older)).num_distinct is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float64])
def test_data_with_other_covariates_are_distinct(dtype: torch.dtype) -> None:
    x = torch.tensor([[0, 1], [0, 1], [1, 1]]).to(dtype)
    assert [_num_distinct((x, c)) for c in (torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0]))] == [2, None]


def test_same_seed_same_numbers_and_another_seed_others(digits: Data) -> None:
    vae = make_vae()
    first, again, other = (
        evaluate(vae.model, vae.guide, digits.test.first(40), ks=(1, 10), seed=seed) for seed in (3, 3, 4)
    )
    assert first.estimates == again.estimates
    assert first.iwae[0].value != other.iwae[0].value
    assert abs(first.iwae[0].value - other.iwae[0].value) < 5 * math.hypot(
        first.iwae[0].se_monte_carlo, other.iwae[0].se_monte_carlo
    )
    twice = digits.test.fixed()[:4].repeat(2, 1, 1, 1)
    values = evaluate(vae.model, vae.guide, twice, ks=(1,), batch_size=4).per_datum["L_1"]
    assert (values[:4] != values[4:]).all(), "batches have draws of their own"


def test_options_come_in_a_record_or_as_keywords() -> None:
    truth = linear_gaussian()
    pair, x = pair_of(truth), truth.sample(5)
    options = EvaluationOptions(batch_size=2, show_progress=False)
    record = evaluate(*pair, x, ks=(1, 2), options=options)
    keywords = evaluate(*pair, x, ks=(1, 2), batch_size=2, show_progress=False)
    both = evaluate(*pair, x, ks=(1, 2), options=options, batch_size=5)
    assert record.settings == keywords.settings
    assert record.estimates == keywords.estimates
    assert both.settings["batch_size"] == 5
    with pytest.raises(TypeError, match="evaluate has the options num_data, batch_size, .*, but received 'workers'"):
        evaluate(*pair, x, workers=2)


def test_what_cannot_fit_is_refused_before_it_is_taken() -> None:
    truth = linear_gaussian()
    with pytest.raises(ValueError, match=r"K = 1000000000000 needs about .* are free; choose a smaller K"):
        evaluate(*pair_of(truth), truth.sample(2), ks=(10**12,))


def test_memory_does_not_grow_with_particles() -> None:
    """No run of the model sees more rows than a chunk."""
    truth, rows = linear_gaussian(), []

    def p_x(z: Tensor, _: Tensor) -> Any:
        rows.append(z[..., 0].numel())
        return likelihood_of(truth)(z)

    pair = pair_from(standard_normal(3), p_x, posterior_of(truth))
    evaluate(*pair, truth.sample(10), ks=(1, 20_000))
    assert max(rows) <= 4096
    assert sum(rows) > 200_000


def test_wrong_shape_and_bytes_are_told_in_words(digits: Data) -> None:
    vae = make_vae()
    with pytest.raises(ValueError, match=r"this VAE are \(N, 1, 8, 8\), but received \(5, 64\); give"):
        evaluate(vae.model, vae.guide, torch.zeros(5, 64), ks=(1,))
    with pytest.raises(ValueError, match=r"received \(300,\); these look like labels"):
        evaluate(vae.model, vae.guide, digits.test.labels, ks=(1,))
    with pytest.raises(ValueError, match=r"takes floating-point data, but received torch.uint8"):
        evaluate(vae.model, vae.guide, torch.zeros(5, 1, 8, 8, dtype=torch.uint8), ks=(1,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_numbers_of_the_cpu(digits: Data) -> None:
    torch.set_default_dtype(torch.float32)
    vae = make_vae()
    there, here = (evaluate(vae.model, vae.guide, digits, ks=(1, 100), device=device) for device in ("cuda", "cpu"))
    for a, b in zip(here.estimates, there.estimates, strict=True):
        error = math.hypot(a.se_monte_carlo or 0.0, b.se_monte_carlo or 0.0)
        assert abs(a.value - b.value) < 4 * error + 1e-4
    assert {value.device.type for value in there.per_datum.values()} == {"cpu"}


def test_progress_is_told_within_a_batch(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(sizes, "ON_CPU", dataclasses.replace(sizes.ON_CPU, drawn_rows=1000))
    vae = make_vae()
    evaluate(vae.model, vae.guide, digits, ks=(1, 40), batch_size=100, on_progress=told.append)
    assert told == pytest.approx([0, 25, 50, 75, 100, 100, 125, 150, 175, 200, 200, 225, 250, 275, 300, 300])


def test_fewer_rows_are_scored_at_once_where_memory_ends(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = make_vae(), digits.test.fixed()[:5]
    expected = evaluate(vae.model, vae.guide, x, ks=(1000,))
    seen, most, decode = [], 1500, vae.decoder.forward

    def limited(z: Tensor, *args: Any) -> Tensor:
        seen.append(z.shape[:-1].numel())
        if seen[-1] > most:
            raise torch.OutOfMemoryError("out of memory")
        return decode(z, *args)

    monkeypatch.setattr(vae.decoder, "forward", limited)
    found = evaluate(vae.model, vae.guide, x, ks=(1000,))
    assert max(seen) > most
    for name, value in expected.per_datum.items():
        assert torch.allclose(found.per_datum[name], value, rtol=1e-10), name
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(vae.model, vae.guide, x, ks=(1000,), chunk_size=2000)
    seen.clear()
    most = 10  # not even the fewest rows fit
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(vae.model, vae.guide, x, ks=(1000,))
    large = [size for size in seen if size > most]
    assert large == sorted(set(large), reverse=True), "nothing is tried twice"


def test_programs_that_read_the_parameters_of_their_modules_see_them_in_every_run() -> None:
    decoder, x = nn.Linear(2, 4), torch.randn(5, 4)

    def p_x(z: Tensor, _: Tensor) -> Any:
        with poutine.trace(param_only=True) as found:
            pyro.module("decoder", decoder)
        weight, bias = (site["value"] for site in found.trace.nodes.values() if site["type"] == "param")
        return dist.Normal(z @ weight.T + bias, 1.0).to_event(1)

    pair = pair_from(standard_normal(2), p_x, lambda x: dist.Normal(0.1 * x[..., :2], 1.0).to_event(1))
    assert evaluate(*pair, x, ks=(1, 20), modules=[decoder]).elbo.value < 0


def test_the_measure_is_read_off_the_program() -> None:
    x = torch.poisson(torch.full((20, 3), 2.0))
    p_z, q_z = standard_normal(3), lambda x: standard_normal(3).expand([len(x)])
    counts, density = (
        evaluate(*pair_from(p_z, p_x, q_z), x, ks=(1, 5))
        for p_x in (lambda z, _: dist.Poisson(z.exp()).to_event(1), lambda z, _: dist.Normal(z, 1.0).to_event(1))
    )
    assert (counts.base_measure, density.base_measure) == ("counting", "Lebesgue")
    assert counts.bits_per_dimension == pytest.approx(-counts.iwae[-1].value / (3 * math.log(2)))
    assert density.bits_per_dimension is None
    assert len(compare({"Poisson": counts, "normal": density}, blocks=True).blocks) == 2
    assert "Estimates of log p(x), a log-probability" in str(counts)


def test_tables_of_checks_name_the_density_of_the_evaluation() -> None:
    def p_x(z: Tensor, _: Tensor, c: Tensor) -> Any:
        return dist.Normal(z + c.sum(-1, keepdim=True), 1.0).to_event(1)

    pair = pair_from(standard_normal(3), p_x, lambda x, _: standard_normal(3).expand([len(x)]))
    checks = pyrovae.Checks(num_annealed=2, num_simulated=2, num_refined=2, num_encoded=0, num_chains=2)
    tables = str(evaluate(*pair, (torch.randn(4, 3), torch.zeros(4, 2)), ks=(1, 5), checks=checks))
    for words in ("Estimates of", "A lower bound on", "In expectation", "Bounds on"):
        assert f"{words} log p(x | c)" in tables


def test_a_model_in_half_precision_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    vae, x = make_vae(), torch.bernoulli(torch.full((4, 1, 8, 8), 0.5))
    for dtype, count in ((torch.bfloat16, 1), (torch.float32, 0)):
        caplog.clear()
        evaluate(vae.to(dtype).model, vae.guide, x.to(dtype), ks=(1, 5))
        assert sum(str(dtype) in message and "off by a nat" in message for message in caplog.messages) == count


def test_an_autocast_of_the_callers_does_not_reach_an_evaluation() -> None:
    vae, x = make_vae().float(), torch.bernoulli(torch.full((4, 1, 8, 8), 0.5)).float()
    exact = evaluate(vae.model, vae.guide, x, ks=(1, 5))
    with torch.autocast("cpu", torch.bfloat16):
        again = evaluate(vae.model, vae.guide, x, ks=(1, 5))
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(again.per_datum["L_5"], exact.per_datum["L_5"])


def test_values_of_pyro_param_belong_to_the_weights_of_an_evaluation(tmp_path: Path) -> None:
    def scale() -> Tensor:
        return pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)

    model, guide = pair_from(
        standard_normal(2), lambda z, x: dist.Normal(z, scale()).to_event(1), lambda x: dist.Normal(x, 1.0).to_event(1)
    )
    x = torch.randn(5, 2)
    first = evaluate(model, guide, x, ks=(1,))
    model(x)
    pyro.get_param_store()["scale"] = torch.tensor(2.0)
    second = evaluate(model, guide, x, ks=(1,))
    assert first.settings["params"] == second.settings["params"] == ["scale"]
    assert first.settings["weights"] != second.settings["weights"]
    write_report(tmp_path, second, model=model, guide=guide, data=x)
    with pytest.raises(ValueError, match="their weights are others"):
        write_report(tmp_path, first, model=model, guide=guide, data=x, name="first")
