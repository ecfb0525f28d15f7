"""Cost of a training step with each part, compared with plain PyTorch for the same density and networks.

    python examples/benchmarks/parts.py                 every part; about five minutes on two cores
    python examples/benchmarks/parts.py --only priors   the rows of one package, or of one part by its name

prints the machine, then one row for each part: milliseconds per step of the default model with that part.

A step is loss, gradients and update by fused Adam on one minibatch in memory, of 128 images of 28 x 28 random elements.
Ours is the step of `pyrovae.fit`. The plain step is written below, with densities and KL terms, around the layers of
the same networks. Before the timing, both must give the same loss for the same noise.
"""

import argparse
import copy
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
import torch
from torch import Tensor
from torch.nn import functional

import pyrovae
from pyrovae import VAE, likelihoods, networks, posteriors, priors
from pyrovae.runtime.context import own_store, validation

parser = argparse.ArgumentParser()
parser.add_argument(
    "--rounds", type=int, default=25, help="number of rounds, of five steps of ours and five plain ones"
)
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--only", default="", help="rows whose package or part has this in its name")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
options = parser.parse_args()
torch.set_num_threads(options.threads)

x_shape, latent_dim, batch_size = (1, 28, 28), 50, 128
LOG_2_PI = math.log(2 * math.pi)

# Plain PyTorch: log p(x | z) of each likelihood, summed over the minibatch, from the output of the decoder.


