"""A conditional VAE: encoder, decoder and prior also see the label, which travels with x as a covariate.

    python examples/conditional.py                  the digits that come with scikit-learn; about a minute
    python examples/conditional.py --data mnist     MNIST; about half an hour on two cores

prints bounds on log p(x | label), then classifies the test images by the label with the largest bound: by Bayes' rule,
a conditional density is a classifier. The picture shows E[x | z, label], one label in each column.
"""

import argparse

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/conditional.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
training = Training(epochs=1 if options.smoke else 80, batch_size=64, final_learning_rate=1e-4)
ks = (1, 5, 50) if options.smoke else (1, 5, 50, 500, 5000)  # each a divisor of the next
num_classified = 10 if options.smoke else 100

takes = "A few seconds" if options.smoke else "About a minute" if options.data == "digits" else "About half an hour"
print(
    f"{takes} on two cores: {training.epochs} epochs, bounds, then {num_classified} images classified.",
    flush=True,
)

plain = pyrovae.data.load_or_exit(
    options.data, form="binary", images=True, labels=True, first=1500 if options.smoke else None
)
num_labels = 1 + int(plain.train.labels.max())
data = plain.with_covariates(lambda split: nn.functional.one_hot(split.labels, num_labels).float())  # (N, labels)


class PerLabel(priors.Prior):
    """p(z | label): a normal distribution for each label."""

    conditional = True

    def __init__(self, latent_dim: int, num_labels: int) -> None:
        super().__init__(latent_dim)
        self.loc = nn.Parameter(torch.zeros(num_labels, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_labels, latent_dim))

    def forward(self, labels: Tensor) -> dist.TorchDistribution:  # (B, num_labels), one-hot
        """Return the normal distribution of each datum's label."""
        return dist.Normal(labels @ self.loc, (labels @ self.log_scale).exp()).to_event(1)


torch.manual_seed(0)
likelihood = likelihoods.Bernoulli(data.x_shape)
posterior = posteriors.DiagonalNormal(latent_dim)
vae = VAE(
    prior=PerLabel(latent_dim, num_labels),
    decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, covariate_dim=num_labels),
    likelihood=likelihood,
    encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape, covariate_dim=num_labels),
    posterior=posterior,
)
pyrovae.fit(vae.model, vae.guide, data, training=training)
print(pyrovae.evaluate(vae.model, vae.guide, data, ks=ks))

x, labels = data.test.fixed()[:num_classified], data.test.labels[:num_classified]
bounds = []
for label in range(num_labels):
    covariate = nn.functional.one_hot(torch.full((len(x),), label), num_labels).float()
    weights = pyrovae.log_weights(vae.model, vae.guide, x, covariate, num_particles=50)  # (50, B)
    bounds.append(pyrovae.bounds.iwae(weights)[0])
predicted = torch.stack(bounds).argmax(0).cpu()  # (B,), labels with the largest L_50, if all are equally frequent
print(f"\n{(predicted == labels).sum()} of {len(x)} test images get their label from L_50 of log p(x | label)")

figure = pyrovae.report.samples(vae, covariates=[torch.eye(num_labels)], num=100)  # column i has label i
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
