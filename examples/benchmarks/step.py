"""What one training step costs beside those of others and beside the matrix products that it cannot do without.

    python examples/benchmarks/step.py                          every size of network and minibatch
    python examples/benchmarks/step.py --only 784-400-20/128    one of each

prints the machine first, then one row for each contender: milliseconds per step, and its time as a multiple of stock
Pyro's and of the floor's. Last come the ratios that this package has set itself as goals, and where the time of its
captured step goes.

A step is loss, gradients and an update by Adam with learning rate 1e-3, in float32, of a VAE with tanh layers,
Bernoulli pixels, a N(0, I) prior, a diagonal normal guide and the closed form of their KL; 784-400-20 has one hidden
layer of 400 units and 20 latent dimensions. Contenders start at the same weights, and their losses there must agree
before any is timed. Others than ours do not clamp the log-variance.

With x binarized before, a minibatch of zeros and ones is already there, the same at every step. With x binarized within
the step, the data are 10,000 rows of bytes; each step gathers the next rows of a fixed permutation and draws their
pixels.

The floor is the products with the weights of each layer that does not touch z: forward, with the gradient for the
weights, and, but for the layer that reads x, with the gradient for the layer's input. With one hidden layer these are
five, with two they are eleven. They are written into memory that is reused. Where x is binarized within the step, the
floor gathers and draws too.

Every contender runs in a process of its own, so that no allocator, thread pool or switch touches another's. They take
turns of some steps each; one runs while the others wait. Medians over the rounds are shown, of the times and of the
ratios within a round. Other processes slow some contenders more than others: the last lines tell how much they took of
the cores. NumPyro and Pythae are measured where they are installed.
"""

import argparse
import importlib.metadata
import itertools
import json
import logging
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

import pyrovae
from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.data import Split
from pyrovae.data.transforms import DynamicBinarization

parser = argparse.ArgumentParser()
parser.add_argument("--only", default="", help="rows with this in block/network/batch, such as before/784-400-20/128")
parser.add_argument("--rounds", type=int, default=7, help="in each of which every contender has its turn")
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--device", default="cpu", help="cpu or cuda, for all but NumPyro, which takes what jax has")
parser.add_argument("--smoke", action="store_true", help="less than a minute, to see that it runs")
parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
parser.add_argument("--kernels", action="store_true", help=argparse.SUPPRESS)
options = parser.parse_args()

STOCK, UNCHECKED = "Pyro's SVI", "Pyro's SVI, validation off"
UNFUSED, FUSED, COMPILED = (f"PyTorch by hand, {how}" for how in ("Adam", "fused Adam", "torch.compile, fused Adam"))
SCAN, EAGER, CAPTURED, FLOOR = "NumPyro's update in lax.scan", "pyrovae, eager", "pyrovae, captured", "matrix products"

shapes = ["64-16-4"] if options.smoke else ["784-400-20", "784-200-200-50", "784-1000-1000-100"]
batch_sizes = [8] if options.smoke else [20, 128, 1024]
rounds, num_rows = (1, 100) if options.smoke else (options.rounds, 10_000)
turn_milliseconds = 10 if options.smoke else 150  # of stock Pyro, whose number of steps all take in a turn
pause = 0.02  # seconds between turns, in which the threads of the last one fall asleep


class Case(NamedTuple):
    """What a contender trains, and on what."""

    vae: VAE
    split: Split
    x: Tensor
    batches: Iterator[Tensor]  # (B,) rows of the split if x is binarized within the step, else x itself
    within: bool


class Contender(NamedTuple):
    """How a contender takes its turn."""

    turn: Callable[[int], float]  # takes so many steps and returns a loss, nats per datum, when all are done
    rewind: Callable[[], None]  # puts the weights back where they started
    device: str


def make_case(name: str) -> Case:
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
    split = Split(stored, transform=DynamicBinarization(), name="bytes", levels=256).to(options.device)
    rows = torch.randperm(num_rows).to(options.device).split(int(batch_size))
    x = split.draw(rows[0])
    whole = [chosen for chosen in rows if len(chosen) == len(x)]
    within = block == "within"
    return Case(vae.to(options.device), split, x, itertools.cycle(whole if within else [x]), within)


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


def synchronize() -> None:
    if options.device != "cpu":
        torch.cuda.synchronize()


def torch_device() -> str:
    return "CPU" if options.device == "cpu" else torch.cuda.get_device_name(options.device)


def stepwise(case: Case, step: Callable[[Tensor], Any], *, gathers: bool = False) -> Contender:
    """Return turns of single steps of the case's networks.

    Args:
        case: whose weights are moved.
        step: takes x, and returns a loss.
        gathers: whether it takes rows in its place where x is binarized within the step.

    """
    take = (lambda rows: step(binarized(case.split, rows))) if case.within and not gathers else step
    parameters = list(case.vae.parameters())
    initial = [parameter.detach().clone() for parameter in parameters]

    def turn(steps: int) -> float:
        for _ in range(steps):
            loss = take(next(case.batches))
        synchronize()
        return float(loss)

    @torch.no_grad()
    def rewind() -> None:
        for parameter, value in zip(parameters, initial, strict=True):
            parameter.copy_(value)

    return Contender(turn, rewind, torch_device())


