"""A ResNet-18 encoder and a convolutional decoder, after a published recipe.

    python examples/minivae.py                  the digits that come with scikit-learn; about ten minutes
    python examples/minivae.py --data mnist     MNIST; about half an hour on one core

On a CPU, MNIST means 3 epochs on 20,000 images. `--data mnist --images 60000 --epochs 24` is the whole recipe, about
six hours on one core.

The encoder is ResNet-18 with an output of 1024, then 1024-256 and mean and log-variance of 128 latent dimensions. The
decoder projects z to small feature maps, which convolutions with upsampling enlarge. The likelihood is a Gaussian with
scale 1, the squared error; with fewer pixels its scale is smaller, so that their sum has the weight that it has on
MNIST. `--pretrained` starts the encoder from weights learned on ImageNet, which torchvision downloads.

What to look for: the validation ELBO follows the training ELBO from the first epoch on. In evaluation batch
normalization uses averages over earlier minibatches, which after few steps can cost any number of nats; `fit` averages
again after each epoch. The encoder starts with small variances, and the KL has a slow warm-up over three quarters of
the steps. Both ELBOs are low meanwhile, since the KL is large and hardly counts in the loss. Without such a start z is
noise at first, the decoder learns to ignore it, and the posterior collapses. The ELBO of the mean image alone stands
above the table; only a model that uses z exceeds it. On the digits, which are few for such a network, z carries a few
nats, and the reconstructions in the picture, below the test images, are blurred.
"""

import argparse
import copy
import dataclasses
import math

import torch
from torch import nn

import pyrovae
from pyrovae import VAE, Checks, Training, likelihoods, networks, objectives, posteriors, priors, report

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="digits")
parser.add_argument("--images", type=int, help="largest number of training images")
parser.add_argument("--epochs", type=int)
parser.add_argument("--pretrained", action="store_true", help="start the encoder from weights learned on ImageNet")
parser.add_argument("--smoke", action="store_true", help="run for a few seconds, as a test")
parser.add_argument("--picture", type=report.picture_file, default="runs/minivae.png", help="PNG file to write")
options = parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Cubic(objectives.schedules.Linear):
    """Weight of the KL, small for long, so that the decoder uses z before z costs much."""

    def __call__(self, step: int) -> float:
        return super().__call__(step) ** 3


latent_dim, batch_size = 128, 32
device = "cuda" if torch.cuda.is_available() else "cpu"
images, epochs = (20_000, 3) if device == "cpu" and options.data != "digits" else (60_000, 24)
images, epochs, num_test = (64, 1, 10) if options.smoke else (options.images or images, options.epochs or epochs, 300)
ks = (1, 5) if options.smoke else (1, 50)  # each a divisor of the next

data = pyrovae.data.load_or_exit(options.data, form="continuous", images=True)  # (level + noise in [0, 1)) / levels
parts = {"train": data.train.first(images), "validation": data.validation.first(500), "test": data.test}
data = pyrovae.data.Data(**parts, name=options.data)

torch.manual_seed(0)
likelihood = likelihoods.Gaussian(data.x_shape, scale=math.sqrt(math.prod(data.x_shape) / 784))
posterior = posteriors.DiagonalNormal(latent_dim)
stem = min(data.x_shape[-2:]) >= 28  # the original first layers are too coarse for smaller images
try:
    resnet = networks.ResNetEncoder(data.x_shape, (1024,), imagenet_stem=stem, pretrained=options.pretrained)
    note = ""
except ValueError as error:  # there is no network, and no file in torch's folder
    resnet = networks.ResNetEncoder(data.x_shape, (1024,), imagenet_stem=stem)
    note = f"random initial weights: {error}"
layers = nn.ReLU(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 2 * latent_dim)
encoder = nn.Sequential(resnet, *layers, nn.Unflatten(-1, posterior.param_shape)).to(device)
with torch.no_grad():
    encoder[-2].bias.view(posterior.param_shape)[:, 1] -= 4  # log-variances
vae = VAE(
    prior=priors.StandardNormal(latent_dim),
    decoder=networks.ConvDecoder(latent_dim, likelihood.param_shape, hidden=(256,)),
    likelihood=likelihood,
    encoder=encoder,
    posterior=posterior,
)

rehearsal = Training(epochs=3, batch_size=batch_size, engine="eager")  # the first epochs are slower
history = pyrovae.fit(copy.deepcopy(vae), data.train.first(128), training=rehearsal, show_progress=False)
minutes = history.epochs[-1].seconds / min(128, len(data.train)) * len(data.train) * epochs / 60
warm_up = max(1, 3 * epochs * len(data.train) // batch_size // 4)  # steps of three quarters of the epochs
print(f"About {minutes:.1f} minutes on this machine: {epochs} epochs on {len(data.train):,} images.", flush=True)
mean_image = likelihood(likelihood.initial_params(data.train.mean()))
baseline = mean_image.log_prob(data.validation.fixed()).mean()
print(f"{data}\n{note}\nThe mean image alone has {baseline:.2f} on the validation data.")
print("\nepoch   ELBO   ELBO of validation data   seconds   (nats per datum)")
pyrovae.fit(
    vae,
    data,
    objective=objectives.ELBO(annealing=Cubic(warm_up)),
    training=Training(epochs=epochs, batch_size=batch_size, learning_rate=2e-3, final_learning_rate=1e-4),
    show_progress=False,
    on_epoch=lambda e: print(f"{e.epoch:5d}{e.elbo:10.2f}{e.validation['elbo']:16.2f}{e.seconds:17.1f}", flush=True),
)
checks = Checks(num_annealed=0, num_simulated=0, num_refined=0, num_encoded=num_test)
evaluation = pyrovae.evaluate(vae, data.test.first(num_test), ks=ks, checks=checks)
print(f"\n{dataclasses.replace(evaluation, checked=None)}")
print(f"\nActive latent units: {evaluation.checked.latents.num_active} of {latent_dim}")

figure = report.reconstructions(vae, data.test.fixed().to(device), num=12)
figure.savefig(options.picture, dpi=100, format="png")
print(f"picture: {options.picture}")
