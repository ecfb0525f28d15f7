"""Gains of other priors: against closed forms, after a swap, and where there is nothing to gain."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn

import pyrovae
from pyrovae import VAE, data, diagnostics, likelihoods, networks, posteriors, priors
from pyrovae.diagnostics import PriorGains, other_priors
from pyrovae.results.record import from_plain, to_plain


class Scaled(nn.Module):
    """An encoder with q(z | x) = N(slope x, variance), of dropout that must be off."""

    def __init__(self, dim: int, slope: float, variance: float) -> None:
        super().__init__()
        self.x_shape, self.slope, self.variance = (dim,), slope, variance
        self.weight = nn.Parameter(torch.ones(dim))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.dropout(self.slope * x * self.weight)
        return torch.stack([mean, torch.full_like(mean, math.log(self.variance))], -1)


def scaled_vae(dim: int, *, slope: float = 1.0, variance: float = 0.25) -> VAE:
    likelihood = likelihoods.Gaussian((dim,))
    return VAE(
        prior=priors.StandardNormal(dim),
        decoder=networks.MLPDecoder(dim, likelihood.param_shape, hidden=(4,)),
        likelihood=likelihood,
        encoder=Scaled(dim, slope, variance),
        posterior=posteriors.DiagonalNormal(dim),
    )


def split(x: Tensor) -> data.Data:
    return data.from_arrays(x, validation=0.25, test=0.25)


def gains_of(vae: VAE, x: Tensor, **options: object) -> PriorGains:
    record = diagnostics.prior_gains(vae, split(x), show_progress=False, **options)
    assert from_plain(PriorGains, json.loads(json.dumps(to_plain(record), allow_nan=False))) == record
    assert f"Would another prior help? {record.verdict}: " in str(record)
    digits = [f"{gain.value:+.3f}" for gain in record.gains.values() if gain.value is not None]
    assert all(text in shown for text in digits for shown in (str(record), record._repr_html_()))
    return record


def test_normal_codes_against_the_closed_form() -> None:
    x = torch.tensor([1.0, -0.5]) + 0.8 * torch.randn(2000, 2)
    vae = scaled_vae(2)
    candidates = {"normal": priors.DiagonalNormal(2), "mixture": priors.MixtureOfGaussians(2, num_components=3)}
    gains = gains_of(vae, x, candidates=candidates, num_steps=600)
    mean, variance = torch.tensor([1.0, -0.5]), torch.tensor(0.8**2 + 0.25)
    expected = 0.5 * (mean**2 + variance - 1 - variance.log()).sum().item()  # KL(q(z) || p(z))
    normal, mixture = gains.gains["normal"], gains.gains["mixture"]
    assert normal.value == pytest.approx(expected, abs=3 * normal.se_data)
    assert normal.se_monte_carlo == 0.0
    fitted = gains.priors["normal"]
    q = vae.eval().encode(split(x).test.fixed())
    by_formula = [
        0.5 * ((q.mean - loc) ** 2 / s**2 + 0.25 / s**2 - 1 - (0.25 / s**2).log()).sum(-1).mean()
        for loc, s in ((torch.zeros(2), torch.ones(2)), (fitted.loc, fitted.log_scale.exp()))
    ]
    assert normal.value == pytest.approx((by_formula[0] - by_formula[1]).item(), abs=1e-10)
    assert mixture.value == pytest.approx(normal.value, abs=0.05)
    assert max(mixture.value, normal.value) <= gains.limit.value + 2 * gains.limit.se_monte_carlo
    assert gains.verdict == "gain"


def test_a_mixture_of_codes_against_the_closed_form() -> None:
    """Two kinds of data make a q(z) of two separate normals, whose KL to N(0, 1) is known."""
    x = 3.0 * torch.tensor([1.0, -1.0]).repeat(100).unsqueeze(1)
    vae = scaled_vae(1)
    vamp = priors.Vamp(vae.encoder, vae.posterior, num_components=2, data=x)
    two = priors.MixtureOfGaussians(1, num_components=2)
    two.locs.data, two.log_scales.data = torch.tensor([[2.5], [-2.5]]), torch.tensor([[-0.5], [-0.5]])
    candidates = {"two": two, "Vamp": vamp, "one": priors.DiagonalNormal(1)}
    part = data.load_split(x)
    whole = data.Data(train=part, validation=part, test=part, name="two kinds")  # each half of one kind
    gains = diagnostics.prior_gains(vae, whole, candidates=candidates, num_steps=300, show_progress=False)
    expected = -math.log(2) - 0.5 * math.log(0.25) + 0.5 * (9 + 0.25 - 1)
    assert gains.limit.value == pytest.approx(expected, abs=0.02)
    assert gains.gains["two"].value == pytest.approx(expected, abs=0.02)
    assert gains.gains["Vamp"].value == pytest.approx(expected, abs=0.02)
    assert gains.gains["one"].value < expected - 1
    assert gains.best in ("two", "Vamp")
    assert gains.priors["Vamp"].encoder is vae.encoder


def test_default_priors_without_those_that_the_vae_does_not_allow() -> None:
    assert list(gains_of(scaled_vae(1), torch.randn(40, 1), num_steps=1).left_out) == ["Flow"]  # takes two dimensions
    vae = scaled_vae(2)
    likelihood, posterior = vae.likelihood, posteriors.IAF(2)
    encoder = networks.MLPEncoder((2,), posterior.param_shape, hidden=(4,))
    vae = VAE(prior=vae.prior, decoder=vae.decoder, likelihood=likelihood, encoder=encoder, posterior=posterior)
    gains = gains_of(vae, torch.randn(40, 2), num_steps=1)
    assert list(gains.gains) == ["DiagonalNormal", "MixtureOfGaussians", "Flow"]
    assert list(gains.left_out) == ["Vamp"]


@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_gained_where_the_codes_have_the_distribution_of_the_prior(seed: int) -> None:
    torch.manual_seed(seed)
    gains = gains_of(scaled_vae(2, slope=0.8, variance=1 - 0.8**2), torch.randn(400, 2), num_steps=100)
    assert gains.verdict == "no gain"
    assert "a gain must exceed two standard errors" in str(gains)
    assert all(gain.value < 2 * gain.se_data for gain in gains.gains.values())


def test_a_fit_ends_where_validation_data_lose() -> None:
    """A normal that starts as the prior can only lose by following 5 training data."""
    x = torch.randn(1005, 3)
    parts = split(x)
    few = data.Data(train=parts.train.first(5), validation=parts.validation, test=parts.test, name="few")
    vae = scaled_vae(3, slope=0.8, variance=1 - 0.8**2)
    gains = diagnostics.prior_gains(vae, few, candidates={"normal": priors.DiagonalNormal(3)}, show_progress=False)
    assert gains.validation["normal"].value >= 0
    assert gains.gains["normal"].value > -0.05


def test_evaluation_with_the_fitted_prior_gains_as_much_and_the_model_is_not_changed() -> None:
    vae, x = scaled_vae(2), torch.tensor([1.5, 0.0]) + torch.randn(400, 2)
    before = pyrovae.evaluate(vae, split(x), ks=(1, 50), show_progress=False).elbo
    state, stream = copy.deepcopy(vae.state_dict()), torch.get_rng_state()
    gains = gains_of(vae, x, num_steps=30)
    assert all(torch.equal(value, state[name]) for name, value in vae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert vae.training
    assert vae.encoder.dropout.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vae.parameters())
    again = gains_of(vae, x, num_steps=30)
    assert again == gains
    for name, prior in gains.priors.items():
        vae.prior = prior
        after, gain = pyrovae.evaluate(vae, split(x), ks=(1, 50), show_progress=False).elbo, gains.gains[name]
        noise = math.hypot(before.se_monte_carlo, after.se_monte_carlo, gain.se_monte_carlo)
        assert after.value - before.value == pytest.approx(gain.value, abs=4 * noise)
        assert gain.value > 0.5


def test_a_clear_gain_is_not_hidden_by_a_noisier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = torch.linspace(-1, 1, 50).double().unsqueeze(0)
    values = {"noisy": 0.6 + 10 * spread, "clear": 0.5 + 0.1 * spread}
    candidates = {name: priors.DiagonalNormal(2) for name in values}
    monkeypatch.setattr(other_priors, "_gains", lambda *_: values)
    gains = gains_of(scaled_vae(2), torch.randn(200, 2), candidates=candidates, num_steps=1)
    assert (gains.best, gains.verdict) == ("clear", "gain")


def test_own_candidates_are_copied_and_must_match() -> None:
    vae, x = scaled_vae(2), 1 + torch.randn(200, 2)
    own = {"normal": priors.DiagonalNormal(2), "t": priors.StudentT(2), "old": vae.prior}
    gains = gains_of(vae, x, candidates=own, num_steps=20)
    assert list(gains.gains) == ["normal", "t", "old"]
    assert (own["normal"].loc == 0).all()
    assert (gains.priors["normal"].loc != 0).all()
    assert gains.num_parameters == {"normal": 4, "t": 0, "old": 0}
    assert gains.gains["old"].value == 0
    z = vae.eval().encode(split(x).test.fixed()).sample((1000,))
    expected = (own["t"]().log_prob(z) - vae.prior().log_prob(z)).mean().item()
    assert gains.gains["t"].value == pytest.approx(expected, abs=5 * gains.gains["t"].se_monte_carlo)
    with pytest.raises(ValueError, match="of one prior or more, but candidates is empty"):
        gains_of(vae, x, candidates={})
    parts = split(x)
    single = data.Data(train=parts.train, validation=parts.validation, test=parts.test.first(1), name="single")
    with pytest.raises(ValueError, match="need 2 test data or more, but received 1"):
        diagnostics.prior_gains(vae, single, show_progress=False)
    with pytest.raises(ValueError, match="share the latent variable, but the prior has 1 dimensions"):
        gains_of(vae, x, candidates={"narrow": priors.DiagonalNormal(1)})
