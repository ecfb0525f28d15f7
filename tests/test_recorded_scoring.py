"""Evaluation with traced and compiled scoring: the numbers of the programs."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import (
    ModelGuide,
    TwoLayers,
    evaluate,
    make_vae,
    pair_from,
    posterior_of,
    standard_normal,
)
from test_programs import NOT_BROADCASTING, TRUTH, X, masked, pixel_plate
from torch import Tensor

from pyrovae import VAE, likelihoods, priors
from pyrovae.compile import Recording, has_compiler
from pyrovae.evaluation import batch_scoring
from pyrovae.importance import chunks as recorded
from pyrovae.importance import compiled_runs
from pyrovae.importance.chunks import map_chunks
from pyrovae.results import Evaluation

compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler is found")
BINARY = torch.bernoulli(torch.full((23, 1, 8, 8), 0.5).double(), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replay graphs as they are, and count how often: what Inductor makes of them has tests of its own."""
    counted: list[int] = []
    replay = Recording.__call__
    monkeypatch.setattr(recorded, "has_compiler", lambda: True)
    monkeypatch.setattr(Recording, "compile", lambda *_: None)
    monkeypatch.setattr(Recording, "__call__", lambda self, *inputs: counted.append(1) or replay(self, *inputs))
    return counted


def of_vae(vae: VAE | TwoLayers) -> ModelGuide:
    return vae.model, vae.guide


def with_prior(prior: priors.Prior) -> ModelGuide:
    vae = make_vae()
    vae.prior = prior
    return of_vae(vae)


def with_params() -> ModelGuide:
    def p_x(z: Tensor, x: Tensor) -> dist.Normal:
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        return dist.Normal(z @ TRUTH.weight.T, scale).to_event(1)

    return pair_from(lambda _: standard_normal(3), p_x, posterior_of(TRUTH, offset=0.2))


PAIRS: dict[str, tuple[Callable[[], ModelGuide], Tensor]] = {
    "Bernoulli": (lambda: of_vae(make_vae()), BINARY),
    "Categorical": (lambda: of_vae(make_vae(likelihood=likelihoods.Categorical((1, 8, 8), 4))), BINARY.long() + 2),
    "Flow": (lambda: with_prior(priors.Flow(3)), BINARY),
    "pixels in a plate": (lambda: pixel_plate(offset=0.1, widen=1.3), X),
    "masked": (lambda: masked(lambda x: x > 0), X),
    "pyro.param": (with_params, X),
    "top-down": (lambda: of_vae(TwoLayers(bottom_up=False)), BINARY[:, 0, 0, :4]),
} | {name: (form, X) for name, form in NOT_BROADCASTING.items() if name != "silent"}


def both(pair: ModelGuide, x: Tensor, **options: object) -> tuple[Evaluation, Evaluation]:
    """Return an evaluation by each engine."""
    eager, captured = (evaluate(*pair, x, ks=(1, 10, 50), engine=engine, **options) for engine in ("eager", "captured"))
    return eager, captured


def require_same(a: Evaluation, b: Evaluation, *, within: float) -> None:
    assert a.per_datum.keys() == b.per_datum.keys()
    for name, value in a.per_datum.items():
        close = within * (1000 if name == "khat" else 1)  # the shape of a tail, as the weights differ by rounding
        torch.testing.assert_close(b.per_datum[name], value, rtol=close, atol=close, equal_nan=True, msg=name)


@pytest.mark.parametrize("name", PAIRS)
def test_recorded_scores_are_those_of_the_programs(name: str, replays: list[int]) -> None:
    """In chunks, and with a last batch of another shape."""
    make, x = PAIRS[name]
    require_same(*both(make(), x, chunk_size=7, batch_size=9), within=1e-10)
    assert replays


