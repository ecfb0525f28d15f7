"""Contenders of `step.py`: each trains the same networks on the same data, in turns of some steps."""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyrovae
from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.data import Split
from pyrovae.data.transforms import DynamicBinarization

STOCK, UNCHECKED = "Pyro's SVI", "Pyro's SVI, validation off"
UNFUSED, FUSED, COMPILED = (f"PyTorch by hand, {how}" for how in ("Adam", "fused Adam", "torch.compile, fused Adam"))
SCAN, EAGER, CAPTURED, FLOOR = "NumPyro's update in lax.scan", "pyrovae, eager", "pyrovae, captured", "matrix products"


class Case(NamedTuple):
    """Model and data of a contender."""

    vae: VAE
    split: Split
    x: Tensor
    batches: Iterator[Tensor]  # (B,) rows of the split if x is binarized within the step, else x itself
    within: bool


class Contender(NamedTuple):
    """Functions of a contender."""

    turn: Callable[[int], float]  # takes a number of steps and returns the last loss, nats per datum
    rewind: Callable[[], None]  # resets the weights
    device: str


def make_case(name: str, *, num_rows: int, device: str) -> Case:
    """Return the case for a name such as before/784-400-20/128."""
    block, shape, batch_size = name.split("/")
    pixels, *hidden, latent_dim = map(int, shape.split("-"))
    torch.manual_seed(0)
    likelihood, posterior = likelihoods.Bernoulli((pixels,)), posteriors.DiagonalNormal(latent_dim)
    vae = VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, hidden=hidden),
        likelihood=likelihood,
        encoder=networks.MLPEncoder((pixels,), posterior.param_shape, hidden=hidden),
        posterior=posterior,
    )
    stored = torch.randint(256, (num_rows, pixels), dtype=torch.uint8)
    split = Split(stored, transform=DynamicBinarization(), name="bytes", levels=256).to(device)
    rows = torch.randperm(num_rows).to(device).split(int(batch_size))
    x = split.draw(rows[0])
    whole = [chosen for chosen in rows if len(chosen) == len(x)]
    within = block == "within"
    return Case(vae.to(device), split, x, itertools.cycle(whole if within else [x]), within)


def plain(vae: VAE) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers of both networks in plain torch; the encoder emits all means, then all log-variances."""
    encoder, decoder = (
        nn.Sequential(*(nn.Tanh() if isinstance(layer, nn.Tanh) else layer for layer in network.layers))
        for network in (vae.encoder, vae.decoder)
    )
    with torch.no_grad():  # the biases are zero
        encoder[-1].weight.copy_(torch.cat([encoder[-1].weight[::2], encoder[-1].weight[1::2]]))
    return encoder, decoder


def binarized(split: Split, rows: Tensor) -> Tensor:
    p = split.stored[rows] / 255
    return (torch.rand_like(p) < p).float()


def synchronize(case: Case) -> None:
    if case.x.is_cuda:
        torch.cuda.synchronize()


def device_of(case: Case) -> str:
    return torch.cuda.get_device_name(case.x.device) if case.x.is_cuda else "CPU"


def stepwise(case: Case, step: Callable[[Tensor], Any], *, gathers: bool = False) -> Contender:
    """Return turns of single steps of the case's networks.

    Args:
        case: model and data.
        step: function of x that returns a loss.
        gathers: whether the step itself gathers rows, if x is binarized within the step.

    """
    take = (lambda rows: step(binarized(case.split, rows))) if case.within and not gathers else step
    parameters = list(case.vae.parameters())
    initial = [parameter.detach().clone() for parameter in parameters]

    def turn(steps: int) -> float:
        for _ in range(steps):
            loss = take(next(case.batches))
        synchronize(case)
        return float(loss)

    @torch.no_grad()
    def rewind() -> None:
        for parameter, value in zip(parameters, initial, strict=True):
            parameter.copy_(value)

    return Contender(turn, rewind, device_of(case))


def stock(case: Case, *, validated: bool = True) -> Contender:
    """Return the step of Pyro's own example of a VAE."""
    pyro.enable_validation(is_validate=validated)
    encoder, decoder = plain(case.vae)
    latent_dim = case.vae.prior.latent_dim

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            mean, log_variance = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.TraceMeanField_ELBO())
    return stepwise(case, lambda x: svi.step(x) / len(x))


