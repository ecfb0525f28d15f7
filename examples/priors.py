"""Every prior on the same digits, one table at the end.

    python examples/priors.py                  the digits that come with scikit-learn; about four minutes
    python examples/priors.py --data mnist     MNIST; hours on two cores

prints the ELBO, L_5000 and paired differences from N(0, I), and which KL have no closed form. The last table shows what
other priors would add to the ELBO of the model with N(0, I) if its encoder and decoder stay as they are. The picture
shows the differences of L_5000 with their 95 % intervals; filled: resolved after adjustment for the number of
comparisons.
"""

import argparse

import torch

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/priors.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
training = Training(epochs=1 if options.smoke else 80, batch_size=64, final_learning_rate=1e-4)
ks = (1, 50) if options.smoke else (1, 50, 5000)  # each a divisor of the next
num_test = 20 if options.smoke else 200

data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
likelihood = likelihoods.Bernoulli(data.x_shape)
examples = data.train.first(100).fixed()  # initial pseudo-inputs of Vamp

menu = {
    "StandardNormal": lambda encoder, posterior: priors.StandardNormal(latent_dim),
    "DiagonalNormal": lambda encoder, posterior: priors.DiagonalNormal(latent_dim),
    "StudentT": lambda encoder, posterior: priors.StudentT(latent_dim, df=5.0),
    "MixtureOfGaussians": lambda encoder, posterior: priors.MixtureOfGaussians(latent_dim, num_components=10),
    "Flow": lambda encoder, posterior: priors.Flow(latent_dim),
    "Vamp": lambda encoder, posterior: priors.Vamp(encoder, posterior, num_components=100, data=examples),
}

takes = "A few seconds" if options.smoke else "About four minutes" if options.data == "digits" else "Hours"
print(f"{takes} on two cores: {len(menu)} priors, {training.epochs} epochs each.", flush=True)

evaluations = {}
for name, make_prior in menu.items():
    torch.manual_seed(0)
    posterior = posteriors.DiagonalNormal(latent_dim)
    encoder = networks.MLPEncoder(data.x_shape, posterior.param_shape)
    decoder = networks.MLPDecoder(latent_dim, likelihood.param_shape)
    prior = make_prior(encoder, posterior)  # after encoder and posterior, which Vamp shares
    vae = VAE(prior=prior, decoder=decoder, likelihood=likelihood, encoder=encoder, posterior=posterior)
    print(name, flush=True)
    pyrovae.fit(vae.model, vae.guide, data, training=training)
    evaluations[name] = pyrovae.evaluate(vae.model, vae.guide, data.test.first(num_test), ks=ks)
    if name == "StandardNormal":
        num_steps = 20 if options.smoke else 1500
        gains = pyrovae.diagnostics.prior_gains(vae, data, num_steps=num_steps)

comparison = pyrovae.compare(evaluations)
print(f"\n{comparison}\n\n{gains}")

figure = pyrovae.report.forest(comparison.blocks[0])
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