@compiler
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("x_shape", [(1, 8, 8), (5, 3)])  # an even and an odd number of elements
def test_compiled_scores_are_those_of_the_programs(
    dtype: torch.dtype, within: float, x_shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    vae = make_vae(likelihood=likelihoods.Bernoulli(x_shape)).to(dtype)
    x = BINARY.flatten(1)[:, : math.prod(x_shape)].reshape(23, *x_shape).to(dtype)
    require_same(*both(of_vae(vae), x, chunk_size=100), within=within)
    assert not [record for record in caplog.records if record.name == "pyrovae"]


def test_weights_are_read_at_every_evaluation(replays: list[int]) -> None:
    vae = make_vae()
    for _ in range(2):
        require_same(*both(of_vae(vae), BINARY), within=1e-10)
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.mul_(1.5)
    assert replays


def by_value(z: Tensor) -> Tensor:
    return z if float(z.mean()) > 0 else -z


def by_numpy(z: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(z.contiguous().numpy()))


def by_dlpack(z: Tensor) -> Tensor:
    return torch.from_dlpack(z.contiguous())


@pytest.mark.parametrize("through", [by_value, by_numpy, by_dlpack])
@pytest.mark.parametrize("of_x", [True, False])
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
def test_what_leaves_torch_is_not_recorded_and_one_line_says_why(
    through: Callable[[Tensor], Tensor],
    of_x: bool,  # noqa: FBT001
    replays: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def p_x(z: Tensor, x: Tensor) -> dist.Normal:
        loc = through(x[:, :1]) * z if of_x else through(z)
        return dist.Normal(loc @ TRUTH.weight.T, 1.0).to_event(1)

    pair = pair_from(standard_normal(3), p_x, posterior_of(TRUTH))
    require_same(*both(pair, X, batch_size=9, chunk_size=20), within=0)
    assert not replays
    lines = [record.message for record in caplog.records if "is not compiled" in record.message]
    assert len(lines) == 1
    if through is by_value:
        assert lines[0].endswith("it asks a tensor for its value, as .item() or `if tensor` do")


def test_results_of_chunks_are_joined_and_not_broadcast() -> None:
    programs, rows = SimpleNamespace(broadcasts=True), torch.arange(4)
    (joined,) = map_chunks(lambda chunk: [torch.full((3, 4), chunk.start)], programs, rows, 6, size=12)
    assert joined.sum(1).tolist() == [0, 0, 0, 12, 12, 12]
    with pytest.raises(RuntimeError, match="shape"):
        map_chunks(lambda chunk: [torch.ones(1, 4)], programs, rows, 6, size=12)


@pytest.mark.parametrize("num_elements", [4, 2**12])
def test_the_number_of_elements_decides(num_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "has_compiler", lambda: True)
    pair = SimpleNamespace(modules=(make_vae(),), num_elements=num_elements)
    many = recorded.COMPILED_FROM // max(num_elements, recorded.FEWEST_ELEMENTS)
    for engine, num_rows, device, compiled in (
        ("auto", many - 1, "cpu", False),
        ("auto", many, "cpu", True),
        ("eager", many, "cpu", False),
        ("captured", many, "cuda", False),
        ("captured", 1, "cpu", True),
    ):
        found = compiled_runs(pair, engine, num_rows=num_rows, device=torch.device(device))
        assert (found is not None) == compiled, (engine, num_rows, device)


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(recorded, "has_compiler", lambda: False)
    pair = SimpleNamespace(modules=(make_vae(),), num_elements=4)
    for engine in ("auto", "captured"):
        assert not caplog.records
        assert compiled_runs(pair, engine, num_rows=10**9, device=torch.device("cpu")) is None
    assert caplog.messages == ["the scoring of particles is not compiled: no C++ compiler is found"]


def test_evaluate_counts_the_particles_of_all_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        batch_scoring, "compiled_runs", lambda pair, engine, **options: asked.append((engine, options["num_rows"]))
    )
    evaluate(*of_vae(make_vae()), BINARY, ks=(1, 50), chunk_size=64)
    assert asked == [("auto", 23 * 50)]
