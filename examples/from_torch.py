"""A VAE in plain torch, trained by a plain loop and evaluated by pyrovae.

    python examples/from_torch.py                  the digits that come with scikit-learn; half a minute
    python examples/from_torch.py --data mnist     MNIST

The networks and their training do not use pyrovae. `VAE.from_torch` makes a VAE from its encode and decode functions,
and `evaluate` prints the ELBO and the IWAE bounds of the test data, in nats per datum. The picture shows
E[x | z] for z from the prior, by a figure of `pyrovae.report`.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrovae
from pyrovae import VAE

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/from_torch.png", help="PNG file")
options = parser.parse_args()

latent_dim = 8 if options.data == "digits" else 20
epochs = 2 if options.smoke else 100 if options.data == "digits" else 20
ks = (1, 5, 50) if options.smoke else (1, 5, 50, 500, 5000)  # each a divisor of the next

takes = "A few seconds" if options.smoke else "About half a minute" if options.data == "digits" else "Many minutes"
print(f"{takes} on two cores: {epochs} epochs of plain torch, then bounds with K up to {ks[-1]}.", flush=True)


class PlainVAE(nn.Module):
    """One hidden layer in each network, as in tutorials."""

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        self.to_hidden = nn.Linear(num_pixels, 200)
        self.to_mean, self.to_log_variance = nn.Linear(200, latent_dim), nn.Linear(200, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 200), nn.Tanh(), nn.Linear(200, num_pixels))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(B, num_pixels)`` to mean and log-variance, ``(B, latent_dim)`` each."""
        hidden = self.to_hidden(x).tanh()
        return self.to_mean(hidden), self.to_log_variance(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Map ``(B, latent_dim)`` to logits ``(B, num_pixels)``: no sigmoid, which would lose digits."""
        return self.decoder(z)

    def loss(self, x: Tensor) -> Tensor:
        """Return minus the ELBO of a minibatch, in nats per datum."""
        mean, log_variance = self.encode(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        reconstruction = F.binary_cross_entropy_with_logits(self.decode(z), x, reduction="sum")
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return (reconstruction + kl) / len(x)


data = pyrovae.data.load_or_exit(options.data, form="binary", images=True, first=1500 if options.smoke else None)
grey = data.train.with_transform(pyrovae.data.transforms.Grey()).fixed().flatten(1)  # (N, num_pixels), between 0 and 1

torch.manual_seed(0)
net = PlainVAE(grey.shape[1])
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for epoch in range(1, epochs + 1):
    total = 0.0
    for rows in torch.randperm(len(grey)).split(64):
        loss = net.loss(grey[rows].bernoulli())  # new binary images for each minibatch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    if epoch % 10 == 0 or epoch == epochs:
        print(f"epoch {epoch:3d}  ELBO {-total / len(grey):.2f}")

# From here on it is a VAE like any other. With flat=True its encoder takes rows (B, pixels), not images.
vae = VAE.from_torch(net.encode, net.decode, latent_dim=latent_dim, x_shape=data.x_shape, flat=True)
evaluation = pyrovae.evaluate(vae.model, vae.guide, data.test, ks=ks)
print(f"\n{evaluation}")

figure = pyrovae.report.samples(vae, num=100)
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
