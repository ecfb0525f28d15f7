"""Variational autoencoders as Pyro programs, judged by bounds on log p(x) that can be trusted.

Each package below imports only from packages above it.

runtime        random streams, devices, precision, memory, ranks, progress, atomic files; parts to JSON and back
compile        tracing of a function of tensors, and its compilation with Inductor
data           digits, mnist, fashion_mnist, kmnist, your own arrays; splits, binarize, dequantize, standardize, loading
results        frozen records that print as tables and convert to JSON and back; compare
distributions  distributions and KL divergences that pyro.distributions lacks or computes slowly
priors         p(z):     StandardNormal, DiagonalNormal, MixtureOfGaussians, StudentT, Flow, Vamp
likelihoods    p(x | z): Bernoulli, Categorical, ContinuousBernoulli, DiscretizedLogistic, DiscretizedLogisticMixture,
               Gaussian, HeteroscedasticGaussian, Laplace, NegativeBinomial, Poisson, StudentT
posteriors     q(z | x): DiagonalNormal, LowRankNormal, FullNormal, IAF
networks       MLPEncoder MLPDecoder GatedMLPEncoder GatedMLPDecoder ConvEncoder ConvDecoder ResNetEncoder ResNetDecoder
VAE            five parts as one Pyro model and guide; generate, reconstruct, interpolate, traverse; from_torch
programs       any Pyro model and guide: contract, supports, replay, analytic KL, densities that see their values
importance     pyrovae.particles, log_weights, log_joint: draws with log p(z), log p(x | z), log q(z | x); simulation
bounds         ELBO with analytic KL terms, IWAE bounds, AIS, and BDMC from above
objectives     training losses: ELBO, IWAE, STL, DReG, also for a bare pyro.infer.SVI; schedules of beta
training       fit, Training, load, run folders; capture: a traced step for your own training loop
diagnostics    k-hat, adequacy of K, active units, mutual information, inference gaps, gains of other priors
evaluation     ELBO and IWAE bounds of any model and guide with standard errors; Checks: AIS, BDMC, gaps, latent units
testing        check: conformance tests for your own parts
report         HTML page of an evaluation, its figures, comparison of runs, ArviZ tree
cli            pyrovae train | evaluate | compare | generate | sweep

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
>>> history = pyrovae.fit(vae, data)                    # or fit(model, guide, data) for any Pyro model and guide
>>> print(pyrovae.evaluate(vae, data))
"""

import importlib
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

with warnings.catch_warnings():  # Pyro imports tqdm, which warns in a notebook without ipywidgets
    warnings.filterwarnings("ignore", "IProgress not found")
    import pyro  # noqa: F401

from pyrovae import bounds, data, diagnostics, likelihoods, networks, objectives, posteriors, priors, results, training

if TYPE_CHECKING:
    from pyrovae import report, testing
    from pyrovae.evaluation import Checks, evaluate
    from pyrovae.importance.sampling import log_joint, log_weights, particles
    from pyrovae.results import compare
    from pyrovae.runtime.serialization import Described
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


_HOMES = {
    **dict.fromkeys(("Checks", "evaluate"), "evaluation"),
    **dict.fromkeys(("Training", "fit", "load"), "training"),
    **dict.fromkeys(("log_joint", "log_weights", "particles"), "importance.sampling"),
    "Described": "runtime.serialization",
    "VAE": "vae",
    "compare": "results",
}


def __getattr__(name: str) -> Any:
    """Return a public name from its package; ``help(pyrovae)`` would print the documentation of all names held here."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"pyrovae.{_HOMES[name]}"), name)
    if not name.startswith("_") and find_spec(f"pyrovae.{name}"):  # such as the slow report
        return importlib.import_module(f"pyrovae.{name}")
    raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")
