"""A VAE whose latent variables are maps, as in latent diffusion: its networks as they are, evaluated.

    python examples/latent_maps.py                  the digits that come with scikit-learn; about two minutes
    python examples/latent_maps.py --data mnist     MNIST, maps of shape (4, 7, 7); hours on two cores

The encoder emits 2 C channels, means and log-variances of C maps, and `VAE.from_torch(encode, decode, latent_shape=(C,
h, w), ...)` takes it as it is: `AutoencoderKL` of the package diffusers where that is installed, otherwise a small
convolutional network. Outside the networks z is flat, and evaluation, latent report and figures work as for any VAE.

The same network is trained twice: on the ELBO, and with a weight of 0.01 on the KL (latent diffusion takes 1e-6). What
to look for: the small weight gives better reconstructions at a KL so large that the ELBO is far worse, and z from the
prior N(0, I) decodes to scattered pixels, not to the blurred shapes of the ELBO's model: that is why latent diffusion
then trains a model of the maps. The picture shows data, reconstructions, maps of posterior means from -3 (white) to 3
(black), and E[x | z] for z from the prior.
"""

import argparse
from importlib.util import find_spec

import torch
from matplotlib.figure import Figure
from torch import nn

import pyrovae
from pyrovae import VAE, Checks, Training, likelihoods, objectives
from pyrovae.report.panels import draw_tiles

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=pyrovae.report.picture_file, default="runs/latent_maps.png", help="PNG file")
options = parser.parse_args()

small = options.data == "digits"
channels, halvings = (2, 1) if small else (4, 2)  # of the maps; 8 x 8 pixels to 4 x 4, or 28 x 28 to 7 x 7
training = Training(epochs=1 if options.smoke else 60 if small else 10, batch_size=64, final_learning_rate=1e-4)
ks = (1, 5) if options.smoke else (1, 50, 500)  # each a divisor of the next
num_test = 20 if options.smoke else 300

takes = "A few seconds" if options.smoke else "About two minutes" if small else "Hours"
print(f"{takes} on two cores: two models, {training.epochs} epochs each, then L_{ks[-1]}.")
has_diffusers = find_spec("diffusers") is not None
print(
    f"networks: {'AutoencoderKL of diffusers' if has_diffusers else 'our own; diffusers is not installed'}", flush=True
)


class ConvAutoencoder(nn.Module):
    """Convolutions from an image to the moments of latent maps, and back."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        down, up = [nn.Conv2d(1, widths[0], 3, padding=1)], [nn.Conv2d(widths[0], 1, 3, padding=1)]
        for before, after in zip(widths, widths[1:], strict=False):
            down += [nn.SiLU(), nn.Conv2d(before, after, 3, stride=2, padding=1)]
            up = [nn.Upsample(scale_factor=2), nn.Conv2d(after, before, 3, padding=1), nn.SiLU(), *up]
        self.encode = nn.Sequential(*down, nn.SiLU(), nn.Conv2d(widths[-1], 2 * channels, 3, padding=1))
        self.decode = nn.Sequential(nn.Conv2d(channels, widths[-1], 3, padding=1), nn.SiLU(), *up)


def make_network() -> nn.Module:
    """Return a network with encode and decode, whose maps have `channels` channels."""
    widths = (16, 32, 64)[: halvings + 1]
    if not has_diffusers:
        return ConvAutoencoder(widths)
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=channels,
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        norm_num_groups=8,
    )


first = 1500 if options.smoke else None
data = pyrovae.data.load_or_exit(options.data, form="continuous", images=True, first=first)  # (B, 1, H, W)
latent_shape = (channels, data.x_shape[1] >> halvings, data.x_shape[2] >> halvings)
test = data.test.first(num_test)
x = test.fixed()
figure = Figure(figsize=(9.0, 0.55 * (4 + channels)), layout="constrained")
names = ["weight", "reconstruction", "KL", "ELBO", f"L_{ks[-1]}", "RMSE"]
print(f"\n{test.name}, maps of shape {latent_shape}, nats per datum\n\n{''.join(f'{name:>16}' for name in names)}")
for beta, panel in zip((0.01, 1.0), figure.subplots(1, 2), strict=True):
    torch.manual_seed(0)
    net, likelihood = make_network(), likelihoods.Gaussian(data.x_shape, learn_scale=True)
    vae = VAE.from_torch(net.encode, net.decode, latent_shape=latent_shape, x_shape=data.x_shape, likelihood=likelihood)
    pyrovae.fit(vae, data, objective=objectives.ELBO(beta=beta), training=training, show_progress=False)
    checks = Checks(num_annealed=0, num_simulated=0, num_refined=0, num_encoded=num_test)
    evaluation = pyrovae.evaluate(vae, test, ks=ks, checks=checks, show_progress=False)
    terms, means = (evaluation.reconstruction, evaluation.kl, evaluation.elbo, evaluation.iwae[-1]), vae.reconstruct(x)
    error = (x - means).square().mean().sqrt()
    print(f"{beta:16g}{''.join(f'{term.value:16.3f}' for term in terms)}{error:16.4f}", flush=True)

    maps = vae.encode(x[:8]).mean.detach().unflatten(1, latent_shape).movedim(1, 0)  # (C, 8, h, w)
    maps = maps.repeat_interleave(2**halvings, 2).repeat_interleave(2**halvings, 3).unsqueeze(2)  # (C, 8, 1, H, W)
    tiles = [x[:8], means[:8], *(0.5 + maps / 6), vae.generate(8, mean=True)]
    rows = ["Data $x$", "$E[x \\mid z]$", *(f"Map {number}" for number in range(1, channels + 1)), "Prior"]
    draw_tiles(torch.stack(tiles), limits=(0, 1), title="", row_labels=rows, ax=panel)
    panel.set_title(f"Weight of the KL: {beta:g}", loc="left", fontsize=10)
print(f"\nWeight of the KL: 1\n\n{evaluation.checked.latents}")

figure.savefig(options.picture, dpi=100, format="png")
print(f"\npicture: {options.picture}")