def stock(case: Case, *, validated: bool = True) -> Contender:
    """Return the step as Pyro's own example of a VAE takes it."""
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
    """Return turns that are epochs of Pythae's trainer, over a loader that has its minibatches in memory."""
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
        training_config=BaseTrainerConfig(learning_rate=1e-3, no_cuda=options.device == "cpu"),
    )
    trainer.set_optimizer()
    trainer.callback_handler = CallbackHandler([], trainer.model)  # without progress bars

    def turn(steps: int) -> float:
        trainer.train_loader = Loader([DatasetOutput(data=case.x)] * steps)
        loss = trainer.train_step(epoch=1)
        synchronize()
        return loss

    return Contender(turn, stepwise(case, turn).rewind, torch_device())


def ours(case: Case, *, engine: str) -> Contender:
    data = case.split if case.within else case.x
    step = pyrovae.training.capture(case.vae.model, case.vae.guide, data, engine=engine)
    return stepwise(case, lambda given: step(given).loss, gathers=True)


def floor(case: Case) -> Contender:
    """Return the matrix products alone, on tensors of the sizes that they have in a step."""
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


contenders: dict[str, Callable[[Case], Contender]] = {
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
if options.smoke:  # of what differs by a switch, one; Inductor alone takes longer than all the rest
    for name in (UNCHECKED, UNFUSED, COMPILED):
        del contenders[name]
that_gather = (STOCK, FUSED, EAGER, CAPTURED, FLOOR)


def work(name: str) -> None:
    """Be one contender: take the turns that the standard input asks for, and tell how long they were."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(options.threads)
    cell, contender = name.rsplit("/", 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    if options.kernels:
        from torch._inductor import config

        config.cpp.enable_kernel_profile = True
    try:
        found = contenders[contender](make_case(cell))
    except ImportError as error:
        answer(missing=str(error))
        return
    for _ in range(3):  # what compiles does so now, and ours records its second step
        found.turn(1)
    answer(device=found.device)
    for line in sys.stdin:
        question = json.loads(line)
        if "profiled" in question:
            answer(parts=profile(found, question["profiled"]))
            continue
        if "draws" in question:
            answer(losses=[found.rewind() or found.turn(1) for _ in range(question["draws"])])
            continue
        found.turn(1)  # memory and threads that others have pushed aside come back
        started = time.perf_counter()
        found.turn(question["steps"])
        answer(milliseconds=1000 * (time.perf_counter() - started) / question["steps"])


def profile(contender: Contender, steps: int) -> dict[str, float]:
    """Return the milliseconds per step that matrix products, Adam's kernel, compiled loops and all the rest take."""
    kinds = {"aten::mm": "matrix products", "aten::addmm": "matrix products", "aten::_fused_adam_": "Adam's kernel"}
    loops, rest = "loops over elements", "Python and what is between"
    started = time.perf_counter()
    with torch.profiler.profile() as recorded:
        contender.turn(steps)
        total = 1000 * (time.perf_counter() - started) / steps
    parts = dict.fromkeys((*kinds.values(), loops, rest), 0.0)
    for event in recorded.key_averages():
        kind = loops if "cpp_fused" in event.key else kinds.get(event.key)
        if kind is not None:
            parts[kind] += event.self_cpu_time_total / 1000 / steps
    parts[rest] = total - sum(parts.values())
    return parts


class Worker:
    """A contender in a process of its own, seen from outside."""

    def __init__(self, cell: str, name: str, *, kernels: bool = False) -> None:
        self.name = name
        command = [sys.executable, __file__, "--worker", f"{cell}/{name}", "--threads", str(options.threads)]
        command += ["--device", options.device, *["--smoke"] * options.smoke, *["--kernels"] * kernels]
        threads = {"OMP_NUM_THREADS": str(options.threads), "NPROC": str(options.threads)}  # NPROC is what XLA reads
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"every contender answers, but {self.name!r} has ended; its error is above")
        return json.loads(line)

    def ask(self, **question: int) -> Any:
        """Return what was asked for, while no other contender runs."""
        time.sleep(pause)
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return next(iter(self.answer().values()))

    def end(self) -> None:
        """Let the process come to its end."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


if options.worker:
    work(options.worker)
    sys.exit()

cpu = platform.processor() or platform.machine()
if Path("/proc/cpuinfo").exists():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() + "model name: " + cpu)[1]
print(f"{cpu}, {options.threads} threads of {os.cpu_count()} cores, {platform.system()}")
print(f"Python {platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}, {date.today()}")
for package in ("jax", "numpyro", "pythae"):
    with suppress(importlib.metadata.PackageNotFoundError):
        print(f"{package} {importlib.metadata.version(package)}")

goals = {STOCK: 0.40, FUSED: 0.90, SCAN: 1.00, FLOOR: 1.40}  # of pyrovae captured, on 784-400-20/128
ratios: dict[tuple[str, str], float] = {}
missing: dict[str, str] = {}
apart: list[tuple[float, float]] = []
taken: list[float] = []
parts: dict[str, float] = {}
floor_milliseconds: list[float] = []


def seconds_of_others(workers: list[Worker]) -> float:
    """Return the CPU seconds that went to others than the contenders since the machine started."""
    times = psutil.cpu_times()._asdict()
    everything = sum(
        seconds for kind, seconds in times.items() if kind not in ("idle", "iowait", "guest", "guest_nice")
    )
    return everything - sum(sum(psutil.Process(worker.process.pid).cpu_times()[:2]) for worker in workers)


def check_losses(workers: list[Worker], cell: str) -> None:
    """Refuse contenders whose mean losses at the same weights differ by more than the noise explains."""
    draws = 8 if options.smoke else max(4, 1280 // int(cell.rsplit("/", 1)[1]))
    found = torch.tensor([worker.ask(draws=draws) for worker in workers], dtype=torch.float64)
    error = float((found.var(-1).mean() / draws).sqrt())
    away = found.mean(-1) - found.mean(-1).median()
    for worker, difference in zip(workers, away, strict=True):
        assert abs(difference) < 6 * error, f"{cell}: the loss of {worker.name} is {difference:+.2f} nats from others'"
    apart.append((float(away.abs().max()), error))


def measure(cell: str) -> None:
    """Give the contenders of one cell their turns and print their rows."""
    block, shape, batch_size = cell.split("/")
    named = [Worker(cell, name) for name in contenders if block == "before" or name in that_gather]
    devices = {}
    for worker in named:
        hello = worker.answer()
        if "missing" in hello:
            missing[worker.name] = hello["missing"]
        else:
            devices[worker.name] = hello["device"]
    workers = [worker for worker in named if worker.name in devices]
    check_losses([worker for worker in workers if worker.name != FLOOR], cell)
    steps = max(2, round(turn_milliseconds / workers[0].ask(steps=3)))
    found: dict[str, list[float]] = {worker.name: [] for worker in workers}
    started, before = time.perf_counter(), seconds_of_others(workers)
    for number in range(rounds + 1):  # in the first the scan compiles
        for worker in workers:
            milliseconds = worker.ask(steps=steps)
            if number:
                found[worker.name].append(milliseconds)
    elapsed = time.perf_counter() - started
    taken.append((seconds_of_others(workers) - before) / elapsed / os.cpu_count())
    for worker in named:
        worker.end()
    if cell == "before/784-400-20/128" and options.device == "cpu":
        profiled = Worker(cell, CAPTURED, kernels=True)  # which tells its loops apart, so that it is no contender
        profiled.answer()
        parts.update(profiled.ask(profiled=50))
        profiled.end()
    for name, device in devices.items():
        of = {
            other: statistics.median(a / b for a, b in zip(found[name], found[other], strict=True)) for other in found
        }
        ms = statistics.median(found[name])
        print(
            f"| {device} | {block} | {shape} | {batch_size} | {name} | {ms:.3f} | {of[STOCK]:.2f} | {of[FLOOR]:.2f} |",
            flush=True,
        )
        if cell == "before/784-400-20/128":
            floor_milliseconds[:] = [statistics.median(found[FLOOR])]
            ratios.update({(name, other): ratio for other, ratio in of.items() if devices[other] == device})


print(
    "\n| device | x binarized | network | batch | contender | ms per step | of stock Pyro | of the floor |"
    "\n|---|---|---|---|---|---|---|---|"
)
for cell in ("/".join(map(str, parts)) for parts in itertools.product(("before", "within"), shapes, batch_sizes)):
    if options.only in cell:
        measure(cell)
for name, reason in missing.items():
    print(f"\n{name} is not measured: {reason}")
if apart:
    away, error = max(apart)
    print(f"\nLosses at the same weights are {away:.2f} nats or less from their median (standard error {error:.2f})")
    print(
        f"Other processes took {max(taken):.0%} of the cores or less; times are to be trusted where that is near zero"
    )
if ratios:
    print("\nGoals, with x binarized before, 784-400-20, batch 128:")
    for name, other, goal in [(EAGER, STOCK, 0.60), *((CAPTURED, other, goal) for other, goal in goals.items())]:
        ratio = ratios.get((name, other))
        print(f"{name} / {other}: {'not measured' if ratio is None else f'{ratio:.2f}'}, goal at most {goal:.2f}")
if parts:
    shown = ", ".join(f"{kind} {milliseconds:.2f}" for kind, milliseconds in parts.items())
    print(f"\n{CAPTURED}, ms per step under a profiler: {shown}")
    needed = sum(list(parts.values())[:-1])
    print(f"All but the last are {needed:.2f}, where the whole of the floor took {floor_milliseconds[0]:.2f}")
