"""Networks in bfloat16: what is rounded, what is not, and what it does to the bound."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from conftest import make_vae
from test_capture import Programs, of_vae, two_layers, vamp, with_params
from torch import Tensor, nn

import pyrovae
from pyrovae import Training, fit, posteriors
from pyrovae.compile import has_compiler
from pyrovae.evaluation import evaluate
from pyrovae.objectives import ELBO
from pyrovae.training import step as steps
from pyrovae.training.bfloat16 import bfloat16_networks


@pytest.fixture(autouse=True)
def _float32() -> None:
    torch.set_default_dtype(torch.float32)


def iaf() -> Programs:
    vae = make_vae()
    posterior = posteriors.IAF(3)
    encoder = pyrovae.networks.MLPEncoder((1, 8, 8), posterior.param_shape, hidden=(8,))
    parts = {"prior": vae.prior, "decoder": vae.decoder, "likelihood": vae.likelihood}
    return of_vae(pyrovae.VAE(**parts, encoder=encoder, posterior=posterior))


def sites(programs: Programs, x: Tensor) -> dict[str, Any]:
    model, guide, _ = programs
    guide_trace = pyro.poutine.trace(guide).get_trace(x)
    trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace(x)
    for each in (trace, guide_trace):
        each.compute_log_prob()
    named = {f"model {name}": site for name, site in trace.nodes.items()}
    named |= {f"guide {name}": site for name, site in guide_trace.nodes.items()}
    return {name: site for name, site in named.items() if site["type"] == "sample" and not name.endswith("data")}


@pytest.mark.parametrize("make", [lambda: of_vae(make_vae()), with_params, two_layers, vamp, iaf])
def test_log_probabilities_are_float32_and_only_networks_are_rounded(make: Any) -> None:
    torch.manual_seed(0)
    programs = make()
    x = (torch.rand(6, 1, 8, 8) < 0.4).float()
    torch.manual_seed(1)
    exact = sites(programs, x)
    torch.manual_seed(1)
    with bfloat16_networks(programs[2]):
        rounded = sites(programs, x)
    for name, site in rounded.items():
        assert site["value"].dtype == site["log_prob"].dtype == torch.float32, name
        torch.testing.assert_close(site["log_prob"], exact[name]["log_prob"], rtol=0.05, atol=0.2)
    assert any(not torch.equal(site["log_prob"], exact[name]["log_prob"]) for name, site in rounded.items())
    torch.manual_seed(1)
    again = sites(programs, x)
    assert all(torch.equal(site["log_prob"], exact[name]["log_prob"]) for name, site in again.items()), "it is over"


def test_hooks_are_gone_after_an_error() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with bfloat16_networks([net]), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        net(torch.ones(1, 3))
    assert not torch.is_autocast_enabled("cpu")
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def fitted(precision: str, engine: str) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    data = pyrovae.data.digits().for_form("binary")
    vae = make_vae(8)
    training = Training(epochs=5, learning_rate=5e-3, precision=precision, device="cpu", engine=engine)
    history = fit(vae.model, vae.guide, data, training=training, objective=ELBO(), show_progress=False)
    found = pyrovae.evaluate(vae.model, vae.guide, data, ks=(1, 10), show_progress=False)
    return history, torch.tensor([found.elbo.value, found.iwae[-1].value])


def test_the_bound_hardly_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on the digits in both precisions: a tenth of a nat or less between them, of some 25."""
    monkeypatch.setattr(steps, "has_compiler", lambda: False)
    (full, exact), (history, found), (_, captured) = (
        fitted(*how) for how in (("float32", "eager"), ("bfloat16", "eager"), ("bfloat16", "captured"))
    )
    assert (found - exact).abs().max() < 0.1
    assert not torch.equal(found, exact), "it was rounded"
    torch.testing.assert_close(captured, found, rtol=1e-3, atol=0.0)
    trained, watched = history.epochs[-1], history.epochs[-1].validation
    assert abs(watched["elbo"] - full.epochs[-1].validation["elbo"]) < 0.1
    assert trained.elbo == pytest.approx(full.epochs[-1].elbo, abs=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler is found")
def test_rounded_steps_are_compiled_too(caplog: pytest.LogCaptureFixture) -> None:
    (_, found), (_, expected) = (fitted("bfloat16", how) for how in ("captured", "eager"))
    assert "not compiled" not in caplog.text
    assert (found - expected).abs().max() < 0.1


def test_a_model_in_half_precision_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    vae, x = make_vae(), torch.bernoulli(torch.full((4, 1, 8, 8), 0.5))
    for dtype, count in ((torch.bfloat16, 1), (torch.float32, 0)):
        caplog.clear()
        evaluate(vae.to(dtype).model, vae.guide, x.to(dtype), ks=(1, 5), show_progress=False)
        assert sum(str(dtype) in message and "off by a nat" in message for message in caplog.messages) == count


def test_an_autocast_of_the_callers_does_not_reach_an_evaluation() -> None:
    vae, x = make_vae().float(), torch.bernoulli(torch.full((4, 1, 8, 8), 0.5)).float()
    exact = evaluate(vae.model, vae.guide, x, ks=(1, 5), show_progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        again = evaluate(vae.model, vae.guide, x, ks=(1, 5), show_progress=False)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(again.per_datum["L_5"], exact.per_datum["L_5"])
