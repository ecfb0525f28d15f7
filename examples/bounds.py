"""Every estimate of log p(x), for a VAE and for a plain Pyro model and guide with two latent layers.

    python examples/bounds.py                  the digits that come with scikit-learn; about a minute
    python examples/bounds.py --data mnist     MNIST; K = 5000 on 10,000 images takes most of the time

First come the ELBO, the ladder of IWAE bounds, annealed importance sampling (AIS) and the upper bound of bidirectional
Monte Carlo (BDMC), each computed on the same few data points. Then `evaluate` computes all of them and reports how
reliable they are. All of these work for any model and guide under the contract of `pyrovae.programs`. The picture shows
the ELBO, the ladder and AIS of the VAE.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae
from pyrovae import VAE, Checks, Training, bounds, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/bounds.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
num_few = 10 if options.smoke else 100  # data points of the first table and of the checks
ks = (1, 5, 50) if options.smoke else (1, 5, 50, 500, 5000)  # each a divisor of the next
training = Training(epochs=1 if options.smoke else 60)
anneal = {"num_chains": 4, "num_temperatures": 5} if options.smoke else {}
checks = Checks(num_annealed=num_few, num_simulated=num_few, num_refined=num_few, num_encoded=num_few, **anneal)

takes = "A few seconds" if options.smoke else "About a minute" if options.data == "digits" else "Hours"
print(f"{takes} on two cores: two models, all bounds of {num_few} test data for each.", flush=True)

data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
few = data.test.first(num_few)
x = few.fixed()  # (B, *x_shape)

torch.manual_seed(0)
likelihood = likelihoods.Bernoulli(data.x_shape)
posterior = posteriors.DiagonalNormal(latent_dim)
vae = VAE(
    prior=priors.StandardNormal(latent_dim),
    decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape),
    likelihood=likelihood,
    encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
    posterior=posterior,
)
pyrovae.fit(vae.model, vae.guide, data, training=training)

terms = bounds.elbo(vae.model, vae.guide, x, num_particles=100)
weights = pyrovae.log_weights(vae.model, vae.guide, x, num_particles=ks[-1])  # (K, B)
annealed = bounds.ais(vae.model, vae.guide, x, **anneal)
print(f"\nOne VAE, {len(x)} data, nats per datum")
print(f"ELBO   {terms.elbo.mean():.3f}")
for k, bound in zip(ks, bounds.iwae(weights, ks), strict=True):
    print(f"L_{k:<5}{bound.mean():.3f}")
print(annealed)
print(bounds.bdmc(vae.model, vae.guide, x, **anneal))  # on data simulated from the model

print("\nThe VAE, all at once\n")
evaluation = pyrovae.evaluate(vae.model, vae.guide, few, ks=ks, checks=checks)
print(evaluation)

figure = pyrovae.report.ladder(evaluation)
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")

z1_dim, z2_dim, num_pixels = 12, 6, torch.Size(data.x_shape).numel()
z2_to_z1 = nn.Sequential(nn.Linear(z2_dim, 64), nn.Tanh(), nn.Linear(64, 2 * z1_dim))
z1_to_x = nn.Sequential(nn.Linear(z1_dim, 128), nn.Tanh(), nn.Linear(128, num_pixels))
x_to_z1 = nn.Sequential(nn.Linear(num_pixels, 128), nn.Tanh(), nn.Linear(128, 2 * z1_dim))
z1_to_z2 = nn.Sequential(nn.Linear(z1_dim, 64), nn.Tanh(), nn.Linear(64, 2 * z2_dim))


def normal(params: Tensor) -> dist.TorchDistribution:  # (..., 2 D), mean and log scale
    mean, log_scale = params.chunk(2, -1)
    return dist.Normal(mean, log_scale.clamp(-5, 5).exp()).to_event(1)


def model(x: Tensor) -> None:  # (B, *x_shape)
    pyro.module("z2_to_z1", z2_to_z1)
    pyro.module("z1_to_x", z1_to_x)
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(x.new_zeros(z2_dim), 1.0).to_event(1))  # (B, z2_dim)
        z1 = pyro.sample("z1", normal(z2_to_z1(z2)))  # (B, z1_dim)
        pyro.sample("x", likelihood(z1_to_x(z1).unflatten(-1, likelihood.param_shape)), obs=x)


def guide(x: Tensor) -> None:  # (B, *x_shape)
    pyro.module("x_to_z1", x_to_z1)
    pyro.module("z1_to_z2", z1_to_z2)
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", normal(x_to_z1(x.flatten(1))))
        pyro.sample("z2", normal(z1_to_z2(z1)))


pyrovae.fit(model, guide, data, training=training)
print("\nTwo latent layers, all at once\n")
print(pyrovae.evaluate(model, guide, few, ks=ks, checks=checks))
