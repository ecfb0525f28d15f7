"""Comparisons: paired differences with their intervals, a ranking, and refusals of what may not be compared."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae.diagnostics import summarize_weights
from pyrovae.results import (
    Annealing,
    AnnealingSettings,
    Difference,
    Estimate,
    Evaluation,
    ObservedData,
    Weights,
    bits_per_dimension,
    compare,
)
from pyrovae.results.evaluation_record import CheckResults
from pyrovae.results.training_seeds import difference_over_seeds

STORED = 4  # dimensions of the data of these tests


def estimate(name: str, values: Tensor, k: int = 1) -> Estimate:
    return Estimate.over_data(name, k, values, values.new_empty(0, len(values)))


def evaluation(ladder: dict[int, list[float]], **changes: Any) -> Evaluation:
    """Return an evaluation with these values of L_K per datum, of binary data if nothing else is said."""
    per_datum = {f"L_{k}": torch.tensor(values) for k, values in ladder.items()}
    per_datum["ELBO"] = per_datum[f"L_{min(ladder)}"] - 1.0
    rungs = tuple(estimate("IWAE", per_datum[f"L_{k}"], k) for k in ladder)
    elbo = estimate("ELBO", per_datum["ELBO"])
    bits = bits_per_dimension(
        rungs[-1].value or 0.0, num_dimensions=STORED, log_abs_det_jacobian=changes.get("log_abs_det_jacobian", 0.0)
    )
    made = Evaluation(
        elbo=elbo,
        reconstruction=elbo,
        kl=elbo,
        iwae=rungs,
        kl_methods={"z": "closed form"},
        gains={},
        num_data=len(per_datum["ELBO"]),
        data="digits/test",
        data_hash="0123456789abcdef",
        data_transform={"class": "DynamicBinarization"},
        base_measure="counting",
        log_abs_det_jacobian=None,
        bits_per_dimension=None if rungs[-1].value is None else bits,
        seed=0,
        settings={},
        versions={},
        date="2026-01-01",
        per_datum=per_datum,
    )
    return replace(made, **changes)


FIRST = evaluation({1: [-7.0, -8.0, -9.0], 5: [-6.0, -7.0, -8.5], 50: [-5.5, -6.5, -8.0]})
SECOND = evaluation({1: [-7.5, -8.0, -8.0], 5: [-5.0, -6.5, -9.5]})
DEQUANTIZED = {"data_hash": "feed", "data_transform": {"class": "Dequantization"}, "base_measure": "Lebesgue"}
LEVELS = {"data_hash": "beef", "data_transform": {"class": "Identity"}}


def test_differences_are_paired_datum_by_datum() -> None:
    noisy = replace(SECOND, iwae=(SECOND.iwae[0], replace(SECOND.iwae[1], se_monte_carlo=0.06)))
    exact = replace(FIRST, iwae=tuple(replace(bound, se_monte_carlo=0.08) for bound in FIRST.iwae))
    share = compare({"a": exact, "b": noisy}).rows[1].draws_share
    assert share == pytest.approx((0.06**2 + 0.08**2) * 3 / torch.tensor([1.0, 0.5, -1.0]).var().item())
    comparison = compare({"a": FIRST, "b": SECOND})
    (block,) = comparison.blocks
    assert block.num_particles == 5, "the largest K that both have"
    first, second = block.rows
    assert first.difference is None
    d = [1.0, 0.5, -1.0]  # L_5 of the second minus L_5 of the first
    mean = sum(d) / 3
    error = math.sqrt(sum((value - mean) ** 2 for value in d) / 2 / 3)
    assert (second.difference.mean, second.difference.se) == (pytest.approx(mean), pytest.approx(error))
    assert second.difference.p_value > 0.05
    assert (first.bound, second.bound, second.elbo) == (FIRST.iwae[1], SECOND.iwae[1], SECOND.elbo)
    twice = compare({"a": FIRST, "again": FIRST})
    assert twice.rows[1].difference == Difference(0.0, 0.0, 0.0, 0.0, p_value=1.0)
    assert [row.rank for row in twice.rows] == [1, 1]


def test_intervals_cover_a_true_difference_of_zero_at_95_percent() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (2, 50):
        draws = torch.randn(4000, 2, n, generator=generator, dtype=torch.float64)
        found = [Difference.over_data(a, b) for a, b in draws]
        wrong = sum(difference.low > 0 or difference.high < 0 for difference in found)
        assert wrong / 4000 == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))
    with pytest.raises(ValueError, match=r"paired datum by datum, but received values of shapes \(2,\) and \(1,\)"):
        Difference.over_data(torch.zeros(2), torch.zeros(1))


def test_differences_of_large_float32_values_are_exact_sums() -> None:
    values = torch.full((1001,), 1e6, dtype=torch.float32)
    other = torch.linspace(0, 1, 1001, dtype=torch.float32)  # the difference has more digits than float32
    pair = [replace(FIRST, iwae=FIRST.iwae[:1], per_datum={"L_1": v}) for v in (values, other)]
    difference = compare(dict(zip("ab", pair, strict=True))).rows[1].difference
    expected = other.double() - values.double()
    assert (difference.mean, difference.se) == (expected.mean().item(), expected.std().item() / math.sqrt(1001))


def test_one_datum_has_no_standard_error() -> None:
    one = [replace(FIRST, num_data=1, per_datum={"L_50": torch.tensor([v])}) for v in (-3.0, -2.0)]
    comparison = compare({"a": one[0], "b": one[1]})
    why = "a single datum has no standard error"
    assert comparison.rows[1].difference == Difference(1.0, None, None, None, why)
    line = next(line for line in str(comparison).splitlines() if line.startswith("b "))
    assert line.split()[-3:] == ["+1.000", "-", "-"]
    assert f"b: difference: {why}" in str(comparison)


def ladder_of(value: float, spread: float = 0.001) -> Evaluation:
    return evaluation({5: [value - spread, value, value + spread]})


def test_the_ranking_is_by_the_bound_and_marks_unresolved_differences() -> None:
    low, high, near = ladder_of(-9.0), ladder_of(-5.0), evaluation({5: [-4.0, -5.0, -6.1]})
    (block,) = compare({"low": low, "high": high, "near": near}).blocks
    assert block.ranking == ("high", "near", "low")
    assert [row.rank for row in block.rows] == [3, 1, 1]
    assert [row[1] for row in block.table().rows] == ["3", "1=", "1="], "those not told apart share a rank"
    assert [step.p_value < 0.05 for step in block.steps] == [False, True]
    assert block.steps[1].mean == pytest.approx(-5.033333 + 9.0, abs=1e-5)
    text = str(block.table())
    assert (
        "\nRanking by L_5 (one training seed each): high ~ near > low (~: not told apart from the next at the 5 %"
        in text
    )
    assert "adjusted for 2 differences (Holm); the 95 % intervals are not" in " ".join(block.table().title)
    assert "Ranking by L_5 (one training seed each): high > low\n" in str(compare({"low": low, "high": high}))
    assert not any(word in str(compare({"low": low})) for word in ("rank", "single trainings", "resolved"))


def test_any_model_can_be_the_reference() -> None:
    both = {"a": FIRST, "b": SECOND}
    forth, back = compare(both), compare(both, reference="b")
    assert back.blocks[0].reference == "b"
    assert back.rows[1].difference is None
    there, again = forth.rows[1].difference, back.rows[0].difference
    assert (again.mean, again.low, again.high) == (-there.mean, -there.high, -there.low)
    assert "L_5 minus that of b, paired" in str(back)
    assert forth.blocks[0].ranking == back.blocks[0].ranking
    with pytest.raises(ValueError, match=r"the reference is one of a, b, but received 'c'"):
        compare(both, reference="c")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data_hash": "feed" * 4, "data": "mnist/test", "num_data": 9},
            "data, scored values (a, again: 3 data of digits/test, sha256 0123456789ab; "
            "b: 9 data of mnist/test, sha256 feedfeedfeed); evaluate all on the same values",
        ),
        ({"base_measure": "Lebesgue"}, "base measure (a, again: log-probabilities; b: log-densities)"),
        ({"num_covariates": 10}, "covariates (a, again: 0 covariates; b: 10 covariates)"),
        ({"unnormalized": "a factor"}, "normalization (a, again: normalized; b: a factor)"),
        (
            {"observed": ObservedData("x where it is not masked", 2.5, "0b5e" * 4)},
            "observed values (a, again: observed values not known; "
            "b: x where it is not masked, 2.5 elements of a datum, sha256 0b5e0b5e0b5e)",
        ),
    ],
    ids=["data", "measure", "covariates", "normalization", "observed"],
)
def test_what_may_not_be_compared_is_refused(changes: dict[str, Any], words: str) -> None:
    other = replace(FIRST, **changes)
    with pytest.raises(ValueError, match="these differ in ") as refused:
        compare({"a": FIRST, "b": other, "again": FIRST})
    assert f"these differ in {words}" in str(refused.value)
    assert len(compare({"a": FIRST, "b": other}, blocks=True).blocks) == 2


def test_blocks_are_by_data_and_measure() -> None:
    other_data = replace(SECOND, data_hash="other")
    density = replace(SECOND, base_measure="Lebesgue")
    models = {"a": FIRST, "b": other_data, "c": density, "d": SECOND}
    comparison = compare(models, blocks=True, reference="d")
    assert [[row.name for row in block.rows] for block in comparison.blocks] == [["a", "d"], ["b"], ["c"]]
    assert [block.reference for block in comparison.blocks] == ["d", "b", "c"]
    assert comparison.blocks[2].title.endswith("log-densities, nats per datum")
    text = str(comparison)
    assert text.count("Nats compare models within a block only") == 1
    assert "Nats compare" not in str(compare({"a": FIRST, "d": SECOND}, blocks=True))


BARE = Evaluation.from_json(FIRST.to_json())


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ({}, "nothing to compare; give evaluations by name"),
        ([FIRST, SECOND], "`evaluations` of compare must be a dictionary, got"),
        ({"a": FIRST, "b": "runs/b"}, r"'b' is a str; run folders are compared by pyrovae.report.compare"),
        ({"a": FIRST, "b": BARE}, r"'b' holds no values of L_50 per datum.*report.read_report"),
        (
            {"a": FIRST, "b": evaluation({2: [-1.0, -2.0], 10: [-0.5, -1.5]})},
            r"no K in common \(a: 1, 5, 50; b: 2, 10\); evaluate them with the same",
        ),
    ],
    ids=["nothing", "list", "folder", "bare", "ladders"],
)
def test_an_impossible_comparison_is_refused(evaluations: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        compare(evaluations)


def test_bits_are_those_of_the_bound_in_the_row() -> None:
    comparison = compare({"a": FIRST, "b": SECOND})
    for row in comparison.rows:
        assert row.bits_per_dimension == pytest.approx(-row.bound.value / (STORED * math.log(2)))
    dense = [evaluation({5: v}, **DEQUANTIZED, log_abs_det_jacobian=-11.0) for v in ([-1.0, 2.0], [1.0, 3.0])]
    longer = evaluation({5: [3.0, 4.0], 50: [5.0, 6.0]}, **DEQUANTIZED, log_abs_det_jacobian=-11.0)
    bits = [row.bits_per_dimension for row in compare({"a": dense[0], "b": dense[1], "c": longer}).rows]
    assert bits == [pytest.approx((11 - mean) / (STORED * math.log(2))) for mean in (0.5, 2.0, 3.5)]


def test_bits_compare_blocks_of_the_same_stored_values_only() -> None:
    dequantized = evaluation({5: [1.0, 2.0, 3.0]}, **DEQUANTIZED, log_abs_det_jacobian=-11.0)
    levels = evaluation({5: [-8.0, -9.0, -7.0]}, **LEVELS)
    blocks = compare({"a": FIRST, "b": levels}, blocks=True).blocks
    assert [b.bits_of for b in blocks] == ["binary values", "stored values"]
    note = "Bits per dimension compare these blocks too"
    text = str(compare({"binary": FIRST, "density": dequantized, "levels": levels}, blocks=True))
    assert text.count(note) == 1
    listed = text[text.index(note) :].splitlines()[1:]
    assert listed == ["digits/test: 3 data, Dequantization", "digits/test: 3 data, Identity"]
    assert note not in str(compare({"binary": FIRST, "levels": levels}, blocks=True))
    for elsewhere in ({"data": "mnist/test"}, {"num_data": 2}):
        assert note not in str(compare({"a": dequantized, "b": replace(levels, **elsewhere)}, blocks=True))


def test_what_is_not_finite_is_a_dash_with_its_reason() -> None:
    lost = evaluation({1: [-1.0, -2.0, -3.0], 5: [-math.inf, -1.0, -2.0]})
    comparison = compare({"a": FIRST, "lost": lost})
    why = "1 of 3 data have a value that is not finite, which no mean may hide"
    assert comparison.rows[1].difference == Difference(None, None, None, None, why)
    assert comparison.blocks[0].ranking == ("a",)
    text = str(comparison)
    line = next(line for line in text.splitlines() if line.startswith("lost"))
    assert line.split() == ["lost", "-", "-3.000", "-3.000", "-3.000", *"------"]
    assert f"lost: L_5: {why}" in text
    assert f"lost: difference: {why}" in text
    assert compare({"lost": lost, "too": lost}).blocks[0].ranking == ()


def annealed(evaluated: Evaluation, values: list[float], **settings: Any) -> Evaluation:
    """Return an evaluation with AIS on its first data."""
    bound = torch.tensor(values)
    record = Annealing(
        bound=estimate("AIS", bound, 16),
        acceptance=0.6,
        lowest_acceptance=0.5,
        ess=8.0,
        lowest_ess=4.0,
        num_not_finite=0,
        num_lost=0,
        settings=AnnealingSettings(**settings),
        num_data=len(values),
        per_datum={"AIS": bound},
    )
    return replace(evaluated, checked=CheckResults(record, None, None, None, None, None, {}))


def test_annealing_has_a_table_of_its_own_where_all_have_it_on_as_many_data() -> None:
    models = {"a": annealed(FIRST, [-5.0, -6.0]), "b": annealed(SECOND, [-4.5, -4.0], seed=3)}
    comparison = compare(models)
    assert comparison.rows == compare({"a": FIRST, "b": SECOND}).rows
    block = comparison.blocks[0].annealed
    difference = block.rows[1].difference
    assert (difference.mean, difference.se) == (1.25, pytest.approx(0.75))
    assert block.ranking == ("b", "a")
    table = comparison.tables()[1]
    assert table.header == ("model", "rank", "AIS", "se data", "difference", "95 % interval", "resolved")
    assert "on the first 2 of these data, from the guide" in table.title[0]
    assert "AIS" not in comparison.to_csv()


def test_annealing_is_left_out_where_one_has_none_or_on_other_data() -> None:
    first = annealed(FIRST, [-5.0, -6.0])
    bare = replace(first.checked.annealing, per_datum={})
    without_values = replace(SECOND, checked=replace(first.checked, annealing=bare))
    not_asked = replace(SECOND, checked=CheckResults(None, None, None, None, None, None, {}))
    for other in (SECOND, annealed(SECOND, [-4.0] * 3), without_values, not_asked):
        assert "AIS" not in str(compare({"a": first, "b": other}))
    assert "AIS" not in str(compare({"a": without_values, "b": without_values}))


def test_reasons_for_monte_carlo_are_listed_once_each() -> None:
    why = "no closed form is known for KL(Normal || NormalMixture)"
    mixture = replace(SECOND, kl_methods={"z": why})
    layers = replace(SECOND, kl_methods={"z1": "closed form", "z2": "'z1' comes before 'z2' in the model"})
    lines = str(compare({"a": FIRST, "b": mixture, "c": mixture, "d": layers})).splitlines()
    assert lines[-2:] == [
        f"b, c: the KL of z is estimated by Monte Carlo, since {why}",
        "d: the KL of z2 is estimated by Monte Carlo, since 'z1' comes before 'z2' in the model",
    ]
    assert not any("Monte Carlo" in line for line in str(compare({"a": FIRST})).splitlines())


def test_the_table_in_full() -> None:
    mixture = replace(SECOND, kl_methods={"z": "no closed form is known for KL(Normal || NormalMixture)"})
    assert (
        str(compare({"N(0, I)": FIRST, "mixture": mixture}))
        == """\
