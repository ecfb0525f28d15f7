"""Variational autoencoders as Pyro programs, judged by bounds on log p(x) that can be trusted.

The rooms, in the order in which data walk through them; each uses only those above it.

data           x comes in: digits, mnist, fashion_mnist, kmnist, your own; binarize, dequantize, standardize
results        what is reported: frozen records that print as tables and go to JSON and back; compare
distributions  what pyro.distributions lacks, or is slow at
priors         p(z):     StandardNormal, DiagonalNormal, MixtureOfGaussians, StudentT, Flow, Vamp
likelihoods    p(x | z): Bernoulli, Categorical, ContinuousBernoulli, DiscretizedLogistic, DiscretizedLogisticMixture,
               Gaussian, HeteroscedasticGaussian, Laplace, NegativeBinomial, Poisson, StudentT
posteriors     q(z | x): DiagonalNormal, LowRankNormal, FullNormal, IAF
networks       MLPEncoder MLPDecoder GatedMLPEncoder GatedMLPDecoder ConvEncoder ConvDecoder ResNetEncoder ResNetDecoder
VAE            the five parts as one Pyro model and guide; generate, reconstruct, interpolate, traverse; from_torch
pair           the contract with a model and guide that you wrote yourself
scoring        how particles are drawn and scored, in any layout of plates
particles      draws of the guide with log p(z), log p(x | z), log q(z | x); log_weights and log_joint beside it
bounds         the ELBO with its terms apart, the ladder of IWAE bounds, AIS, and BDMC from above
objectives     what is minimized: ELBO, IWAE, STL, DReG, which also work in a bare pyro.infer.SVI; schedules of beta
recording      a function of tensors as a graph, replayed without Python's part in it
training       fit, Training, load, and the run folder; capture: a recorded step for loops of your own
diagnostics    is the guide any good: k-hat, is K enough, active units, mutual information, gaps
evaluate       the ELBO beside the IWAE bounds of any pair, with standard errors; Checks of how far they can be trusted
testing        check: the laws that a part of your own should obey
report         one HTML page of an evaluation, its pictures, comparisons of runs, and draws for ArviZ
cli            pyrovae train | evaluate | compare | generate

A swap is one line:

>>> import pyrovae
>>> from pyrovae import VAE, likelihoods, networks, posteriors, priors
>>> data = pyrovae.data.digits().for_form("binary")     # <- "continuous" for a density such as Gaussian
>>> likelihood = likelihoods.Bernoulli(data.x_shape)    # <- likelihoods.Gaussian(data.x_shape)
>>> prior = priors.StandardNormal(16)
>>> posterior = posteriors.DiagonalNormal(16)
>>> vae = VAE(
...     prior=prior,
...     decoder=networks.MLPDecoder(16, likelihood.param_shape),
...     likelihood=likelihood,
...     encoder=networks.MLPEncoder(data.x_shape, posterior.param_shape),
...     posterior=posterior,
... )
>>> history = pyrovae.fit(vae.model, vae.guide, data)
>>> print(pyrovae.evaluate(vae.model, vae.guide, data))
"""

import importlib
from types import ModuleType

from pyrovae import bounds, data, diagnostics, likelihoods, networks, objectives, posteriors, priors, results, training
from pyrovae.describe import Described
from pyrovae.evaluate import Checks, evaluate
from pyrovae.particles import log_joint, log_weights, particles
from pyrovae.results import compare
from pyrovae.training import Training, fit, load
from pyrovae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Checks",
    "Described",
    "Training",
    "bounds",
    "compare",
    "data",
    "diagnostics",
    "evaluate",
    "fit",
    "likelihoods",
    "load",
    "log_joint",
    "log_weights",
    "networks",
    "objectives",
    "particles",
    "posteriors",
    "priors",
    "report",
    "results",
    "testing",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    """Import rooms when they are first used: the matplotlib and xarray of the report take a second."""
    if name in ("report", "testing"):
        return importlib.import_module(f"pyrovae.{name}")
    raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")
