"""Altosaar's reference implementation: an inverse autoregressive flow as posterior against the mean field.

    python examples/papers/iaf.py --seeds 3

*Variational autoencoder in TensorFlow and PyTorch*, https://github.com/altosaar/variational-autoencoder, which prints
L_128 of the test images: -97.10 with the mean field after 65,000 steps, -95.33 with two layers of *Improved variational
inference with inverse autoregressive flow (Kingma et al. 2016)*, https://arxiv.org/abs/1606.04934, after 150,000.
MNIST binarized once, 128 latent dimensions, 256 ReLU units in two layers of each network, minibatches of 128, centered
RMSprop at 1e-3, the weights of the best validation ELBO.

The compared number is the paired difference of L_128 on the same test images: its standard error is a fraction of that
of each value, and the published images are Larochelle's, which are other draws.

The recipe differs: validation after each epoch of 391 steps, with a patience of 64 epochs, at most 256 epochs for both
rows, a closed-form KL for the mean field, a gradient of less noise for IAF, which leaves out the score of its normal
base, Glorot's initial weights, the log-variance instead of a softplus, and no output that starts at the mean of the
data.
"""

from functools import partial

import torch
from common import Row, parse_options, run_cell
from torch import Tensor, nn

import pyrovae
from pyrovae import VAE, Checks, Training, likelihoods, networks, posteriors, priors

NOTE = (
    "a miss. Both rows end above their published values, the mean field by more: its KL has a closed form here, and "
    "the reference estimates it. An earlier run of IAF with the total gradient and tanh ended at -97.56, below the "
    "mean field. Not tried: an estimated KL for the mean field, as in the reference."
)
ROWS = (
    Row("iaf-mean_field", "mean field", -97.10, of="L_128"),
    Row("iaf-iaf", "IAF", -95.33, of="L_128"),
    Row("iaf-iaf", "IAF over the mean field", 1.77, of="difference", tolerance=0.4, note=NOTE),
)
POSTERIORS = {
    "mean_field": posteriors.DiagonalNormal,
    "iaf": partial(posteriors.IAF, num_layers=2, hidden=(256, 256), num_context=1, activation=nn.ReLU),
}
TRAINING = Training(epochs=256, batch_size=128, learning_rate=1e-3, patience=64, start_at_data=False)


def make_vae(cell: str) -> VAE:
    """Return the model with fresh weights."""
    likelihood = likelihoods.Bernoulli((1, 28, 28))
    posterior = POSTERIORS[cell](128)
    layers = {"hidden": (256, 256), "activation": nn.ReLU}
    return VAE(
        prior=priors.StandardNormal(128),
        decoder=networks.MLPDecoder(128, likelihood.param_shape, **layers),
        likelihood=likelihood,
        encoder=networks.MLPEncoder((1, 28, 28), posterior.param_shape, **layers),
        posterior=posterior,
    )


def make_optimizer(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Return centered RMSprop."""
    return torch.optim.RMSprop(parameters, centered=True)


if __name__ == "__main__":
    options = parse_options(__doc__, cells=list(POSTERIORS))
    data = pyrovae.data.mnist().with_transform(pyrovae.data.transforms.StaticBinarization())
    checks = Checks(num_annealed=20, num_simulated=0, num_refined=0, num_encoded=0)  # AIS inverts the flow
    for cell in options.cells:
        run_cell(
            options,
            f"iaf-{cell}",
            partial(make_vae, cell),
            data,
            training=TRAINING,
            optimizer=make_optimizer,
            ks=(1, 128),
            checks=checks,
            reference="iaf-mean_field" if cell == "iaf" else None,
        )