def bernoulli(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    return -functional.binary_cross_entropy_with_logits(params.squeeze(-1), x, reduction="sum")


def categorical(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    return -functional.cross_entropy(params.flatten(0, -2), x.long().flatten(), reduction="sum")


def continuous_bernoulli(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    logits = params.squeeze(-1)
    near = logits.abs() < 1e-2  # the constant by its series
    far = torch.where(near, 1.0, logits)
    log_constant = torch.where(near, math.log(2) + logits**2 / 12, (far / (far / 2).tanh()).abs().log())
    return log_constant.sum() - functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def floored(log_scale: Tensor, floor: float) -> Tensor:
    half = (log_scale - floor) / 2
    return floor + half + (half**2 + 1).sqrt()  # exp(asinh(half)), whose functions are slow on a CPU


def logistic(location: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """Return log P of levels from 0 to 255, as PixelCNN++ computes it."""
    log_scale = floored(log_scale, math.log(2 / 255 / 8))
    inverse, centered = torch.exp(-log_scale), 2 * x / 255 - 1 - location
    upper, middle, lower = inverse * (centered + 1 / 255), inverse * centered, inverse * (centered - 1 / 255)
    mass = upper.sigmoid() - lower.sigmoid()
    density = middle - log_scale - 2 * functional.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    below, above = functional.logsigmoid(upper), -functional.softplus(lower)
    return torch.where(x < 0.5, below, torch.where(x > 254.5, above, inside))


def discretized_logistic(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    return logistic(*params.unbind(-1), x).sum()


def discretized_logistic_mixture(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    logits, location, log_scale = params.chunk(3, -1)
    return (logits.log_softmax(-1) + logistic(location, log_scale, x.unsqueeze(-1))).logsumexp(-1).sum()


def gaussian(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    log_scale = vae.likelihood.log_scale
    squares = functional.mse_loss(params.squeeze(-1), x, reduction="sum")
    return -0.5 * squares * (-2 * log_scale).exp() - x.numel() * (log_scale + 0.5 * LOG_2_PI)


def heteroscedastic_gaussian(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    mean, log_scale = params.unbind(-1)
    log_scale = floored(log_scale, math.log(0.01))
    return -(0.5 * ((x - mean) * torch.exp(-log_scale)) ** 2 + log_scale + 0.5 * LOG_2_PI).sum()


def laplace(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    log_scale = vae.likelihood.log_scale
    distance = functional.l1_loss(params.squeeze(-1), x, reduction="sum")
    return -distance * (-log_scale).exp() - x.numel() * (log_scale + math.log(2))


def negative_binomial(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    mean, total = params.squeeze(-1).exp(), vae.likelihood.log_total_count.exp()
    log_both = (total + mean).log()
    factorials = (x + total).lgamma() - total.lgamma() - (x + 1).lgamma()
    return (factorials + total * (total.log() - log_both) + x * (params.squeeze(-1) - log_both)).sum()


def poisson(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    return -functional.poisson_nll_loss(params.squeeze(-1), x, reduction="sum") - (x + 1).lgamma().sum()


def student_t(vae: VAE, params: Tensor, x: Tensor) -> Tensor:
    df, log_scale = vae.likelihood.df, vae.likelihood.log_scale
    norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi) - log_scale
    y = (x - params.squeeze(-1)) * (-log_scale).exp()
    return (norm - (df + 1) / 2 * (y**2 / df).log1p()).sum()


# Plain PyTorch: z, and KL(q(z | x) || p(z)) summed over the minibatch, from the output of the encoder. Priors have a
# diagonal normal posterior, posteriors a standard normal prior.


def diagonal(params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, log-variance, noise and z."""
    mean, log_variance = params[..., 0], params[..., 1].clamp(-10, 10)
    noise = torch.randn_like(mean)
    return mean, log_variance, noise, mean + (0.5 * log_variance).exp() * noise


def log_normal(noise: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * (noise**2 + log_variance + LOG_2_PI).sum()


def standard_normal(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance, _, z = diagonal(params)
    return z, 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()


def learned_normal(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance, _, z = diagonal(params)
    prior_variance = 2 * vae.prior.log_scale
    squares = ((mean - vae.prior.loc) ** 2 + log_variance.exp()) * (-prior_variance).exp()
    return z, 0.5 * (squares - 1 - log_variance + prior_variance).sum()


def student_t_prior(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    _, log_variance, noise, z = diagonal(params)
    df = vae.prior.df
    norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return z, log_normal(noise, log_variance) - (norm - (df + 1) / 2 * (z**2 / df).log1p()).sum()


def log_mixture(z: Tensor, log_weights: Tensor, locs: Tensor, log_scales: Tensor) -> Tensor:
    squares = ((z.unsqueeze(-2) - locs) * (-log_scales).exp()) ** 2  # (B, C, D)
    return (log_weights - (0.5 * squares + log_scales + 0.5 * LOG_2_PI).sum(-1)).logsumexp(-1).sum()


def mixture(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    _, log_variance, noise, z = diagonal(params)
    log_prior = log_mixture(z, vae.prior.logits.log_softmax(-1), vae.prior.locs, vae.prior.log_scales)
    return z, log_normal(noise, log_variance) - log_prior


def vamp(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    _, log_variance, noise, z = diagonal(params)
    locs, log_variances = vae.encoder.run(vae.prior.pseudo_inputs, None).unbind(-1)
    log_weights = torch.full((len(locs),), -math.log(len(locs)))
    log_prior = log_mixture(z, log_weights, locs, 0.5 * log_variances.clamp(-10, 10))
    return z, log_normal(noise, log_variance) - log_prior


def flow_prior(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    _, log_variance, noise, z = diagonal(params)
    value, log_det = z, torch.zeros(())
    for layer in reversed(vae.prior.layers):
        value, of_layer = layer.inverse(value, None)
        log_det = log_det + of_layer.sum()
    return z, log_normal(noise, log_variance) - (log_normal(value, torch.zeros(())) - log_det)


def full_normal(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = params[..., 0], params[..., 1:]
    log_variance = raw.diagonal(dim1=-2, dim2=-1).clamp(-10, 10)
    scale = (0.5 * log_variance).exp()
    lower = (raw + raw.mT).tril(-1) * (scale / math.sqrt(2 * latent_dim)).unsqueeze(-1) + torch.diag_embed(scale)
    z = mean + (lower @ torch.randn_like(mean).unsqueeze(-1)).squeeze(-1)
    return z, 0.5 * ((mean**2 - 1 - log_variance).sum() + (lower**2).sum())


def low_rank_normal(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance, along = params[..., 0], params[..., 1].clamp(-10, 10), params[..., 2:]
    along = along / math.sqrt(along.shape[-1])  # directions before the scale
    scale = (0.5 * log_variance).exp()
    noise, few = torch.randn_like(mean), torch.randn(len(mean), along.shape[-1])
    z = mean + scale * (noise + (along @ few.unsqueeze(-1)).squeeze(-1))
    log_det = torch.logdet(torch.eye(along.shape[-1]) + along.mT @ along).sum() + log_variance.sum()
    variance = log_variance.exp() * (1 + (along**2).sum(-1))
    return z, 0.5 * ((mean**2 + variance - 1).sum() - log_det)


def iaf(vae: VAE, params: Tensor) -> tuple[Tensor, Tensor]:
    _, log_variance, noise, z = diagonal(params)
    log_q = log_normal(noise, log_variance)
    for layer in vae.posterior.layers:
        z, log_det = layer(z, params[..., 2:].flatten(-2))
        log_q = log_q - log_det.sum()
    return z, log_q - log_normal(z, torch.zeros(()))


Step = Callable[[Tensor], Tensor]
Scored = Callable[[VAE, Tensor, Tensor], Tensor]
Latent = Callable[[VAE, Tensor], tuple[Tensor, Tensor]]
mlp = (networks.MLPEncoder, networks.MLPDecoder)

densities: dict[type, Scored] = {
    likelihoods.Bernoulli: bernoulli,
    likelihoods.Categorical: categorical,
    likelihoods.ContinuousBernoulli: continuous_bernoulli,
    likelihoods.DiscretizedLogistic: discretized_logistic,
    likelihoods.DiscretizedLogisticMixture: discretized_logistic_mixture,
    likelihoods.Gaussian: gaussian,
    likelihoods.HeteroscedasticGaussian: heteroscedastic_gaussian,
    likelihoods.Laplace: laplace,
    likelihoods.NegativeBinomial: negative_binomial,
    likelihoods.Poisson: poisson,
    likelihoods.StudentT: student_t,
}
under_priors: dict[type, Latent] = {
    priors.StandardNormal: standard_normal,
    priors.DiagonalNormal: learned_normal,
    priors.StudentT: student_t_prior,
    priors.MixtureOfGaussians: mixture,
    priors.Vamp: vamp,
    priors.Flow: flow_prior,
}
of_posteriors: dict[type, Latent] = {
    posteriors.DiagonalNormal: standard_normal,
    posteriors.FullNormal: full_normal,
    posteriors.LowRankNormal: low_rank_normal,
    posteriors.IAF: iaf,
}
architectures = {
    "MLP": mlp,
    "GatedMLP": (networks.GatedMLPEncoder, networks.GatedMLPDecoder),
    "Conv": (networks.ConvEncoder, networks.ConvDecoder),
    "ResNet": (networks.ResNetEncoder, networks.ResNetDecoder),
}
rows: list[tuple[str, str, dict[str, Any], Scored, Latent]] = [
    *(("likelihoods", p.__name__, {"likelihood": p}, scored, standard_normal) for p, scored in densities.items()),
    *(("priors", p.__name__, {"prior": p}, bernoulli, latent) for p, latent in under_priors.items()),
    *(("posteriors", p.__name__, {"posterior": p}, bernoulli, latent) for p, latent in of_posteriors.items()),
    *(("networks", name, {"nets": nets}, bernoulli, standard_normal) for name, nets in architectures.items()),
]


def build(
    *,
    likelihood: type = likelihoods.Bernoulli,
    prior: type = priors.StandardNormal,
    posterior: type = posteriors.DiagonalNormal,
    nets: tuple[type, type] = mlp,
) -> VAE:
    """Return the default model with another part."""
    torch.manual_seed(0)
    p_x, q_z = likelihood(x_shape), posterior(latent_dim)
    encoder, decoder = nets[0](x_shape, q_z.param_shape), nets[1](latent_dim, p_x.param_shape)
    p_z = prior(encoder, q_z) if prior is priors.Vamp else prior(latent_dim)
    return VAE(prior=p_z, decoder=decoder, likelihood=p_x, encoder=encoder, posterior=q_z)


def random_data(form: str) -> Tensor:
    shape = (batch_size, *x_shape)
    if form in ("levels", "counts"):
        return torch.randint(256, shape).float() if form == "levels" else torch.poisson(torch.full(shape, 3.0))
    return (
        torch.randn(shape)
        if form == "continuous"
        else torch.rand(shape).round()
        if form == "binary"
        else torch.rand(shape)
    )


def our_step(vae: VAE) -> Step:
    """Return the eager step of `pyrovae.fit`, which also computes the reconstruction and the KL."""
    capture = pyrovae.training.capture(vae.model, vae.guide, random_data(vae.likelihood.form), engine="eager")
    return lambda x: capture(x).loss


def plain_step(vae: VAE, scored: Scored, latent: Latent) -> Step:
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)
    prepare = {"levels": lambda x: x / 255, "counts": torch.log1p}.get(vae.likelihood.form, lambda x: x)

    def step(x: Tensor) -> Tensor:
        z, kl = latent(vae, vae.encoder.run(prepare(x), None))
        loss = (kl - scored(vae, vae.decoder.run(z, None), x)) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(name: str, vae: VAE, scored: Scored, latent: Latent) -> tuple[float, float]:
    """Return milliseconds of our step and of the plain one, in turns, each the median of its rounds."""
    rounds, warm_up, steps = (options.rounds, 2, 5) if name != "ResNet" else (6, 1, 1)  # its steps take seconds
    if options.smoke:
        rounds, warm_up, steps = 1, 0, 1
    batches = [random_data(vae.likelihood.form) for _ in range(steps)]
    both = (our_step(vae), plain_step(copy.deepcopy(vae), scored, latent))
    losses = []
    for step in both:
        torch.manual_seed(1)
        losses.append(float(step(batches[0])))
    assert math.isclose(*losses, rel_tol=1e-4), f"ours and plain differ: {losses}"
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(warm_up + rounds):
        for step, milliseconds in zip(both, times, strict=True):
            started = time.perf_counter()
            for x in batches:
                step(x)
            milliseconds.append(1000 * (time.perf_counter() - started) / steps)
    return statistics.median(times[0][warm_up:]), statistics.median(times[1][warm_up:])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if options.memory:  # a process of its own
    imported = peak_mib()
    with own_store(), validation(enabled=False):
        step = our_step(build(likelihood=likelihoods.Categorical).train())
        for _ in range(2 if options.smoke else 10):
            step(random_data("levels"))
    print(peak_mib() - imported)
    sys.exit()

cpu = platform.processor() or platform.machine()
if Path("/proc/cpuinfo").exists():
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() + "model name: " + cpu)[1]
print(f"{cpu}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.system()}")
print(f"Python {platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}, {date.today()}")
# measured first: a process inherits the peak of its parent
command = [sys.executable, __file__, "--memory", "--threads", str(options.threads), *["--smoke"] * options.smoke]
memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
assert memory < 1024, f"training a Categorical of 256 levels took {memory:.0f} MiB"

print("\n|  | part | pyrovae, ms | plain PyTorch, ms | ratio |\n|---|---|---|---|---|")
for room, name, parts, scored, latent in rows:
    if options.only in room or options.only in name:
        with own_store(), validation(enabled=False):
            ours, plain = measure(name, build(**parts).train(), scored, latent)
        print(f"| {room} | {name} | {ours:.2f} | {plain:.2f} | {ours / plain:.2f} |", flush=True)
print(f"\nPeak memory above the imports with Categorical, 256 levels: {memory:.0f} MiB, Adam's state included")