digits/test: 3 data, DynamicBinarization, sha256 0123456789ab; log-probabilities, nats per datum
difference: L_5 minus that of N(0, I), paired datum by datum; resolved: whether it differs from 0 at the 5 % level

model    rank    ELBO  reconstruction      KL     L_5  se data  bits/dim       difference     95 % interval  resolved
N(0, I)    1=  -9.000          -9.000  -9.000  -7.167    0.726    2.5848
mixture    1=  -8.833          -8.833  -8.833  -7.000    1.323    2.5247  +0.167 +- 0.601  [-2.419, +2.752]        no

Ranking by L_5 (one training seed each): mixture ~ N(0, I) (~: not told apart from the next at the 5 % level)
L_5 may rank models in another order than log p(x). Gap from L_5 to log p(x): not known for any model.
To tell 0.2 nats apart (5 % level, power 80 %) by paired differences takes 213 data (here 3).
Standard errors and intervals are over the data, for these very weights, of one training seed. Another seed moves L_K
  too, by an amount that one seed cannot show: a difference between single trainings need not be one between models,
  resolved or not.
mixture: the KL of z is estimated by Monte Carlo, since no closed form is known for KL(Normal || NormalMixture)"""
    )


def test_csv_holds_numbers_in_full_in_columns_of_their_own() -> None:
    comparison = compare({"plain": FIRST, "50 % & p|q_r": SECOND, "[a, b] +- #1": ladder_of(-2.0, 0.25)})
    _, *read = csv.DictReader(io.StringIO(comparison.to_csv()))
    columns = ["ELBO", "L_5", "se data", "bits/dim", "difference", "se", "95 % interval low", "95 % interval high"]
    for row, line in zip(comparison.rows[1:], read, strict=True):
        d = row.difference
        paired = [d.mean, d.se, d.low, d.high]
        expected = [row.elbo.value, row.bound.value, row.bound.se_data, row.bits_per_dimension, *paired]
        assert [float(line[name]) for name in columns] == expected
        assert line["model"] == row.name
    assert [row.difference.p_value < 0.05 for row in comparison.rows[1:]] == [False, True]
    assert [line["rank"] for line in read] == ["1=", "1="]
    assert [line["resolved"] for line in read] == ["no", "no"]  # after Holm's adjustment for two comparisons


def weights_of(gap: float, k: int, *, verdict: str | None = None) -> Weights:
    """Return weights that leave a gap at the largest K, nats; 0.05 are tolerated."""
    rungs = {"L_50": torch.zeros(40), "bias": torch.full((40,), gap), "khat": torch.zeros(40)}
    rungs |= {"ESS": torch.full((40,), 50.0), "largest weight": torch.full((40,), 0.02)}
    verdict = verdict or ("K is enough" if gap <= 0.05 else "K is not enough")
    return replace(summarize_weights(rungs, ks=[50]), num_particles=k, verdict=verdict)


def seeds_of(
    mean: float, *, num_seeds: int, sd: float = 0.1, num_data: int = 200, gap: float = 0.0
) -> list[Evaluation]:
    """Return evaluations of a model by training seed: data, which all models share, and seeds shift its values."""
    data = torch.randn(num_data, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifts = mean + sd * torch.randn(num_seeds, dtype=torch.float64)
    values = [(shift + data + 0.5 * torch.randn(num_data)).tolist() for shift in shifts]
    return [evaluation({5: rung}, weights=weights_of(gap, 5)) for rung in values]


def test_training_seeds_of_a_model_are_one_row() -> None:
    torch.manual_seed(0)
    models = {"a": seeds_of(-9.0, num_seeds=3), "b": seeds_of(-8.0, num_seeds=4), "c": seeds_of(-9.0, num_seeds=1)[0]}
    comparison = compare(models)
    first, second, third = comparison.rows
    values = torch.tensor([e.iwae[0].value for e in models["b"]], dtype=torch.float64)
    assert second.bound.value == pytest.approx(values.mean().item())
    assert second.sd_seeds == pytest.approx(values.std().item())
    assert [row.num_seeds for row in comparison.rows] == [3, 4, 1]
    stacked = [torch.stack([e.per_datum["L_5"] for e in models[name]]) for name in "ba"]
    assert second.difference == difference_over_seeds(*stacked)
    assert third.difference.se > 0.9 * first.sd_seeds  # one seed varies as the seeds of the others
    assert second.difference.se > Difference.over_data(*(values.mean(0) for values in stacked)).se
    text = " ".join(str(comparison).split())
    assert "few seeds make them wide. With one seed, taken to vary as the seeds of the others: c." in text
    assert "(one training seed each)" not in text
    assert "training seeds of each model with these 200 data" in text
    assert second.is_best
    assert not first.is_best
    assert third.sd_seeds is None


def test_seeds_of_a_model_must_share_their_data() -> None:
    other = replace(FIRST, data_hash="beef")
    with pytest.raises(ValueError, match=r"differ in scored values .*a \(1\).*a \(2\)"):
        compare({"a": [FIRST, other]}, blocks=True)
    same = replace(FIRST, settings={"weights": "abc"})
    with pytest.raises(ValueError, match=r"two of 'a' have the same weights"):
        compare({"a": [same, same]})
    with pytest.raises(ValueError, match=r"one evaluation or more, but 'a' has none"):
        compare({"a": [], "b": FIRST})


def test_the_best_is_bold_only_where_the_data_say_so() -> None:
    torch.manual_seed(1)
    far, near = (compare({"a": seeds_of(-9.0, num_seeds=3), "b": seeds_of(m, num_seeds=3)}) for m in (-7.0, -8.99))
    assert rf"$\mathbf{{{far.rows[1].bound.value:.3f}}}$" in far.to_latex()
    assert f"**{far.rows[1].bound.value:.3f}**" in far.to_markdown()
    assert r"\mathbf" not in near.to_latex()
    tight = weights_of(0.0, 5)
    single = compare({name: replace(ladder_of(v), weights=tight) for name, v in (("low", -9.0), ("high", -5.0))})
    assert single.rows[1].p_value < 0.05
    assert r"\mathbf" not in single.to_latex(), "one training seed each"
    assert "Ranking by L_5: b > a" in str(far)
    assert " ~ " in str(near)
    for gap, is_bold in ((1.5, True), (3.0, False)):  # the means differ by 2 nats
        loose = compare({"a": seeds_of(-9.0, num_seeds=3, gap=gap), "b": seeds_of(-7.0, num_seeds=3, gap=9.0)})
        assert (r"\mathbf" in loose.to_latex()) == is_bold
    unknown = [replace(e, weights=weights_of(0.0, 5, verdict="unknown")) for e in seeds_of(-9.0, num_seeds=3)]
    assert r"\mathbf" not in compare({"a": unknown, "b": seeds_of(-7.0, num_seeds=3)}).to_latex()


def test_models_with_loose_bounds_are_named_in_one_sentence() -> None:
    longer = evaluation({1: [-7.0, -8.0], 5: [-6.5, -7.5], 50: [-6.0, -7.0]}, weights=weights_of(0.01, 50))
    verdicts = {"tight": weights_of(0.02, 5), "loose": weights_of(0.3, 5)}
    words = ("not asymptotic", "unknown", "K may not be enough", "K is not enough")
    verdicts |= {verdict: weights_of(0.0, 5, verdict=verdict) for verdict in words}  # the last one by AIS
    models = {name: evaluation({1: [-7.0, -8.0], 5: [-6.5, -7.5]}, weights=w) for name, w in verdicts.items()}
    (note,) = [line for line in compare(models | {"longer": longer}).tables()[0].notes if "another order" in line]
    assert note == (
        "L_5 may rank models in another order than log p(x). Gap from L_5 to log p(x): loose about 0.300 nats; longer "
        "about 0.510 nats; not known for not asymptotic, unknown, K may not be enough, K is not enough."
    )
    assert "another order" not in str(compare({"a": models["tight"], "b": models["tight"]}))


def test_cautions_of_the_evaluations_stand_below_the_comparison() -> None:
    doubtful = replace(FIRST, cautions=("the network returns probabilities", "x is torch.float16"))
    notes = (
        compare({"a": doubtful, "b": SECOND, "c": replace(SECOND, cautions=doubtful.cautions[:1])}).tables()[0].notes
    )
    assert notes[-2:] == ("a, c: caution: the network returns probabilities", "a: caution: x is torch.float16")


@pytest.mark.slow
def test_of_equal_models_few_are_marked() -> None:
    torch.manual_seed(2)
    marked = best = 0
    for _ in range(500):
        rows = compare({name: seeds_of(-9.0, num_seeds=3, num_data=30) for name in "abc"}).rows
        marked += any(row.p_value is not None and row.p_value < 0.05 for row in rows)
        best += any(row.is_best for row in rows)
    assert marked / 500 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)
    assert best / 500 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 500)
