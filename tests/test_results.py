"""Tables in every format, and records to plain values and back."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field

import pyro
import pytest
import torch
from conftest import linear_gaussian, pair_of
from torch import Tensor

from pyrovae import Checks, bounds, evaluate
from pyrovae.bounds import log_mean_exp
from pyrovae.results import Estimate, Number, Table, Tabled, certified_margin
from pyrovae.results.estimates import certified_text, require_possible
from pyrovae.results.record import from_plain, tensors_of, to_plain

TABLE = Table(
    header=("", "ELBO_1 & more", "over <first>"),
    rows=(
        ("a|b", Number(-1.23456), Number(0.5, signed=True, error=0.25)),
        ("  100 %", Number(None), ""),
    ),
    title=("data < 5 & more", "second line"),
    notes=("a note",),
)


def test_text_is_aligned() -> None:
    assert str(TABLE).splitlines() == [
        "data < 5 & more",
        "second line",
        "",
        "         ELBO_1 & more     over <first>",
        "a|b             -1.235  +0.500 +- 0.250",
        "  100 %              -",
        "",
        "a note",
    ]


def test_columns_that_exceed_the_width_stand_below() -> None:
    assert TABLE.to_text(30).splitlines()[3:-2] == [
        "         ELBO_1 & more",
        "a|b             -1.235",
        "  100 %              -",
        "",
        "            over <first>",
        "a|b      +0.500 +- 0.250",
        "  100 %",
    ]
    wide = Table(tuple("abcdef"), (tuple(map(Number, [1.0] * 6)),))
    assert [len(line) for line in wide.to_text(38).splitlines()] == [26, 26, 0, 19, 19], "not one column alone"


def test_latex_escapes_and_has_as_many_cells_as_the_header() -> None:
    text = TABLE.to_latex()
    assert text.splitlines()[:2] == ["% data < 5 & more", "% second line"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [row.replace(r"\&", "").count("&") for row in rows] == [2, 2, 2]
    assert r"ELBO\_1 \& more" in text
    assert r"$+0.500 \pm 0.250$" in text
    assert r"100 \%" in text
    assert r"\begin{tabular}{lrr}" in text


@dataclass(frozen=True)
class Inner(Tabled):
    """A record inside another."""

    bound: Estimate
    name: str | None
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    def tables(self) -> tuple[Table, ...]:
        return (TABLE, TABLE)


@dataclass(frozen=True)
class Outer:
    """A record of records."""

    inner: Inner | None
    ladder: tuple[Estimate, ...]
    pairs: dict[str, tuple[float | None, float | None]]
    sizes: tuple[int, str]
    later: str | None = None
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)


OWN = {"ELBO", "KL of a/b", "later"}  # names of values per datum: with a slash, and as a field
ESTIMATE = Estimate("IWAE", 5, -1.5, 0.1, None, "why")


@pytest.mark.parametrize("inner", [None, Inner(ESTIMATE, None, {"AIS": torch.ones(2)})])
def test_records_go_to_json_and_back(inner: Inner | None) -> None:
    own = dict.fromkeys(OWN, torch.zeros(2))
    record = Outer(inner, (ESTIMATE, ESTIMATE), {"a": (None, 1.0)}, (3, "x"), None, own)
    plain = json.loads(json.dumps(to_plain(record), allow_nan=False))
    assert "per_datum" not in json.dumps(plain)
    tensors = tensors_of(record)
    assert set(tensors) == OWN | ({"inner/AIS"} if inner else set())
    found = from_plain(Outer, plain, tensors)
    assert found == record
    assert set(found.per_datum) == OWN
    if inner:
        assert set(found.inner.per_datum) == {"AIS"}


def test_missing_fields_take_their_defaults_and_other_differences_are_refused() -> None:
    record = Outer(None, (), {}, (3, "x"))
    plain = to_plain(record)
    del plain["later"]
    assert from_plain(Outer, plain | {"jackknife": 1}) == record, "a field of older files"
    del plain["sizes"]
    with pytest.raises(ValueError, match=r"this version of pyrovae writes: it differs in newer, sizes\Z"):
        from_plain(Outer, plain | {"newer": 1})
    with pytest.raises(ValueError, match="`content` of Outer must be a dict, got 3"):
        from_plain(Outer, 3)


HOSTILE = "=a\x1b[31m\r\n% \x00|<b>\u202e\udc80"  # a name that would leave its cell
ESCAPED = r"=a\x1b[31m\r\n% \x00|<b>\u202e\udc80"


def test_a_name_stays_text_in_every_format() -> None:
    table = Table(("model", "ELBO"), ((HOSTILE, Number(-1.0)),), title=(HOSTILE,), notes=(HOSTILE,))
    for text in (str(table), table.to_markdown(), table.to_latex(), table.to_csv(), table.to_html()):
        assert text.replace("\n", "").isprintable()
        text.encode()
    assert f"{ESCAPED}  -1.000" in str(table).splitlines()
    assert table.to_markdown().splitlines()[-3] == r"| =a\\x1b[31m\\r\\n% \\x00\|\<b>\\u202e\\udc80 | -1.000 |"
    lines = table.to_latex().splitlines()
    assert [line for line in lines if line.startswith("%")] == [f"% {ESCAPED}"] * 2
    assert r"=a\textbackslash{}x1b[31m\textbackslash{}r\textbackslash{}n\% " in lines[5]
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [["model", "ELBO"], [ESCAPED, "-1.0"]]


def test_a_log_probability_above_zero_by_four_errors_is_refused() -> None:
    require_possible(Estimate("L_1", 1, 0.03, 0.1, 0.01))
    with pytest.raises(ValueError, match="a log-probability of discrete data is at most 0"):
        require_possible(Estimate("L_1", 1, 0.05, 0.1, 0.01))


@pytest.mark.parametrize("num_data", [1, 10, 300])
@pytest.mark.parametrize(("offset", "widen"), [(0.0, 1.0), (0.0, 0.3), (2.0, 0.5)])
def test_certified_bounds_hold_for_good_and_terrible_guides(num_data: int, offset: float, widen: float) -> None:
    """Z ~ N(0, 1), x given z ~ N(z, 1), so that x ~ N(0, 2) and z given x ~ N(x / 2, 1 / 2)."""
    rounds, k, normal = 2000, 4, torch.distributions.Normal
    torch.manual_seed(0)
    x = normal(0.0, 2**0.5).sample((num_data,))
    exact = normal(0.0, 2**0.5).log_prob(x).mean()
    posterior, guide = normal(x / 2, 0.5**0.5), normal(x / 2 + offset, widen * 0.5**0.5)

    def log_weights(z: Tensor) -> Tensor:  # (rounds, K, N)
        return normal(0.0, 1.0).log_prob(z) + normal(z, 1.0).log_prob(x) - guide.log_prob(z)

    lower = log_mean_exp(log_weights(guide.sample((rounds, k))), 1).mean(1)
    upper = -log_mean_exp(-log_weights(posterior.sample((rounds, k))), 1).mean(1)
    margin = certified_margin(num_data)
    assert (lower - margin > exact).double().mean() <= 0.05
    assert (upper + margin < exact).double().mean() <= 0.05
    assert margin == pytest.approx(math.log(20) / num_data)


def test_printed_certified_bounds_are_rounded_outwards() -> None:
    assert "at least -1.235, for any guide" in certified_text("p(x)", -1.2341)
    assert "at least 1.234, for any guide; with the same confidence it is at most 1.236" in certified_text(
        "p(x)", 1.2349, 1.2351
    )


def with_factor(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(z.sum(-1, keepdim=True) + torch.zeros(5), 1.0).to_event(1), obs=x)
        pyro.factor("f", torch.tensor(5.0))


CHAINS = {"num_chains": 2, "num_temperatures": 3}
CHECKS = Checks(num_annealed=6, num_simulated=0, num_refined=0, num_encoded=0, **CHAINS)
CERTIFIED = "with 95 % confidence over the draws, the mean of log p(x) is at least "


def test_an_evaluation_certifies_its_bound() -> None:
    truth = linear_gaussian()
    found = evaluate(*pair_of(truth), truth.sample(40), ks=(1, 10), show_progress=False)
    assert found.certified == found.iwae[-1].value - math.log(20) / 40
    printed = float(str(found).split(CERTIFIED)[1].split(",")[0])
    assert found.certified - 1e-3 < printed <= found.certified


def test_bounds_of_an_unnormalized_model_are_not_certified_and_say_so() -> None:
    truth = linear_gaussian()
    (model, guide), x = pair_of(truth), truth.sample(6)
    certified, found = (bounds.ais(program, guide, x, **CHAINS) for program in (model, with_factor))
    assert CERTIFIED in str(certified)
    evaluation = evaluate(with_factor, guide, x, ks=(1, 10), checks=CHECKS, show_progress=False)
    assert evaluation.certified is None
    for record in (found, evaluation):
        assert CERTIFIED not in str(record)
        assert from_plain(type(record), json.loads(json.dumps(to_plain(record)))) == record
    warning = "NOT a log-probability: p(x) is not normalized"
    assert all(str(table).count(warning) == 1 for table in (*found.tables(), *evaluation.tables()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bounds_in_low_precision_or_of_data_that_the_model_draws_are_not_certified(dtype: torch.dtype) -> None:
    truth = linear_gaussian()
    model, guide = pair_of(truth)

    def drawing(x: Tensor) -> None:
        model(x.double() if dtype == torch.bfloat16 else x + torch.rand_like(x))

    x = truth.sample(6).to(dtype)
    found = evaluate(drawing, lambda x: guide(x.double()), x, ks=(1, 10), checks=CHECKS, show_progress=False)
    assert found.certified is None
    assert (found.checked.annealing is None) == (dtype == torch.float64), "densities of drawn data differ between runs"
    assert CERTIFIED not in str(found)
