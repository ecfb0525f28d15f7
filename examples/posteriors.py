"""Every posterior on the same digits, one table at the end.

    python examples/posteriors.py                  the digits that come with scikit-learn; about three minutes
    python examples/posteriors.py --data mnist     MNIST; hours on two cores

prints the ELBO, L_5000 and paired differences from the diagonal posterior, and which KL have no closed form. A
posterior is not part of log p(x). A better posterior reduces the gap between the ELBO and L_5000; L_5000 itself
hardly changes here. The picture shows the differences of L_5000 with their 95 % intervals; filled: resolved after
adjustment for the number of comparisons.
"""

import argparse

import torch

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/posteriors.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
training = Training(epochs=1 if options.smoke else 80, batch_size=64, final_learning_rate=1e-4)
ks = (1, 50) if options.smoke else (1, 50, 5000)  # each a divisor of the next
num_test = 20 if options.smoke else 200

data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
likelihood = likelihoods.Bernoulli(data.x_shape)
menu = {
    "DiagonalNormal": lambda: posteriors.DiagonalNormal(latent_dim),
    "LowRankNormal, rank 4": lambda: posteriors.LowRankNormal(latent_dim, rank=4),
    "FullNormal": lambda: posteriors.FullNormal(latent_dim),
    "IAF": lambda: posteriors.IAF(latent_dim),
}

takes = "A few seconds" if options.smoke else "About three minutes" if options.data == "digits" else "Hours"
print(f"{takes} on two cores: {len(menu)} posteriors, {training.epochs} epochs each.", flush=True)

evaluations = {}
for name, make_posterior in menu.items():
    torch.manual_seed(0)
    posterior = make_posterior()
    vae = VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),  # the posterior gives the shape
        posterior=posterior,
    )
    print(name, flush=True)
    pyrovae.fit(vae.model, vae.guide, data, training=training)
    evaluations[name] = pyrovae.evaluate(vae.model, vae.guide, data.test.first(num_test), ks=ks)

comparison = pyrovae.compare(evaluations)
print(f"\n{comparison}")

figure = pyrovae.report.forest(comparison.blocks[0])
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
