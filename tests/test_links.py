"""Warnings about networks that return probabilities or scales where logits or logarithms belong."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from conftest import guide_from, inspect_programs, make_vae, model_from, standard_normal
from torch import Tensor, nn

from pyrovae import Checks, Training, likelihoods
from pyrovae.evaluation import evaluate
from pyrovae.likelihoods import Likelihood
from pyrovae.programs import warn_of_links
from pyrovae.results import Evaluation
from pyrovae.training import capture, fit
from pyrovae.vae import VAE


class TwoHeads(nn.Module):
    """An encoder of four pixels that returns a mean and a function of another linear map, joined in two ways."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, stacked: bool = True) -> None:
        super().__init__()
        self.both, self.function, self.stacked = nn.Linear(4, 6), function, stacked

    def forward(self, x: Tensor) -> Tensor:
        mean, other = self.both(x).chunk(2, -1)
        if self.stacked:
            return torch.stack([mean, self.function(other)], -1)
        return torch.cat([mean, self.function(other)], -1).unflatten(-1, (2, 3)).mT


def ending_in(*end: nn.Module, likelihood: Likelihood | None = None, encoder: nn.Module | None = None) -> VAE:
    """Return a VAE of four elements whose decoder has the given end."""
    parts = make_vae(3, likelihoods.Bernoulli(4) if likelihood is None else likelihood).init_arguments
    shape = torch.Size(parts["likelihood"].param_shape)
    parts["decoder"] = nn.Sequential(nn.Linear(3, shape.numel()), *end, nn.Unflatten(-1, shape))
    return VAE(**parts | ({} if encoder is None else {"encoder": encoder}))


def bounded(slope: float, shift: float) -> VAE:
    """Return a VAE whose logits are an affine map of a sigmoid."""
    end = nn.Sigmoid()
    end.register_forward_hook(lambda module, args, output: slope * output + shift)
    return ending_in(end)


LOGITS = "the logits of 'x' come out of {}(...)"
SOFTMAX = nn.Unflatten(-1, (4, 3)), nn.Softmax(-1), nn.Flatten(-2)
NOISY = likelihoods.HeteroscedasticGaussian((4,))
SCALES = "standard deviations of the guide at 'z' are exponentials of {}(...) and all above 1"
LINKS: dict[str, tuple[Callable[[], VAE], str]] = {
    "sigmoid": (lambda: ending_in(nn.Sigmoid()), LOGITS.format("sigmoid")),
    "frozen": (lambda: ending_in(nn.Sigmoid()).requires_grad_(requires_grad=False), LOGITS.format("sigmoid")),
    "softmax": (lambda: ending_in(*SOFTMAX, likelihood=likelihoods.Categorical((4,), 3)), LOGITS.format("softmax")),
    "rates": (
        lambda: ending_in(nn.Softplus(), likelihood=likelihoods.Poisson((4,))),
        "the logarithms of rates of 'x' c",
    ),
    "scales": (
        lambda: ending_in(nn.Softplus(), likelihood=NOISY),
        "the logarithms of scales of 'x' come out of softplus(",
    ),
    "softplus encoder": (lambda: ending_in(encoder=TwoHeads(nn.functional.softplus)), SCALES.format("softplus")),
    "exp encoder": (lambda: ending_in(encoder=TwoHeads(torch.exp, stacked=False)), SCALES.format("exp")),
    "bounded sigmoid": (lambda: bounded(0.998, 0.001), LOGITS.format("sigmoid")),
    "bounded logits": (lambda: bounded(10.0, -5.0), ""),
    "plain": (ending_in, ""),
    "mean of pixels": (lambda: ending_in(nn.Sigmoid(), likelihood=likelihoods.Gaussian((4,), learn_scale=True)), ""),
    "plain scales": (lambda: ending_in(likelihood=NOISY), ""),
    "below 1": (lambda: ending_in(encoder=TwoHeads(lambda value: -nn.functional.softplus(value))), ""),
    "log of a scale": (lambda: ending_in(encoder=TwoHeads(lambda value: nn.functional.softplus(value).log())), ""),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_network_that_applies_the_link_gives_one_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, words = LINKS[name]
    vae, x = make(), torch.bernoulli(torch.full((3, 4), 0.5))
    warn_of_links(inspect_programs(vae.model, vae.guide, (x,)))
    assert len(caplog.messages) == bool(words)
    assert words in "".join(caplog.messages)


def test_fit_capture_and_evaluate_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    vae, x = ending_in(nn.Sigmoid()), torch.bernoulli(torch.full((8, 4), 0.5))
    checks = Checks(2, 0, 0, 2, refit_epochs=0)
    for run in (
        lambda: fit(vae.model, vae.guide, x, training=Training(epochs=1, device="cpu"), show_progress=False),
        lambda: capture(vae.model, vae.guide, x, engine="eager"),
        lambda: evaluate(vae.model, vae.guide, x, ks=(1, 5), checks=checks, show_progress=False),
    ):
        caplog.clear()
        run()
        assert sum("come out of sigmoid" in message for message in caplog.messages) == 1


def test_an_evaluation_keeps_the_warning() -> None:
    vae, x = ending_in(nn.Sigmoid()), torch.bernoulli(torch.full((8, 4), 0.5))
    evaluation = evaluate(vae, x, ks=(1, 5), show_progress=False)
    assert "Caution: the logits of 'x' come out of sigmoid" in evaluation.to_text(10_000)
    assert evaluation.recommendation.questions[0].startswith("Is the model as it was meant?")
    assert Evaluation.from_json(evaluation.to_json()).cautions == evaluation.cautions


LOGITS_BY_HAND: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "sigmoid": (lambda output: output.sigmoid(), True),
    "tanh": (lambda output: output.tanh(), False),
    "logit of a sigmoid": (lambda output: output.sigmoid().logit(), False),
    "detached": (lambda output: output.sigmoid().detach(), False),
}


@pytest.mark.parametrize("name", LOGITS_BY_HAND)
def test_programs_by_hand_give_warnings_too(name: str, caplog: pytest.LogCaptureFixture) -> None:
    (logits, warns), decoder = LOGITS_BY_HAND[name], nn.Linear(1, 200)
    model = model_from(lambda _: standard_normal(1), lambda z, _: dist.Bernoulli(logits=logits(decoder(z))).to_event(1))
    guide = guide_from(lambda x: dist.Normal(x[:, :1], 1.0).to_event(1))
    warn_of_links(inspect_programs(model, guide, (torch.bernoulli(torch.full((3, 200), 0.5)),)))
    assert len(caplog.messages) == warns
