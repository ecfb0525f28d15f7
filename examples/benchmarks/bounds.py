"""Cost of L_5000 of one image, compared with its matrix products alone and with other packages.

    python examples/benchmarks/bounds.py                about fifteen minutes on two cores
    python examples/benchmarks/bounds.py --threads 1    the same on one core
    python examples/benchmarks/bounds.py --device cuda  the same on a GPU

prints the machine, then one row for each contender: milliseconds per image, peak memory above the imports, the mean
difference of its L_K from ours with a standard error, and its time as a multiple of the floor and of ours. Peak memory
at K = 10^6 and over 10,000 images comes last. After so little training one L_K varies by half a nat between draws: the
differences show only that all contenders estimate the same quantity.

The model is a VAE of the binarized test images of MNIST, with tanh layers 784-200-200-50 and Bernoulli pixels in
float32, after one epoch of training. If MNIST is not in the folder PYROVAE_DATA, the images are random, of 8 x 8.
Contenders take turns, and the table has medians over the rounds. The floor is the three matrix products of the decoder
on the same number of rows. It is measured before and after each turn, and every few seconds within a turn of minutes,
since the speed of a machine varies. Pythae's `get_nll` is measured if Pythae is installed. It draws particles in groups
of 100, so the number of particles is a multiple of 100.

Ours has two rows. For few images the model and guide run for each chunk of particles. For many, such as the 10,000 test
images of MNIST, `evaluate` traces and compiles the scoring on a CPU. That row has the time of a whole call in three
rounds, with a warm cache of the compiler; the times of a first and a second call are printed below. On a GPU nothing is
compiled, and memory is GPU memory without the context.
"""

import argparse
import itertools
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor, nn
from torch.nn import functional

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

try:
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
except ImportError:
    PythaeVAE = None

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=7, help="number of turns of each contender")
parser.add_argument("--images", type=int, default=26, help="images of a turn of ours; other contenders have a quarter")
parser.add_argument("--many", type=int, default=10_000, help="images of the compiled row")
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--device", default="cpu", help="cpu or cuda")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
options = parser.parse_args()
torch.set_num_threads(options.threads)
on_gpu = options.device != "cpu"
where = torch.cuda.get_device_name(options.device) if on_gpu else "CPU"

num_particles, latent_dim, chunk = 500 if options.smoke else 5000, 50, 1337
rounds, num_images = (1, 4) if options.smoke else (options.rounds, options.images)
num_others, num_many = max(2, num_images // 4), 8 if options.smoke else options.many
SECONDS_BETWEEN_RESTS = 2.0
seeds = itertools.count()
rests: list[float] = []  # milliseconds per image of the floor, measured within a turn
rested = math.inf  # time of the last measurement


def build(x_shape: tuple[int, ...]) -> VAE:
    torch.manual_seed(0)
    likelihood, posterior = likelihoods.Bernoulli(x_shape), posteriors.DiagonalNormal(latent_dim)
    return VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(x_shape, posterior.param_shape),
        posterior=posterior,
    )


def stock(network: nn.Module) -> nn.Module:
    """Return the same layers as a plain torch network, for contenders that do not use ours."""
    return nn.Sequential(*(nn.Tanh() if isinstance(layer, nn.Tanh) else layer for layer in network.layers))


def ours(x: Tensor, **options: Any) -> Tensor:
    options = {"engine": "eager", "show_progress": False, **options}
    found = pyrovae.evaluate(vae.model, vae.guide, x, ks=(num_particles,), seed=next(seeds), **options)
    return found.per_datum[f"L_{num_particles}"]


def compiled(x: Tensor) -> Tensor:
    return ours(x, engine="captured", on_progress=rest)


@torch.no_grad()
def plain(x: Tensor) -> Tensor:
    """Return L_K of each image by a loop over images, with particles in chunks."""
    bounds, decode = [], stock(vae.decoder)
    for image in x:
        mean, log_variance = vae.encoder(image.unsqueeze(0)).unbind(-1)
        q, p = (torch.distributions.Normal(*args) for args in ((mean, (0.5 * log_variance).exp()), (0.0, 1.0)))
        log_weights = []
        for start in range(0, num_particles, chunk):
            z = q.sample((min(chunk, num_particles - start),))[:, 0]
            logits = decode(z)
            target = image.flatten().expand_as(logits)
            log_p_x = -functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
            log_weights.append(log_p_x + p.log_prob(z).sum(-1) - q.log_prob(z).sum(-1))
        bounds.append(torch.cat(log_weights).double().logsumexp(0) - math.log(num_particles))
    return torch.stack(bounds)


