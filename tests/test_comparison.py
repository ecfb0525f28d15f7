"""Comparisons: paired differences within blocks of what may be compared, and a table that says which those are."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from conftest import make_vae
from torch import Tensor

import pyrovae
from pyrovae import likelihoods
from pyrovae.results import Estimate, Evaluation, bits_per_dimension, compare

STORED = 4  # dimensions of the data of these tests


def estimate(name: str, values: Tensor, k: int = 1) -> Estimate:
    mean, error = values.mean().item(), values.std().item() / math.sqrt(len(values))
    finite = math.isfinite(mean)
    return Estimate(name, k, mean if finite else None, error if finite else None, None, None if finite else "infinite")


def evaluation(ladder: dict[int, list[float]], **changes: Any) -> Evaluation:
    """Return an evaluation with these values of L_K per datum, of binary data if nothing else is said."""
    per_datum = {f"L_{k}": torch.tensor(values) for k, values in ladder.items()}
    per_datum["ELBO"] = per_datum[f"L_{min(ladder)}"] - 1.0
    rungs = tuple(estimate("IWAE", per_datum[f"L_{k}"], k) for k in ladder)
    elbo = estimate("ELBO", per_datum["ELBO"])
    last, log_det = rungs[-1].value, changes.get("log_abs_det_jacobian")
    known = last is not None and (changes.get("base_measure") != "Lebesgue" or log_det is not None)
    made = Evaluation(
        elbo=elbo,
        reconstruction=elbo,
        kl=elbo,
        iwae=rungs,
        kl_methods={"z": "closed form"},
        gaps={},
        num_data=len(per_datum["ELBO"]),
        data="digits/test",
        data_hash="0123456789abcdef",
        data_transform={"class": "DynamicBinarization"},
        base_measure="counting",
        log_abs_det_jacobian=None,
        bits_per_dimension=bits_per_dimension(
            last or 0.0, num_dimensions=STORED, log_abs_det_jacobian=log_det or 0.0
        ) if known else None,
        seed=0,
        settings={},
        versions={},
        date="2026-01-01",
        seconds=1.0,
        per_datum=per_datum,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


FIRST = evaluation({1: [-7.0, -8.0, -9.0], 5: [-6.0, -7.0, -8.5], 50: [-5.5, -6.5, -8.0]})
SECOND = evaluation({1: [-7.5, -8.0, -8.0], 5: [-5.0, -6.5, -9.5]})
DEQUANTIZED = {"data_hash": "feed", "data_transform": {"class": "Dequantization"}, "base_measure": "Lebesgue"}
LEVELS = {"data_hash": "beef", "data_transform": {"class": "Identity"}}


def test_differences_are_paired_datum_by_datum() -> None:
    (block,) = compare({"a": FIRST, "b": SECOND}).blocks
    assert block.num_particles == 5, "the largest K that both have"
    first, second = block.rows
    assert first.difference is None
    d = [1.0, 0.5, -1.0]  # L_5 of the second minus L_5 of the first
    mean = sum(d) / 3
    error = math.sqrt(sum((value - mean) ** 2 for value in d) / 2 / 3)
    assert second.difference == (pytest.approx(mean), pytest.approx(error))
    assert second.bound == (SECOND.iwae[1].value, SECOND.iwae[1].se_data)
    assert first.bound == (FIRST.iwae[1].value, FIRST.iwae[1].se_data)
    assert second.elbo == (SECOND.elbo.value, SECOND.elbo.se_data)
    assert "+0.167 +- 0.601" in str(block)


def test_a_model_beside_itself_differs_by_nothing() -> None:
    (block,) = compare({"a": FIRST, "again": FIRST}).blocks
    assert block.num_particles == 50
    assert [row.difference for row in block.rows] == [None, (0.0, 0.0)]


def test_differences_of_large_float32_values_are_exact_sums() -> None:
    values = torch.full((1001,), 1e6, dtype=torch.float32)
    other = values + torch.linspace(0, 1, 1001, dtype=torch.float32)
    pair = [dataclasses.replace(FIRST, iwae=FIRST.iwae[:1], per_datum={"L_1": v}) for v in (values, other)]
    (block,) = compare(dict(zip("ab", pair, strict=True))).blocks
    expected = other.double() - values.double()
    assert block.rows[1].difference == (expected.mean().item(), expected.std().item() / math.sqrt(1001))


def test_one_datum_has_no_standard_error() -> None:
    one = [dataclasses.replace(FIRST, num_data=1, per_datum={"L_50": torch.tensor([v])}) for v in (-3.0, -2.0)]
    (block,) = compare({"a": one[0], "b": one[1]}).blocks
    assert block.rows[1].difference == (1.0, None)
    assert "+1.000 +- -" in str(block)


def test_blocks_are_by_data_and_measure() -> None:
    other_data = dataclasses.replace(SECOND, data_hash="other")
    density = dataclasses.replace(SECOND, base_measure="Lebesgue")
    unsaid = dataclasses.replace(SECOND, base_measure=None)
    comparison = compare({"a": FIRST, "b": other_data, "c": density, "d": SECOND, "e": unsaid})
    assert [[row.name for row in block.rows] for block in comparison.blocks] == [["a", "d"], ["b"], ["c"], ["e"]]
    assert [block.num_particles for block in comparison.blocks] == [5, 5, 5, 5]
    titles = [block.title for block in comparison.blocks]
    assert titles[0] == (
        "digits/test: 3 data, DynamicBinarization, sha256 0123456789ab; log-probabilities, nats per datum"
    )
    assert titles[2].endswith("log-densities, nats per datum")
    assert titles[3].endswith("log p(x), nats per datum")
    text = str(comparison)
    assert text.count("Nats compare models within a block only") == 1
    assert "Nats compare" not in str(compare({"a": FIRST, "d": SECOND}))


def test_without_a_common_k_it_is_refused() -> None:
    other = evaluation({2: [-1.0, -2.0], 10: [-0.5, -1.5]})
    with pytest.raises(ValueError, match=r"first, second have no K in common; evaluate them with the same ks"):
        compare({"first": FIRST, "second": other})
    elsewhere = dataclasses.replace(other, data_hash="other")
    assert [block.num_particles for block in compare({"first": FIRST, "second": elsewhere}).blocks] == [50, 10]


@pytest.mark.parametrize("bare", ["first", "second"])
def test_without_values_per_datum_it_is_refused(bare: str) -> None:
    both = {"first": FIRST, "second": SECOND}
    both[bare] = Evaluation.from_json(both[bare].to_json())
    with pytest.raises(ValueError, match=rf"'{bare}' holds no values of L_5 per datum.*report.read_report"):
        compare(both)
    assert compare({bare: both[bare]}).blocks[0].rows[0].difference is None


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to compare; give evaluations by name"):
        compare({})


def test_bits_are_those_of_the_bound_in_the_row() -> None:
    (block,) = compare({"a": FIRST, "b": SECOND}).blocks
    for row in block.rows:
        assert row.bits_per_dimension == pytest.approx(-row.bound[0] / (STORED * math.log(2)))
    assert "bits/dim" in str(block)
    dense = [evaluation({5: v}, **DEQUANTIZED, log_abs_det_jacobian=-11.0) for v in ([-1.0, 2.0], [1.0, 3.0])]
    longer = evaluation({5: [3.0, 4.0], 50: [5.0, 6.0]}, **DEQUANTIZED, log_abs_det_jacobian=-11.0)
    (block,) = compare({"a": dense[0], "b": dense[1], "c": longer}).blocks
    bits = [row.bits_per_dimension for row in block.rows]
    assert bits == [pytest.approx((11 - mean) / (STORED * math.log(2))) for mean in (0.5, 2.0, 3.5)]


def test_bits_have_a_column_only_where_they_are_defined() -> None:
    density = evaluation({5: [1.0, 2.0]}, base_measure="Lebesgue", data_transform={"class": "Standardization"})
    (block,) = compare({"a": density}).blocks
    assert block.bits_of is None
    assert "bits/dim" not in str(block)
    lost = evaluation({5: [-math.inf, -1.0, -2.0]})
    (block,) = compare({"lost": lost, "b": SECOND}).blocks
    assert block.rows[0].bits_per_dimension is None
    assert block.rows[1].bits_per_dimension is not None
    assert "bits/dim" in str(block), "some row has them"


def test_bits_compare_blocks_of_the_same_stored_values_only() -> None:
    dequantized = evaluation({5: [1.0, 2.0, 3.0]}, **DEQUANTIZED, log_abs_det_jacobian=-11.0)
    levels = evaluation({5: [-8.0, -9.0, -7.0]}, **LEVELS)
    assert [b.bits_of for b in compare({"a": FIRST, "b": levels}).blocks] == ["binary values", "stored values"]
    note = "Bits per dimension compare these blocks too"
    text = str(compare({"binary": FIRST, "density": dequantized, "levels": levels}))
    assert text.count(note) == 1
    listed = text[text.index(note) :].splitlines()[1:]
    assert listed == ["digits/test: 3 data, Dequantization", "digits/test: 3 data, Identity"]
    assert note not in str(compare({"binary": FIRST, "levels": levels}))
    for elsewhere in ({"data": "mnist/test"}, {"num_data": 2}):
        assert note not in str(compare({"a": dequantized, "b": dataclasses.replace(levels, **elsewhere)}))


def test_what_is_not_finite_is_a_dash() -> None:
    lost = evaluation({1: [-1.0, -2.0, -3.0], 5: [-math.inf, -1.0, -2.0]})
    (block,) = compare({"a": FIRST, "lost": lost}).blocks
    assert block.rows[1].difference == (None, None)
    line = next(line for line in str(block).splitlines() if line.startswith("lost"))
    assert line.split() == ["lost", "-3.000", "0.577", "-", "-", "-", "-", "closed", "form"]
    (block,) = compare({"lost": lost, "a": FIRST}).blocks
    assert block.rows[1].difference == (None, None), "nor is there a difference to it"


def test_reasons_for_monte_carlo_are_listed_once_each() -> None:
    why = "no closed form is known for KL(Normal || NormalMixture)"
    mixture = dataclasses.replace(SECOND, kl_methods={"z": why})
    layers = dataclasses.replace(SECOND, kl_methods={"z1": "closed form", "z2": "'z1' comes before 'z2' in the model"})
    lines = str(compare({"a": FIRST, "b": mixture, "c": mixture, "d": layers})).splitlines()
    assert lines[-2:] == [
        f"b, c: the KL of z is estimated by Monte Carlo, since {why}",
        "d: the KL of z2 is estimated by Monte Carlo, since 'z1' comes before 'z2' in the model",
    ]
    assert [line.split("  ")[-1].strip() for line in lines[3:7]] == [
        "closed form", "Monte Carlo", "Monte Carlo", "Monte Carlo, closed form",
    ]  # fmt: skip
    assert not any("Monte Carlo" in line for line in str(compare({"a": FIRST})).splitlines())


def test_no_line_is_too_wide() -> None:
    why = "no closed form is known for KL(InverseAutoregressiveFlow || CouplingFlow transformed by AffineTransform)"
    long = {f"DiscretizedLogisticMixture {i}": dataclasses.replace(SECOND, kl_methods={"z": why}) for i in range(5)}
    named = {name: dataclasses.replace(part, data="a/long/name of data/" * 3) for name, part in long.items()}
    lines = str(compare(named)).splitlines()
    assert max(map(len, lines)) <= 120
    assert " ".join(" ".join(lines).split()).endswith(why)


def test_the_table_in_full() -> None:
    mixture = dataclasses.replace(SECOND, kl_methods={"z": "no closed form is known for KL(Normal || NormalMixture)"})
    assert (
        str(compare({"N(0, I)": FIRST, "mixture": mixture}))
        == """\
