"""The trade-off between KL and reconstruction: one model trained with beta from 0.1 to 10, and others beside it.

    python examples/rate_distortion.py                  the digits that come with scikit-learn; about four minutes
    python examples/rate_distortion.py --data mnist     MNIST; hours on two cores

prints one row for each model: the rate, which is the KL, the distortion, which is minus the reconstruction, and the
bounds, in nats per datum. Models on the curve have the same parts and the same start; the loss is distortion plus beta
times rate. The picture shows both terms, with lines of equal ELBO, minus their sum.

- A small beta lowers the distortion and costs KL, a large beta does the opposite: at 10 the codes have collapsed. The
  slope of the curve at a model is about -beta, and it touches the line of the highest ELBO at beta = 1.
- Free bits move along the curve; they do not improve it.
- Training on L_50 (DReG) gives a worse ELBO and a better L_K than beta = 1: such a model lies above the curve.
- Another prior or posterior gives another curve. Only a point below the curve is a better trade-off; on the digits,
  a mixture prior and an IAF posterior lie close to it.

*Fixing a broken ELBO (Alemi et al. 2018)*, https://arxiv.org/abs/1711.00464
"""

import argparse

import torch

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, objectives, posteriors, priors, report
from pyrovae.results import Number, Table

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/rate_distortion.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
training = Training(epochs=1 if options.smoke else 100, batch_size=64, final_learning_rate=1e-4)
ks = (1, 50) if options.smoke else (1, 50, 500)  # each a divisor of the next
num_test = 20 if options.smoke else 300

betas = (0.1, 10.0) if options.smoke else (0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 10.0)
standard, diagonal = priors.StandardNormal, posteriors.DiagonalNormal
models = {f"beta = {beta:g}": (objectives.ELBO(beta=beta), standard, diagonal) for beta in betas}
curve = list(models)
models |= {
    "free bits, 0.5 nats": (objectives.ELBO(free_bits=0.5), standard, diagonal),
    "DReG, K = 50": (objectives.DReG(num_particles=50), standard, diagonal),
    "Mixture prior": (objectives.ELBO(), lambda dim: priors.MixtureOfGaussians(dim, num_components=10), diagonal),
    "IAF posterior": (objectives.ELBO(), standard, posteriors.IAF),
}
takes = "A few seconds" if options.smoke else "Four minutes" if options.data == "digits" else "Hours"
print(f"{takes} on two cores: {len(models)} models, {training.epochs} epochs each.", flush=True)

data = pyrovae.data.load_or_exit(options.data, form="binary", first=1500 if options.smoke else None)
test = data.test.first(num_test)
evaluations = {}
for name, (objective, make_prior, make_posterior) in models.items():
    torch.manual_seed(0)
    likelihood = likelihoods.Bernoulli(data.x_shape)
    posterior = make_posterior(latent_dim)
    vae = VAE(
        prior=make_prior(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
        posterior=posterior,
    )
    print(name, flush=True)
    pyrovae.fit(vae, data, objective=objective, training=training)
    evaluations[name] = pyrovae.evaluate(vae, test, ks=ks)

rows = []
for name, evaluation in evaluations.items():
    kl, reconstruction, bound = evaluation.kl.value, evaluation.reconstruction.value, evaluation.iwae[-1].value
    rows.append((name, *(Number(value, 2) for value in (kl, -reconstruction, reconstruction - kl, bound))))
header = ("", "rate", "distortion", "ELBO", f"L_{ks[-1]}")
title = f"{num_test} test data, nats per datum; L_{ks[-1]} is the IWAE bound on log p(x)"
print(f"\n{Table(header, tuple(rows), title=(title,))}")

points = {"ELBO with beta": {name: evaluations.pop(name) for name in curve}, **evaluations}
figure = report.rate_distortion(points)
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