@torch.no_grad()
def pyros(x: Tensor) -> Tensor:
    """Return L_K of each image by Pyro, one image at a time, since its weights are those of a whole minibatch."""
    decode = stock(vae.decoder)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x.flatten(1))

    def guide(x: Tensor) -> None:
        mean, log_variance = vae.encoder(x).unbind(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))

    bounds = []
    for image in x.split(1):
        log_weights, _, _ = vectorized_importance_weights(
            model, guide, image, num_samples=num_particles, max_plate_nesting=1
        )
        bounds.append(log_weights.flatten().double().logsumexp(0) - math.log(num_particles))
    return torch.stack(bounds)


@torch.no_grad()
def floor(x: Tensor) -> Tensor:
    layers = [layer for layer in vae.decoder.modules() if isinstance(layer, nn.Linear)]
    z = torch.ones(min(chunk, num_particles), latent_dim, device=x.device)
    for start in range(0, len(x) * num_particles, len(z)):
        value = z[: len(x) * num_particles - start]
        for layer in layers:
            value = functional.linear(value, layer.weight, layer.bias)
    return torch.full((len(x),), math.nan)


def synchronize() -> None:
    if on_gpu:
        torch.cuda.synchronize()


def timed(contender: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the milliseconds per image in which a contender evaluates some images."""
    synchronize()
    started = time.perf_counter()
    with pyro.get_param_store().scope():
        contender(x)
    synchronize()
    return 1000 * (time.perf_counter() - started) / len(x)


def rest(done: float) -> None:
    """Measure the floor if the last measurement was some seconds ago."""
    global rested
    if time.perf_counter() - rested > SECONDS_BETWEEN_RESTS and done < num_many:
        rests.append(timed(floor, data[:num_images]))
        rested = time.perf_counter()


def pythaes() -> Callable[[Tensor], Tensor]:
    """Return Pythae's estimate around the same networks."""

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.latent_dim = vae.encoder, latent_dim

        def forward(self, x: Tensor) -> "ModelOutput":
            mean, log_variance = self.net(x).unbind(-1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = stock(vae.decoder)

        def forward(self, z: Tensor) -> "ModelOutput":
            return ModelOutput(reconstruction=self.net(z).unflatten(-1, data.shape[1:]).sigmoid())

    config = VAEConfig(input_dim=tuple(data.shape[1:]), latent_dim=latent_dim, reconstruction_loss="bce")
    model = PythaeVAE(config, encoder=Encoder(), decoder=Decoder()).eval().to(options.device)

    @torch.no_grad()
    def estimate(x: Tensor) -> Tensor:
        return torch.tensor([float(model.get_nll(image.unsqueeze(0), n_samples=num_particles)) for image in x])

    return estimate


def peak_mib() -> float:
    if on_gpu:
        return torch.cuda.max_memory_allocated(options.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measured_memory(name: str) -> float:
    """Return the peak memory above the imports of one contender, in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, "--threads", str(options.threads)]
    command += ["--many", str(options.many), "--device", options.device, *["--smoke"] * options.smoke]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


FLOOR, OURS = "matrix products", "pyrovae.evaluate"
COMPILED = f"pyrovae.evaluate, {'' if on_gpu else 'compiled, '}{num_many} images"
MOST_ROUNDS = 3  # rounds of a turn of minutes
contenders: dict[str, Callable[[Tensor], Tensor]] = {
    FLOOR: floor,
    OURS: ours,
    COMPILED: compiled,
    "plain PyTorch loop": plain,
    "Pyro's vectorized_importance_weights": pyros,
}
if options.memory:  # the process of `measured_memory`
    imported = peak_mib()
    large = options.memory.startswith("K ="), options.memory.startswith("N =")
    vae, data = build((1, 28, 28)), torch.rand(10_000 if large[1] else 208, 1, 28, 28).round()  # 208: two batches
    vae, data = vae.to(options.device), data.to(options.device)
    if any(large):
        k = 50 if large[1] else 10_000 if options.smoke else 10**6
        pyrovae.evaluate(
            vae.model, vae.guide, data[: 100 if options.smoke else None][: 1 if large[0] else None], ks=(k,)
        )
    else:
        contestant = contenders[options.memory] if options.memory in contenders else pythaes()
        contestant(data if options.memory == COMPILED else data[:4])
    print(peak_mib() - imported)
    sys.exit()

cpu = platform.processor() or platform.machine()
if Path("/proc/cpuinfo").exists():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() + "model name: " + cpu)[1]
print(f"{cpu}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.system()}")
print(f"Python {platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}, {date.today()}")

# measured first: a process inherits the peak of its parent
names = [OURS] if options.smoke else [*contenders, *["Pythae's get_nll"] * (PythaeVAE is not None)]
memory = {name: measured_memory(name) for name in names}
few = slice(1 if options.smoke else None)
extremes = {name: measured_memory(name) for name in ("K = 10^6, one image", "N = 10,000 images, K = 50")[few]}

if os.environ.get("PYROVAE_DATA") and not options.smoke:
    mnist = pyrovae.data.load("mnist", download=False).for_form("binary")
    vae = build(mnist.x_shape)
    pyrovae.fit(vae.model, vae.guide, mnist, training=Training(epochs=1, batch_size=128, device=options.device))
    data = mnist.test.fixed()[: max(num_images, num_many)]
else:
    vae, data = build((1, 8, 8)), torch.rand(max(num_images, num_many), 1, 8, 8).round()
vae, data = vae.eval().to(options.device), data.to(options.device)
if PythaeVAE is not None:
    contenders["Pythae's get_nll"] = pythaes()

calls = []
for _ in range(2):
    started = time.perf_counter()
    compiled(data[:num_images])
    calls.append(time.perf_counter() - started)

milliseconds: dict[str, list[float]] = {name: [] for name in contenders}
of_floor: dict[str, list[float]] = {name: [] for name in contenders}
values: dict[str, Tensor] = {}
for number in range(rounds + 1):  # the first warms up
    floors = [timed(floor, data[: 4 * num_images])]
    for name, contender in contenders.items():
        if name == FLOOR or (name == COMPILED and number > MOST_ROUNDS):
            continue
        own = {OURS: num_images, COMPILED: num_many if number or options.smoke else num_images}
        x = data[: own.get(name, num_others)]
        rests, rested = [], time.perf_counter()
        found = timed(lambda x, name=name, contender=contender: values.update({name: contender(x)}), x)
        found -= sum(rests) * num_images / len(x)
        floors = [floors[-1], timed(floor, data[: 4 * num_images])]
        if number or options.smoke:
            milliseconds[name].append(found)
            milliseconds[FLOOR].append(statistics.mean(rests or floors))
            of_floor[name].append(found / milliseconds[FLOOR][-1])
of_floor[FLOOR].append(1.0)

medians = {name: statistics.median(found) for name, found in milliseconds.items()}
print(f"\n{rounds} rounds, K = {num_particles}, images of {tuple(data.shape[1:])}")
print(
    "\n|  | contender | ms per image | peak MiB | L_K - ours, nats | of the floor | of ours |"
    "\n|---|---|---|---|---|---|---|"
)
for name, median in medians.items():
    difference = "-"
    if name not in (FLOOR, OURS):
        both = min(len(values[name]), num_images)
        apart = values[name][:both].cpu() - values[OURS][:both].cpu()
        error = float(apart.std() / math.sqrt(len(apart))) if len(apart) > 1 else math.nan
        difference = f"{apart.mean():+.4f} ({error:.4f})"
    ratio = statistics.median(of_floor[name])
    of_ours = ratio / statistics.median(of_floor[OURS])
    peak = f"{memory[name]:.0f}" if name in memory else "-"
    print(f"| {where} | {name} | {median:.1f} | {peak} | {difference} | {ratio:.2f} | {of_ours:.2f} |")
if PythaeVAE is None:
    print("\nPythae is not installed: pip install pythae")
if on_gpu:
    print(f"\nAll {num_many} images took {medians[COMPILED] * num_many / 1000:.2f} s, goal at most 5")
else:
    print(
        f"\nCompiled, {num_images} images: the first call of the process took {calls[0]:.1f} s, the compiler's work "
        f"included, the second {calls[1]:.1f} s."
    )
for name, peak in extremes.items():
    print(f"Peak memory of pyrovae.evaluate above the imports, {name}: {peak:.0f} MiB")