digits/test: 3 data, DynamicBinarization, sha256 0123456789ab; log-probabilities, nats per datum

           ELBO  se data     L_5  se data  L_5 over the first  bits/dim           KL
N(0, I)  -9.000    0.577  -7.167    0.726                        2.5848  closed form
mixture  -8.833    0.167  -7.000    1.323     +0.167 +- 0.601    2.5247  Monte Carlo

mixture: the KL of z is estimated by Monte Carlo, since no closed form is known for KL(Normal || NormalMixture)"""
    )


def test_real_evaluations_meet() -> None:
    """Three models of the same stored digits; what is in the table is what `evaluate` found."""
    torch.set_default_dtype(torch.float32)
    stored = pyrovae.data.digits()
    evaluations = {}
    for name, ks in (("Bernoulli", (1, 4)), ("Categorical", (1, 2)), ("Gaussian", (1, 2)), ("Laplace", (1, 4))):
        part = getattr(likelihoods, name)
        data = stored.for_form(part.form)
        vae = make_vae(likelihood=part.for_data(data))
        evaluations[name] = pyrovae.evaluate(vae.model, vae.guide, data.test.first(6), ks=ks, device="cpu")
    comparison = compare(evaluations)
    assert [[row.name for row in block.rows] for block in comparison.blocks] == [
        ["Bernoulli"], ["Categorical"], ["Gaussian", "Laplace"],
    ]  # fmt: skip
    density = comparison.blocks[2]
    assert density.num_particles == 1
    gaussian, laplace = (evaluations[name] for name in ("Gaussian", "Laplace"))
    d = laplace.per_datum["L_1"] - gaussian.per_datum["L_1"]
    assert density.rows[1].difference == (pytest.approx(d.mean().item()), pytest.approx(d.std().item() / math.sqrt(6)))
    assert density.rows[0].bits_per_dimension == pytest.approx(
        -(gaussian.iwae[0].value + gaussian.log_abs_det_jacobian) / (64 * math.log(2))
    )
    for name, block in (("Bernoulli", 0), ("Categorical", 1)):
        assert comparison.blocks[block].rows[0].bits_per_dimension == evaluations[name].bits_per_dimension
    listed = str(comparison).split("code lengths of the same stored values:\n")[1].splitlines()
    assert listed == ["digits/test[:6]: 6 data, Identity", "digits/test[:6]: 6 data, Dequantization"]