def by_hand(case: Case, *, fused: bool, compiled: bool = False) -> Contender:
    encoder, decoder = plain(case.vae)

    def loss_of(x: Tensor) -> Tensor:
        mean, log_variance = encoder(x).chunk(2, -1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return (functional.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + kl) / len(x)

    objective = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=fused or None)

    def step(x: Tensor) -> Tensor:
        loss = objective(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return stepwise(case, step)


def numpyros(case: Case, *, scanned: bool) -> Contender:
    import jax
    import numpyro
    from jax import numpy as jnp
    from numpyro import distributions
    from numpyro.infer import SVI, TraceMeanField_ELBO

    jax.config.update("jax_default_matmul_precision", "highest")  # float32 on every device, as in torch
    initial = [
        [(jnp.array(layer.weight.detach().cpu().T), jnp.array(layer.bias.detach().cpu())) for layer in network[::2]]
        for network in plain(case.vae)
    ]
    x, latent_dim = jnp.array(case.x.cpu()), case.vae.prior.latent_dim

    def run(layers: Any, value: Any) -> Any:
        for weight, bias in layers[:-1]:
            value = jnp.tanh(value @ weight + bias)
        weight, bias = layers[-1]
        return value @ weight + bias

    def model(x: Any) -> None:
        decoder = numpyro.param("decoder", initial[1])
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", distributions.Normal(jnp.zeros((len(x), latent_dim)), 1.0).to_event(1))
            numpyro.sample("x", distributions.Bernoulli(logits=run(decoder, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encoder = numpyro.param("encoder", initial[0])
        with numpyro.plate("data", len(x)):
            mean, log_variance = jnp.split(run(encoder, x), 2, -1)
            numpyro.sample("z", distributions.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    first = state = svi.init(jax.random.PRNGKey(0), x)
    update = jax.jit(svi.update)
    scan = jax.jit(
        lambda state, steps: jax.lax.scan(lambda state, _: svi.update(state, x), state, length=steps),
        static_argnums=1,
    )

    def turn(steps: int) -> float:
        nonlocal state
        if scanned:
            state, losses = scan(state, steps)
            loss = losses[-1]
        else:
            for _ in range(steps):
                state, loss = update(state, x)
        jax.block_until_ready(state)
        return float(loss) / len(x)

    def rewind() -> None:
        nonlocal state
        state = first._replace(rng_key=state.rng_key)

    device = jax.devices()[0]
    return Contender(turn, rewind, "CPU" if device.platform == "cpu" else device.device_kind)


def pythaes(case: Case) -> Contender:
    """Return turns of Pythae's trainer: epochs over a loader with minibatches in memory."""
    from pythae.data.datasets import BaseDataset, DatasetOutput
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler

    logging.disable(logging.INFO)
    encoder, decoder = plain(case.vae)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.latent_dim = encoder, case.vae.prior.latent_dim

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_variance = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(z).sigmoid())

    class Loader(list):
        dataset = BaseDataset(case.x, case.x[:, 0])

    config = VAEConfig(input_dim=(*case.x.shape[1:],), latent_dim=case.vae.prior.latent_dim, reconstruction_loss="bce")
    trainer = BaseTrainer(
        PythaeVAE(config, encoder=Encoder(), decoder=Decoder()),
        Loader.dataset,
        training_config=BaseTrainerConfig(learning_rate=1e-3, no_cuda=not case.x.is_cuda),
    )
    trainer.set_optimizer()
    trainer.callback_handler = CallbackHandler([], trainer.model)  # without progress bars

    def turn(steps: int) -> float:
        trainer.train_loader = Loader([DatasetOutput(data=case.x)] * steps)
        loss = trainer.train_step(epoch=1)
        synchronize(case)
        return loss

    return Contender(turn, stepwise(case, turn).rewind, device_of(case))


def ours(case: Case, *, engine: str) -> Contender:
    data = case.split if case.within else case.x
    step = pyrovae.training.capture(case.vae.model, case.vae.guide, data, engine=engine)
    return stepwise(case, lambda given: step(given).loss, gathers=True)


def floor(case: Case) -> Contender:
    """Return the matrix products of a step alone."""
    x, count = case.x, len(case.x)
    products: list[tuple[Tensor, Tensor, Tensor]] = []

    def multiply(a: Tensor, b: Tensor) -> None:
        products.append((a, b, a.new_empty(len(a), b.shape[1])))

    encoder, decoder = (
        [layer.weight.detach() for layer in network if isinstance(layer, nn.Linear)] for network in plain(case.vae)
    )
    for number, weight in enumerate([*encoder[:-1], *decoder[1:]]):
        given = torch.rand(count, weight.shape[1], device=x.device) if number else x
        gradient = torch.randn(count, len(weight), device=x.device)
        multiply(given, weight.T)
        multiply(gradient.T, given)
        if number:
            multiply(gradient, weight)

    def step(_: Tensor) -> float:
        for a, b, out in products:
            torch.mm(a, b, out=out)
        return math.nan

    return stepwise(case, step)


CONTENDERS: dict[str, Callable[[Case], Contender]] = {
    STOCK: stock,
    UNCHECKED: lambda case: stock(case, validated=False),
    UNFUSED: lambda case: by_hand(case, fused=False),
    FUSED: lambda case: by_hand(case, fused=True),
    COMPILED: lambda case: by_hand(case, fused=True, compiled=True),
    "NumPyro's update, jitted": lambda case: numpyros(case, scanned=False),
    SCAN: lambda case: numpyros(case, scanned=True),
    "Pythae's trainer": pythaes,
    EAGER: lambda case: ours(case, engine="eager"),
    CAPTURED: lambda case: ours(case, engine="captured"),
    FLOOR: floor,
}
