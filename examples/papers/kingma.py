"""Kingma, Welling 2014, figure 2: the training ELBO by the number of latent dimensions.

    python examples/papers/kingma.py --cells 3 5 10 --seeds 3

*Auto-encoding variational Bayes*, https://arxiv.org/abs/1312.6114. MNIST binarized once, one hidden layer of 500 tanh
units in each network, minibatches of 100, Adagrad with step 0.01, and a N(0, I) prior of the weights, which is a weight
decay of 1 / 59,600 here. The paper's figure ends after 10^8 training samples, 1,678 epochs.

The compared number is the training ELBO, the mean over the last epoch: the figure shows it, and it needs no test
images, which another binarization would change. The paper prints curves without numbers. The values come from a list of
published results whose source was not found again, so a difference may be the list's.

The recipe differs from the paper's: weights start at Glorot's values instead of N(0, 0.01), and the images are
binarized by draws of our own.
"""

from functools import partial

import torch
from common import TRAINING_ELBO, Row, parse_options, run_cell
from torch import Tensor, nn

import pyrovae
from pyrovae import VAE, Checks, Training, likelihoods, networks, posteriors, priors

TENTH = (
    "All rows are of a tenth of the paper's training samples, and rose by 1.5 to 1.7 nats over the last quarter of "
    "their steps: after all of them they would lie above the list."
)
PUBLISHED = {"3": -141.3, "5": -124.4, "10": -107.6, "20": -100.6, "200": -99.2}
ROWS = [
    Row(f"kingma-{cell}", f"{cell} latent dimensions", value, of=TRAINING_ELBO, note=TENTH * (cell == "20"))
    for cell, value in PUBLISHED.items()
]
TRAINING = Training(epochs=1678, batch_size=100, learning_rate=0.01, start_at_data=False)


def make_vae(latent_dim: int) -> VAE:
    """Return the model with fresh weights."""
    likelihood = likelihoods.Bernoulli((1, 28, 28))
    posterior = posteriors.DiagonalNormal(latent_dim)
    layers = {"hidden": (500,), "activation": nn.Tanh}
    return VAE(
        prior=priors.StandardNormal(latent_dim),
        decoder=networks.MLPDecoder(latent_dim, likelihood.param_shape, **layers),
        likelihood=likelihood,
        encoder=networks.MLPEncoder((1, 28, 28), posterior.param_shape, **layers),
        posterior=posterior,
    )


def make_optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return Adagrad with the gradient of the weights' prior, per datum."""
    return torch.optim.Adagrad(parameters, weight_decay=1 / 59_600)


if __name__ == "__main__":
    options = parse_options(__doc__, cells=list(PUBLISHED))
    data = pyrovae.data.mnist(num_validation=400).with_transform(pyrovae.data.transforms.StaticBinarization())
    checks = Checks(num_annealed=100, num_simulated=0, num_refined=0, num_encoded=0)
    for cell in options.cells:
        run_cell(
            options,
            f"kingma-{cell}",
            partial(make_vae, int(cell)),
            data,
            training=TRAINING,
            optimizer=make_optimizer,
            ks=(1, 5, 50, 500),
            num_data=1000,
            checks=checks,
        )
