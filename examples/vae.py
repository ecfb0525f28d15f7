"""A variational autoencoder, from data to a report.

    python examples/vae.py                      the digits that come with scikit-learn; half a minute
    python examples/vae.py --data mnist         MNIST; about a quarter of an hour on two cores

prints the ELBO and the IWAE bounds of the test data, in nats per datum, and writes a report to runs/vae. The
picture shows test images above their reconstructions E[x | z].
"""

import argparse

import torch

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--folder", default="runs/vae")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/vae.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
hidden = (200, 200)
epochs = 2 if options.smoke else 100
ks = (1, 5, 50) if options.smoke else (1, 5, 50, 500, 5000)  # each a divisor of the next

takes = "A few seconds" if options.smoke else "Half a minute" if options.data == "digits" else "A quarter of an hour"
print(f"{takes} on two cores: {epochs} epochs, then bounds with K up to {ks[-1]}.", flush=True)

# The data are bytes. Each minibatch draws new binary images from them; the test images are drawn once.
data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
print(data)

# The five parts. Swap one by changing its line.
torch.manual_seed(0)
likelihood = likelihoods.Bernoulli(data.x_shape)
prior = priors.StandardNormal(latent_dim)
posterior = posteriors.DiagonalNormal(latent_dim)
encoder = networks.MLPEncoder(data.x_shape, posterior.param_shape, hidden=hidden)
decoder = networks.MLPDecoder(latent_dim, likelihood.param_shape, hidden=hidden)
vae = VAE(prior=prior, decoder=decoder, likelihood=likelihood, encoder=encoder, posterior=posterior)

# vae.model and vae.guide are Pyro programs; fit runs SVI on them.
training = Training(epochs=epochs, patience=20)
history = pyrovae.fit(vae.model, vae.guide, data, training=training)
print(f"\n{history}\n")

evaluation = pyrovae.evaluate(vae.model, vae.guide, data, ks=ks)
print(evaluation)

folder = pyrovae.report.write_report(
    options.folder, evaluation, model=vae.model, guide=vae.guide, data=data.test, history=history, overwrite=True
)
print(f"\nreport: {folder / 'index.html'}")

figure = pyrovae.report.reconstructions(vae, data.test.fixed(), num=12)
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
