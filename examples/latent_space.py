"""A two-dimensional latent space with the KL, without it, and with a KL that wins.

    python examples/latent_space.py                  the digits that come with scikit-learn; about two minutes
    python examples/latent_space.py --data mnist     MNIST; about half an hour on two cores

prints one row for each model: the terms of the ELBO, the information of the codes about the data, the bounds, in nats
per datum, and the share of codes z ~ q(z | x) farther than two standard deviations from the center of the prior. The
models differ in beta, the factor of the KL in training, and in one option of the posterior.

The picture has a column for each model but beta = 0, all on the same axes. Points are posterior means, in color by
label, small ellipses are posteriors at one standard deviation, and dashed circles are the prior at one and two. Below
are the decoded grid of z at quantiles of the prior, and the two terms of the ELBO over the epochs.

- Autoencoder: without the KL, the codes spread beyond the prior, with gaps between the labels, and have no width. Many
  of them, such as most of the 0, are where the prior has few draws: they are missing from the grid. Of the three
  in the picture, its reconstruction is the best, its ELBO the worst.
- beta = 0: the same loss, but a posterior that is free to have a width. Nothing rewards one, so it learns a small one:
  the model is an autoencoder too, with an even larger KL, and looks like it.
- VAE: the codes fill the prior. Its KL of a few nats is no collapse: nearly all of it is information about x.
- beta = 50: the KL wins. All data have the same code, and the decoder draws one grey image everywhere. The KL is zero
  and the prior fits: only the information tells this from success.
"""

import argparse
import math

import torch

import pyrovae
from pyrovae import VAE, Training, diagnostics, likelihoods, networks, objectives, posteriors, priors, report
from pyrovae.report.style import blank, legend_below, minus_signs, to_png
from pyrovae.results import Number, Table
from pyrovae.results.tables import percent

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/latent_space.png", help="PNG file")
options = parser.parse_args()

epochs = 1 if options.smoke else 200 if options.data == "digits" else 30
training = Training(epochs=epochs, batch_size=64, learning_rate=2e-3, final_learning_rate=1e-4)
ks = (1, 50) if options.smoke else (1, 50, 5000)  # each a divisor of the next
num_test = 20 if options.smoke else 300

models = {  # beta, and the largest log-variance of the posterior
    "autoencoder": (0.0, -9.99),  # the standard deviation stays at its minimum of 0.0067: in effect no noise
    "beta = 0": (0.0, 10.0),  # free to learn its noise, the guide removes it
    "VAE": (1.0, 10.0),
    "beta = 50": (50.0, 10.0),
}
takes = "A few seconds" if options.smoke else "Two minutes" if options.data == "digits" else "Half an hour"
print(f"{takes} on two cores: {len(models)} models, {epochs} epochs each.", flush=True)

data = pyrovae.data.load_or_exit(options.data, form="binary", images=True, first=1500 if options.smoke else None)
test = data.test.first(num_test)
x = test.fixed()

rows, verdicts, panels = [], [], {}
for name, (beta, max_log_variance) in models.items():
    torch.manual_seed(0)  # all models start alike
    likelihood = likelihoods.Bernoulli(data.x_shape)
    posterior = posteriors.DiagonalNormal(2, max_log_variance=max_log_variance)
    vae = VAE(
        prior=priors.StandardNormal(2),
        decoder=networks.MLPDecoder(2, likelihood.param_shape),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
        posterior=posterior,
    )
    history = pyrovae.fit(vae, data, objective=objectives.ELBO(beta=beta), training=training)
    evaluation = pyrovae.evaluate(vae, test, ks=ks)
    latents = diagnostics.latents(vae.model, vae.guide, x)
    bounds = (evaluation.reconstruction, evaluation.kl, latents.information, evaluation.elbo, evaluation.iwae[-1])
    far = (vae.encode(x).sample().norm(dim=-1) > 2).double().mean().item()
    rows.append((name, *(Number(bound.value, 2) for bound in bounds), percent(far), str(latents.num_active)))
    verdicts.append(f"{name}: codes {latents.verdict}; prior {latents.prior_verdict}, {latents.prior_reason}")
    if name != "beta = 0":  # it looks like the autoencoder
        panels[f"{name}: ELBO {evaluation.elbo.value:.1f}"] = (vae, history)

header = ("", "reconstruction", "KL", "I(x; z)", "ELBO", f"L_{ks[-1]}", "beyond 2 sd", "active units")
title = f"{num_test} test data, nats per datum. I(x; z) cannot exceed log {num_test} = {latents.ceiling:.2f}."
verdicts.append(f"of draws from the prior, {percent(math.exp(-2))} are beyond two standard deviations (2 sd)")
print(f"\n{Table(header, tuple(rows), title=(title,), notes=tuple(verdicts))}")

figure = blank(9, 9)
axes = figure.subplots(3, 3, height_ratios=(3, 3, 2))
for column, (title, (vae, history)) in zip(axes.T, panels.items(), strict=True):
    report.latent_space(vae, x, test.labels, dims=(0, 1), limits=(-6, 6), num_ellipses=20, ax=column[0])
    column[0].set_title(minus_signs(title))
    report.manifold(vae, num_values=10, ax=column[1])
    numbers = [epoch.epoch for epoch in history.epochs]
    column[2].plot(numbers, [-epoch.reconstruction for epoch in history.epochs], label="\N{MINUS SIGN}reconstruction")
    column[2].plot(numbers, [epoch.kl for epoch in history.epochs], label="KL")
    column[2].set(xlabel="Epoch", ylabel="Nats per datum")
for panel in axes[2]:
    panel.set_ylim(0, max(other.get_ylim()[1] for other in axes[2]))
axes[2, 2].legend(loc="center right", frameon=False)
legend_below(figure, [str(label) for label in range(10)], columns=10)

options.picture.write_bytes(to_png(figure, 100, num_colors=256))
print(f"picture: {options.picture}")
