"""Two stochastic layers as a plain Pyro model and guide.

    python examples/two_layers.py                  the digits that come with scikit-learn; about a minute
    python examples/two_layers.py --data mnist     MNIST, with the sizes of the paper; hours on two cores

The model samples z2 -> z1 -> x, the guide x -> z1 -> z2, as in *Importance weighted autoencoders (Burda, Grosse,
Salakhutdinov 2016)*, https://arxiv.org/abs/1509.00519. In this order the closed-form KL of z1 is not a term of the
ELBO; the table names the method for each latent. The picture shows the activity of the units of both layers, the
variance over the data of the posterior mean, from the largest to the smallest. The last lines count the active ones.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae
from pyrovae import Training, likelihoods, objectives
from pyrovae.report.style import DOTTED, blank, dress, legend_below

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/two_layers.png", help="PNG file")
options = parser.parse_args()

small = options.data == "digits"
z1_dim, z2_dim = (20, 10) if small else (100, 50)
x_width, z_width = (100, 50) if small else (200, 100)  # hidden units between x and z1, and between z1 and z2
training = Training(epochs=1 if options.smoke else 80, batch_size=64)
ks = (1, 5, 50) if options.smoke else (1, 5, 50, 500, 5000)  # each a divisor of the next

takes = "A few seconds" if options.smoke else "About a minute" if options.data == "digits" else "Hours"
print(f"{takes} on two cores: {training.epochs} epochs of DReG with 5 particles, then bounds.", flush=True)

data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
likelihood = likelihoods.Bernoulli(data.x_shape)
num_pixels = torch.Size(data.x_shape).numel()


def tanh_layers(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


torch.manual_seed(0)
z2_to_z1 = tanh_layers(z2_dim, z_width, 2 * z1_dim)
z1_to_x = tanh_layers(z1_dim, x_width, num_pixels)
x_to_z1 = tanh_layers(num_pixels, x_width, 2 * z1_dim)
z1_to_z2 = tanh_layers(z1_dim, z_width, 2 * z2_dim)
with torch.no_grad():
    z1_to_x[-1].bias.copy_(likelihood.initial_params(data.train.mean()).flatten())


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


pyrovae.fit(model, guide, data, objective=objectives.DReG(num_particles=5), training=training)
print(pyrovae.evaluate(model, guide, data, ks=ks))

figure = blank(9, 3.4)
panels = figure.subplots(1, 2, sharey=True, width_ratios=(z1_dim, z2_dim))
latents = pyrovae.diagnostics.latents(model, guide, data.test.fixed())
for name, panel in zip(("z1", "z2"), panels, strict=True):
    activity = sorted((unit.activity for unit in latents.units if unit.name.startswith(name)), reverse=True)
    title = f"{name}: {sum(value > 0.01 for value in activity)} of {len(activity)} units are active"
    print(title)
    dress(panel, title=title, grid=True)
    panel.bar(range(1, len(activity) + 1), activity, label="Variance over the data of the posterior mean", zorder=2)
    panel.axhline(0.01, label="Threshold of activity, 0.01", **DOTTED)
    panel.set(yscale="log", xlabel="Rank of the unit")
    panel.locator_params("x", integer=True)
legend_below(figure, panel.get_legend_handles_labels()[1])
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
