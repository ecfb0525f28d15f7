"""Gain in ELBO from other priors, fitted with encoder and decoder held fixed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrovae.data import Data
from pyrovae.data.loader import Loader
from pyrovae.diagnostics.latent_use import latents
from pyrovae.posteriors import IAF
from pyrovae.priors import DiagonalNormal, Flow, MixtureOfGaussians, Prior, Vamp
from pyrovae.results import Estimate
from pyrovae.results.tables import Number, Table, Tabled
from pyrovae.runtime.annotations import PositiveInt, Range, checked
from pyrovae.runtime.context import forked_random, full_precision, module_mode, stream_seed
from pyrovae.runtime.progress_bar import progress
from pyrovae.vae import VAE, require_form

NUM_COMPONENTS = 100  # components of the default mixtures
LEARNING_RATE = 1e-2  # first rate of Adam, which decays to zero
BATCH = 256  # data in a step
INTERVAL = 50  # steps between two validations
PATIENCE = 5  # validations without a rise after which a fit ends
CODES = 2**13  # draws of z that are scored at once; as many validate a fit, or one of each datum if these are more
START_DATA = 2048  # training data that the default priors start from


@dataclass(frozen=True, repr=False)
class PriorGains(Tabled):
    """Gain in ELBO from each of several fitted priors, beside the limit of all gains.

    Attributes:
        gains: mean over the test data of E_q(z | x)[log p'(z) - log p(z)] for each fitted prior p', by name.
        validation: the same over the validation data, which chose the step at which each fit ends and the best prior.
        num_parameters: learned numbers of each prior.
        limit: KL(q(z) || p(z)) with q(z) over the test data, which the gain of no prior exceeds.
        best: name of the prior with the largest gain minus two standard errors on the validation data; None where none
            is finite.
        verdict: "gain" if the gain of the best prior exceeds two standard errors on validation and test data, otherwise
            "no gain".
        current: name of the class of the prior p.
        num_data: N, number of test data.
        num_draws: draws of z for each datum.
        seed: seed of all random streams.
        left_out: reasons why default priors were left out, by name.
        data: name of the test data.
        priors: the fitted priors, by name; not part of the JSON.
        per_datum: the gains of each prior ``(N,)``; not part of the JSON.

    """

    gains: dict[str, Estimate]
    validation: dict[str, Estimate]
    num_parameters: dict[str, int]
    limit: Estimate
    best: str | None
    verdict: str
    current: str
    num_data: int
    num_draws: int
    seed: int
    left_out: dict[str, str]
    data: str
    priors: Mapping[str, nn.Module] = field(repr=False, compare=False, default_factory=dict)
    per_datum: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    @property
    def reason(self) -> str:
        """Reason for the verdict, a clause."""
        if self.best is None:
            return "no prior has finite gains on the validation data"
        gain = self.gains[self.best]
        value = Number(gain.value, signed=True, error=gain.se_data)
        text = f"the best prior on the validation data, {self.best}, changes the ELBO of the test data by {value}"
        if self.verdict == "gain":
            return text
        return f"{text}; a gain must exceed two standard errors on both parts of the data"

    def tables(self) -> tuple[Table, ...]:
        """Return the gains and their limit."""
        rows: list[tuple[Any, ...]] = []
        for name, gain in self.gains.items():
            checked = self.validation[name]
            on_validation = Number(checked.value, signed=True, error=checked.se_data)
            rows.append((name, *gain.cells(signed=True), on_validation, str(self.num_parameters[name])))
        rows.append(("limit: KL(q(z) || p(z))", *self.limit.cells(signed=True), "", ""))
        estimates = {"limit": self.limit} | self.gains
        return (
            Table(
                ("prior", "gain", "se data", "se MC", "on validation data", "parameters"),
                tuple(rows),
                title=(
                    f"Other priors in place of {self.current}, {self.data}: {self.num_data} data, seed {self.seed}",
                    "Gain in ELBO with the same encoder and decoder, nats per datum, larger is better.",
                    f"Would another prior help? {self.verdict}: {self.reason}.",
                ),
                notes=(
                    "limit: no prior gains more with this encoder; with q(z) over these data, the limit is loose where "
                    f"I(x; z) is near log {self.num_data} = {math.log(self.num_data):.3f}",
                    "training with another prior changes encoder and decoder too, and its gain may differ",
                    *(f"{name}: {estimate.why}" for name, estimate in estimates.items() if estimate.why),
                    *(f"{name} is left out: {why}" for name, why in self.left_out.items()),
                ),
            ),
        )


@checked
def prior_gains(
    vae: VAE,
    data: Data,
    *,
    candidates: Mapping[str, Prior] | None = None,
    num_steps: PositiveInt = 1500,
    num_draws: Annotated[int, Range(2)] = 50,
    seed: int = 0,
    show_progress: bool = True,
) -> PriorGains:
    """Fit other priors to the codes of a trained VAE, and estimate what each would add to the ELBO.

    With encoder and decoder fixed, another prior p' changes the ELBO of each datum by the difference of two KL,

    ``KL(q(z | x) || p(z)) - KL(q(z | x) || p'(z)) = E_q(z | x)[log p'(z) - log p(z)]``

    Each fit maximizes the mean over the training data, with new draws of x and z in each step, and keeps the parameters
    with the largest mean over the validation data, so that a mixture cannot memorize the training data. The gains are
    means over the test data, in closed form where both KL have one, otherwise of all priors on the same draws of z. The
    mean gain over N data is ``KL(q(z) || p(z)) - KL(q(z) || p'(z))`` with q(z) the mean of their q(z | x): it cannot
    exceed the first term, which `latents` estimates.

    The VAE is not changed; random streams are forked. The fitted `priors.Vamp` uses the encoder of the VAE itself, and
    is no longer the same after further training of it.

    *ELBO surgery (Hoffman, Johnson 2016)*, http://approximateinference.org/accepted/HoffmanJohnson2016.pdf

    *VAE with a VampPrior (Tomczak, Welling 2018)*, https://arxiv.org/abs/1705.07120

    Args:
        vae: trained model.
        data: data set; its training part fits, its validation part ends the fits, and its test part is evaluated.
        candidates: priors by name; copies of them are fitted, from their present parameters on. If None, a normal, a
            mixture of 100 Gaussians, a flow and a `Vamp` of 100 pseudo-inputs, which start from training data.
        num_steps: largest number of gradient steps of each fit.
        num_draws: draws of z for each datum for the gains, at least 2.
        seed: seed of all random streams.
        show_progress: show a progress bar.

    Returns:
        The gains with standard errors, their limit, a verdict, and the fitted priors.

    Raises:
        ValueError: if there is no candidate or one test datum, or candidates or data do not match the VAE.

    Example:
        >>> gains = prior_gains(vae, data)
        >>> print(gains)
        >>> vae.prior = gains.priors["Flow"]  # now pyrovae.evaluate returns a larger ELBO

    """
    require_form(vae.model, data.train, data.validation, data.test)
    if candidates is not None and not candidates:
        raise ValueError("gains are of one prior or more, but candidates is empty; leave it out for the default priors")
    if len(data.test) < 2:
        raise ValueError(f"gains need 2 test data or more, but received {len(data.test)}; set more aside for the test")
    device = next((parameter.device for parameter in vae.parameters()), torch.device("cpu"))
    train, validation, test = (Loader(split).to(device) for split in (data.train, data.validation, data.test))
    left_out: dict[str, str] = {}
    estimates: dict[str, dict[str, Estimate]] = {}
    with module_mode([vae], training=False), full_precision():
        if candidates is None:
            with forked_random(stream_seed(seed, "prior gains", "start"), device):
                candidates, left_out = _default_candidates(vae, train)
        priors = {name: _copy(vae, prior) for name, prior in candidates.items()}
        for name, prior in priors.items():
            with (
                forked_random(stream_seed(seed, "prior gains", "fit", name), device),
                progress(f"fitting {name}", num_steps, show_progress=show_progress, unit="steps") as advance,
            ):
                _fit(vae, prior, train, validation, num_steps, advance)
        for label, loader in (("validation", validation), ("test", test)):
            with forked_random(stream_seed(seed, "prior gains", label), device), torch.no_grad():
                values = _gains(vae, priors, loader.fixed(), num_draws)
            estimates[label] = {name: _estimate(name, num_draws, value) for name, value in values.items()}
    known = {
        name: gain.value - 2 * (gain.se_data or 0.0)  # so that noise does not hide a clear gain
        for name, gain in estimates["validation"].items()
        if gain.value is not None
    }
    best = max(known, key=known.__getitem__, default=None)
    return PriorGains(
        gains=estimates["test"],
        validation=estimates["validation"],
        num_parameters={name: sum(map(Tensor.numel, _own_parameters(vae, prior))) for name, prior in priors.items()},
        limit=latents(vae.model, vae.guide, *test.fixed(), seed=seed).marginal_kl,
        best=best,
        verdict="gain" if best and all(_is_clear(part[best]) for part in estimates.values()) else "no gain",
        current=type(vae.prior).__name__,
        num_data=len(test),
        num_draws=num_draws,
        seed=seed,
        left_out=left_out,
        data=data.test.name,
        priors=priors,
        per_datum={name: value.mean(0) for name, value in values.items()},
    )


def _estimate(name: str, num_draws: int, values: Tensor) -> Estimate:
    """Return the mean of gains ``(K, N)``, or ``(1, N)`` in closed form."""
    variances = values.var(0, keepdim=True) / len(values) if len(values) > 1 else torch.zeros_like(values)
    return Estimate.over_data(name, num_draws, values.mean(0), variances)


def _is_clear(gain: Estimate) -> bool:
    """Return whether a gain exceeds two standard errors over the data."""
    return gain.value is not None and gain.se_data is not None and gain.value > 2 * gain.se_data


def _copy(vae: VAE, prior: Prior) -> Prior:
    """Return a copy of a prior that shares encoder and posterior with the VAE if the prior does.

    Raises:
        ValueError: if the prior does not match the VAE.

    """
    parts = {name: getattr(vae, name) for name in ("decoder", "likelihood", "encoder", "posterior")}
    prior = copy.deepcopy(prior, {id(part): part for part in parts.values()})
    VAE(prior=prior, **parts)  # checks the shapes
    return prior.eval()


def _own_parameters(vae: VAE, prior: Prior) -> list[nn.Parameter]:
    """Return the parameters of a prior that are not shared with the VAE."""
    shared = {id(parameter) for parameter in vae.parameters()}
    return [parameter for parameter in prior.parameters() if id(parameter) not in shared]


@torch.no_grad()
def _default_candidates(vae: VAE, train: Loader) -> tuple[dict[str, Prior], dict[str, str]]:
    """Return priors that start from codes of training data, and the reasons why others are left out."""
    x, *covariates = train.draw(torch.randperm(len(train), device=train.device)[:START_DATA])
    z = vae.encode(x, *covariates).sample()  # (START_DATA, D)
    latent_dim, num_components = z.shape[1], min(NUM_COMPONENTS, len(z))
    normal = DiagonalNormal(latent_dim)
    normal.loc.copy_(z.mean(0))
    normal.log_scale.copy_(z.std(0).log())
    mixture = MixtureOfGaussians(latent_dim, num_components=num_components)
    mixture.locs.copy_(z[:num_components])
    bandwidth = num_components ** (-1 / (latent_dim + 4))  # of a kernel density estimate
    mixture.log_scales.copy_((normal.log_scale + math.log(bandwidth)).expand_as(mixture.log_scales))
    candidates: dict[str, Prior] = {"DiagonalNormal": normal, "MixtureOfGaussians": mixture}
    left_out = {}
    inputs = vae.likelihood.encoder_input(x)
    makers: dict[str, Callable[[], Prior]] = {"Flow": lambda: Flow(latent_dim)}
    if isinstance(vae.posterior, IAF):
        left_out["Vamp"] = "each density inverts the flow of the posterior once for each component; give it yourself"
    else:
        makers["Vamp"] = lambda: Vamp(vae.encoder, vae.posterior, num_components=num_components, data=inputs)
    for name, make in makers.items():
        try:
            candidates[name] = make()
        except ValueError as error:  # one latent dimension, or an encoder that takes covariates
            left_out[name] = str(error)
    return {name: prior.to(z) for name, prior in candidates.items()}, left_out


def _fit(
    vae: VAE, prior: Prior, train: Loader, validation: Loader, num_steps: int, advance: Callable[[int], object]
) -> None:
    """Maximize the mean of log p'(z) over the codes of training data, and keep the best step on validation data."""
    own = _own_parameters(vae, prior)
    if not own:
        return
    for parameter in own:
        parameter.requires_grad_()
    with torch.no_grad():
        q = vae.encode(*validation.fixed())
        held_out = q.sample((max(1, CODES // len(validation)),))  # (K, N, D)
    optimizer = torch.optim.Adam(own, lr=LEARNING_RATE)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / num_steps)))
    best, values, num_worse = -math.inf, [parameter.detach().clone() for parameter in own], 0
    for step in range(num_steps + 1):
        if step % INTERVAL == 0 or step == num_steps:
            with torch.no_grad():
                score = prior().log_prob(held_out).double().mean().item()
            num_worse += 1
            if score > best:
                best, values, num_worse = score, [parameter.detach().clone() for parameter in own], 0
            if num_worse == PATIENCE or step == num_steps:
                break
            advance(step)
        with torch.no_grad():
            z = vae.encode(*train.draw(torch.randint(len(train), (BATCH,), device=train.device))).sample()
        loss = -prior().log_prob(z).mean()
        for parameter, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
            parameter.grad = gradient
        optimizer.step()
        rate.step()
    for parameter, value in zip(own, values, strict=True):
        parameter.data.copy_(value)
        parameter.grad = None


def _gains(vae: VAE, priors: Mapping[str, Prior], args: tuple[Tensor, ...], num_draws: int) -> dict[str, Tensor]:
    """Return log p'(z) - log p(z) of the draws of each datum, ``(K, N)``, or their mean in closed form ``(1, N)``."""
    parts: dict[str, list[Tensor]] = {name: [] for name in priors}
    for rows in torch.arange(len(args[0]), device=args[0].device).split(max(1, CODES // num_draws)):
        q = vae.encode(*(argument[rows] for argument in args))
        z = q.sample((num_draws,))
        old = vae.prior().expand(q.batch_shape)
        for name, prior in priors.items():
            new = prior().expand(q.batch_shape)
            try:
                gain = (kl_divergence(q, old) - kl_divergence(q, new)).unsqueeze(0)
            except NotImplementedError:
                gain = new.log_prob(z) - old.log_prob(z)
            parts[name].append(gain.cpu().double())
    return {name: torch.cat(part, 1) for name, part in parts.items()}
