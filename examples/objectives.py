"""Every objective on the same digits, one table at the end.

    python examples/objectives.py                  the digits that come with scikit-learn; about four minutes
    python examples/objectives.py --data mnist     MNIST; hours on two cores

prints the ELBO, L_5000 and their paired differences from training on the ELBO. All runs have the same model; only the
objective differs. A model that maximizes L_50 need not have a good ELBO. The picture shows the differences of
L_5000 with their 95 % intervals; filled: resolved after adjustment for the number of comparisons.
"""

import argparse

import torch

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, objectives, posteriors, priors
from pyrovae.objectives import schedules

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/objectives.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
training = Training(epochs=1 if options.smoke else 80, batch_size=64, final_learning_rate=1e-4)
ks = (1, 50) if options.smoke else (1, 50, 5000)  # each a divisor of the next
num_test = 20 if options.smoke else 200

data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
steps_per_epoch = -(-len(data.train) // training.batch_size)
warm_up = 20 * steps_per_epoch

menu = {
    "ELBO": objectives.ELBO(),
    "ELBO, 8 particles": objectives.ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1),
    "ELBO, beta = 2": objectives.ELBO(beta=2.0),
    "ELBO, free bits": objectives.ELBO(free_bits=0.1),
    "ELBO, linear warm-up": objectives.ELBO(annealing=schedules.Linear(warm_up)),
    "ELBO, cyclical warm-up": objectives.ELBO(annealing=schedules.Cyclical(warm_up)),
    "STL": objectives.STL(),
    "IWAE, K = 50": objectives.IWAE(num_particles=50),
    "DReG, K = 50": objectives.DReG(num_particles=50),
}

takes = "A few seconds" if options.smoke else "About four minutes" if options.data == "digits" else "Hours"
print(f"{takes} on two cores: {len(menu)} objectives, {training.epochs} epochs each.", flush=True)

evaluations = {}
for name, objective in menu.items():
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
    print(name, flush=True)
    pyrovae.fit(vae.model, vae.guide, data, objective=objective, training=training)
    evaluations[name] = pyrovae.evaluate(vae.model, vae.guide, data.test.first(num_test), ks=ks)

comparison = pyrovae.compare(evaluations)
print(f"\n{comparison}")

figure = pyrovae.report.forest(comparison.blocks[0])
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
