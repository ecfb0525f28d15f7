"""Every likelihood on the same digits, with one table for each group of comparable likelihoods.

    python examples/likelihoods.py                  the digits that come with scikit-learn; about four minutes
    python examples/likelihoods.py --data mnist     MNIST; hours on two cores

prints one table for each form of the data: binary images for masses, stored levels, and dequantized images for
densities. The picture shows draws of x, not means: the noise that each likelihood puts around E[x | z], in shades from
the smallest to the largest value of the data. Draws of HeteroscedasticGaussian look like noise although its bound is
good, probably because its scales are large for those z from the prior that are far from the codes of all data.
"""

import argparse

import torch
from matplotlib.figure import Figure

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/likelihoods.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
training = Training(epochs=1 if options.smoke else 80, batch_size=64, final_learning_rate=1e-4)
ks = (1, 50) if options.smoke else (1, 50, 5000)  # each a divisor of the next
num_test = 20 if options.smoke else 200

menu = {
    "Bernoulli": (likelihoods.Bernoulli, {}),
    "Categorical": (likelihoods.Categorical, {}),
    "DiscretizedLogistic": (likelihoods.DiscretizedLogistic, {}),
    "DiscretizedLogisticMixture": (likelihoods.DiscretizedLogisticMixture, {"num_components": 3}),
    "Poisson": (likelihoods.Poisson, {}),
    "NegativeBinomial": (likelihoods.NegativeBinomial, {"total_count": 30.0}),
    "Gaussian, learned scale": (likelihoods.Gaussian, {"scale": 0.2, "learn_scale": True}),
    "Gaussian, fixed scale": (likelihoods.Gaussian, {"scale": 0.2}),
    "HeteroscedasticGaussian": (likelihoods.HeteroscedasticGaussian, {}),
    "Laplace, learned scale": (likelihoods.Laplace, {"scale": 0.2, "learn_scale": True}),
    "StudentT, learned scale": (likelihoods.StudentT, {"scale": 0.2, "learn_scale": True}),
    "ContinuousBernoulli": (likelihoods.ContinuousBernoulli, {}),
}

takes = "A few seconds" if options.smoke else "About four minutes" if options.data == "digits" else "Hours"
print(f"{takes} on two cores: {len(menu)} likelihoods, {training.epochs} epochs each.", flush=True)

figure = Figure(figsize=(9.0, 7.2), layout="constrained")
panels = iter(figure.subplots(3, 4).flat)
stored = pyrovae.data.load_or_exit(options.data, form="levels", images=True, first=1500 if options.smoke else None)
evaluations = {}
for name, (part, choices) in menu.items():
    data = stored.for_form(part.form)  # binarized, as stored, or dequantized, as the likelihood needs it
    torch.manual_seed(0)
    likelihood = part.for_data(data, **choices)
    posterior = posteriors.DiagonalNormal(latent_dim)
    vae = VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
        posterior=posterior,
    )
    print(name, flush=True)
    pyrovae.fit(vae.model, vae.guide, data, training=training)
    evaluations[name] = pyrovae.evaluate(vae.model, vae.guide, data.test.first(num_test), ks=ks)
    pyrovae.report.samples(vae, num=16, mean=False, ax=(panel := next(panels)))
    panel.images[0].set_clim(*data.test.fixed().aminmax())  # draws may lie far outside
    panel.set_title(name, fontsize=9)

print(f"\n{pyrovae.compare(evaluations, blocks=True)}")
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
