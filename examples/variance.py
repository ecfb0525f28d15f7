"""What the scale of p(x | z) does: density against squared error, and why reconstructions are blurred.

    python examples/variance.py                  the digits that come with scikit-learn; about three minutes
    python examples/variance.py --data mnist     MNIST; about an hour on two cores

Six VAEs of dequantized grey images differ in one line, the likelihood: a Gaussian with scale 1 (the squared error, "L2
loss"), with a small scale, with one learned scale, and with a scale for each pixel; a Laplace with scale 1 ("L1 loss")
and with a learned scale. The table has the density L_K, bits per dimension of the stored grey levels, and the error of
the reconstruction E[x | z], for the same test images. What to look for:

- scale 1: errors cost less than the KL, so z carries little (Laplace) or nothing (Gaussian: all reconstructions are one
  grey average);
- a small scale: the smallest squared error at the largest KL, but not the best density;
- one learned scale: it becomes about the root mean squared error of the model, and needs no tuning;
- a scale for each pixel: by far the best density, at a larger squared error. The picture shows where the density is
  bought: scales are tiny (white) at the empty borders, large (dark) where strokes may lie;
- Laplace against Gaussian: at scale 1 small errors cost more than their squares; with a learned scale the density is
  higher and the errors are larger. Neither is sharp: E[x | z] is an average over all images that z may stand for.
  Fewer bits per dimension do not mean better pictures.
"""

import argparse
import math

import torch
from matplotlib.figure import Figure

import pyrovae
from pyrovae import VAE, Training, likelihoods, networks, posteriors, priors

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/variance.png", help="PNG file")
options = parser.parse_args()

latent_dim = 16
epochs = 1 if options.smoke else 150 if options.data == "digits" else 20
training = Training(epochs=epochs, batch_size=64, final_learning_rate=1e-4)
ks = (1, 5) if options.smoke else (1, 50, 500)  # each a divisor of the next
num_test = 20 if options.smoke else 300

takes = "A few seconds" if options.smoke else "About three minutes" if options.data == "digits" else "About an hour"
print(f"{takes} on two cores: six models, {epochs} epochs each, then L_{ks[-1]} of {num_test} test images.", flush=True)

menu = {
    "Gaussian, scale 1": (likelihoods.Gaussian, {"scale": 1.0}),
    "Gaussian, scale 0.05": (likelihoods.Gaussian, {"scale": 0.05}),
    "Gaussian, learned scale": (likelihoods.Gaussian, {"learn_scale": True}),
    "Gaussian, scale per pixel": (likelihoods.HeteroscedasticGaussian, {}),
    "Laplace, scale 1": (likelihoods.Laplace, {"scale": 1.0}),
    "Laplace, learned scale": (likelihoods.Laplace, {"learn_scale": True}),
}

data = pyrovae.data.load_or_exit(
    options.data, form="continuous", images=True, first=1500 if options.smoke else None
)  # noise in [0, 1) added
test = data.test.first(num_test)
x = test.fixed()  # (B, *x_shape), the same noise for all models
head = f"{'L_' + str(ks[-1]):>9}{'bits/dim':>10}{'KL':>8}{'RMSE':>9}{'mean abs':>10}   sd of pixels, 5 to 95 %"
print(f"\n{test.name}: densities and KL in nats per datum, errors of E[x | z] per pixel\n\n{'':26}{head}")

figure = Figure(figsize=(9.0, 6.8), layout="constrained")
panels = figure.subplots(3, 2).T.flat
for (name, (part, choices)), panel in zip(menu.items(), panels, strict=True):
    torch.manual_seed(0)
    likelihood, posterior = part(data.x_shape, **choices), posteriors.DiagonalNormal(latent_dim)
    vae = VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape),
        likelihood=likelihood,
        encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
        posterior=posterior,
    )
    pyrovae.fit(vae, data, training=training, show_progress=False)
    evaluation = pyrovae.evaluate(vae, test, ks=ks, show_progress=False)
    with torch.no_grad():
        p_x = vae.decode(vae.encode(x).mean)
    error, (low, high) = x - p_x.mean, p_x.stddev.quantile(torch.tensor([0.05, 0.95]))
    bits = evaluation.bits_per_dimension or math.nan  # None for data that are real numbers
    print(
        f"{name:26}{evaluation.iwae[-1].value:9.2f}{bits:10.3f}{evaluation.kl.value:8.2f}"
        f"{error.square().mean().sqrt():9.4f}{error.abs().mean():10.4f}   {low:.3f} to {high:.3f}",
        flush=True,
    )
    pyrovae.report.pixel_scale(vae, x, num=7, limit=0.3, ax=panel)
    panel.set_title(name, loc="left", fontsize=10)

figure.savefig(options.picture, dpi=100, format="png")
print(f"\npicture: {options.picture}")
