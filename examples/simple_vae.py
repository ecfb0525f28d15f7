"""One VAE written twice, in plain torch and with pyrovae, and how far its loss is from log p(x).

    python examples/simple_vae.py                  the digits that come with scikit-learn; about a minute
    python examples/simple_vae.py --data mnist     MNIST, 784-256-32; about ten minutes on two cores

Binary cross-entropy plus KL, one hidden layer with ReLU: the VAE of most tutorials. Both versions start from the same
weights and take the same draws; the first table shows that their losses agree to the rounding of float64. Minus the
loss is the ELBO, the number that everybody prints. `VAE.from_torch` then evaluates the plain network: the bounds L_K
and annealed importance sampling (AIS) are closer to log p(x), and the last line says how far the ELBO is below the
higher of them. The picture shows the same.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrovae
from pyrovae import VAE, Checks, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/simple_vae.png", help="PNG file")
options = parser.parse_args()

latent_dim, hidden = 32, 256
epochs = 2 if options.smoke else 60 if options.data == "digits" else 10
ks = (1, 5, 50) if options.smoke else (1, 5, 50, 500, 5000)  # each a divisor of the next
num_test = 10 if options.smoke else 100

takes = "A few seconds" if options.smoke else "About a minute" if options.data == "digits" else "About ten minutes"
print(f"{takes} on two cores: {epochs} epochs of both versions, then bounds of {num_test} test images.", flush=True)


class PlainVAE(nn.Module):
    """Everything is here: two networks, a draw, and two terms of the loss."""

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(num_pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent_dim))
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, num_pixels))

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:  # (B, num_pixels)
        """Return mean and log-variance of z, (B, latent_dim) each."""
        return self.encoder(x).unflatten(-1, (latent_dim, 2)).unbind(-1)

    def loss(self, x: Tensor) -> Tensor:
        """Return minus the ELBO, in nats per datum: the sum over pixels, not their mean."""
        mean, log_variance = self.encode(x)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        cross_entropy = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return (cross_entropy + kl) / len(x)


torch.set_default_dtype(torch.float64)  # in float32 rounding grows to 0.01 nats within 60 epochs
torch.manual_seed(0)
data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
net = PlainVAE(torch.Size(data.x_shape).numel())
adam = torch.optim.Adam(net.parameters(), lr=1e-3)

# The same with pyrovae: five parts, and a step of SVI on the ELBO.
likelihood, posterior = likelihoods.Bernoulli(data.x_shape), posteriors.DiagonalNormal(latent_dim)
vae = VAE(
    prior=priors.StandardNormal(latent_dim),
    decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, hidden=(hidden,), activation=nn.ReLU),
    likelihood=likelihood,
    encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape, hidden=(hidden,), activation=nn.ReLU),
    posterior=posterior,
)
for module, other in ((net.encoder, vae.encoder), (net.decoder, vae.decoder)):  # the same initial weights
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(module.parameters()).detach(), other.parameters())
grey = data.train.with_transform(pyrovae.data.transforms.Grey()).fixed()  # (N, *x_shape), probabilities of the pixels
step = pyrovae.training.capture(vae.model, vae.guide, grey[:64].bernoulli(), engine="eager")

print("\nepoch    -loss, plain    -ELBO, pyrovae    largest difference of a minibatch (nats per datum)")
number = 0
for epoch in range(1, epochs + 1):
    losses = []
    for rows in torch.randperm(len(grey)).split(64):
        x, number = grey[rows].bernoulli(), number + 1  # new binary images for each minibatch
        torch.manual_seed(number)
        loss = net.loss(x.flatten(1))
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.manual_seed(number)  # the same draws of z
        losses.append(torch.stack([loss.detach(), step(x).loss]))
    plain, other = torch.stack(losses).T
    if epoch in (1, 2, 3, 5) or epoch % 10 == 0:
        print(f"{epoch:5d} {-plain.mean():15.6f} {-other.mean():17.6f} {(plain - other).abs().max():15.1e}", flush=True)

# with flat=True the encoder takes rows (B, pixels), not images
plain = VAE.from_torch(net.encode, net.decoder, latent_dim=latent_dim, x_shape=data.x_shape, flat=True)
chains = {"num_temperatures": 4 if options.smoke else 30}
checks = Checks(num_annealed=num_test, num_simulated=0, num_refined=0, num_encoded=0, **chains)
evaluation = pyrovae.evaluate(plain, data.test.first(num_test), ks=ks, checks=checks)
print(f"\n{evaluation}")
annealed = evaluation.checked.annealing.bound
short = max(annealed.value, evaluation.iwae[-1].value) - evaluation.elbo.value
print(f"\nMinus the loss, {evaluation.elbo.value:.2f}, is short of log p(x) by {short:.2f} nats per datum or more.")

figure = pyrovae.report.ladder(evaluation)
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
