"""The variational autoencoder: one model/guide pair, and what one does with it once it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae import memory
from pyrovae.data import Split
from pyrovae.describe import Described
from pyrovae.likelihoods import Likelihood
from pyrovae.posteriors import Posterior
from pyrovae.priors import Prior
from pyrovae.sandbox import forked_random, module_mode, stream_seed


class VAE(Described, nn.Module):
    """A latent variable model p(z) p(x | z) with an amortized posterior q(z | x).

    `model` and `guide` are the only places with Pyro statements: read them to see what is fitted, copy them to write a
    pair of your own. Called with covariates beside x, such as one-hot labels, they are a conditional model p(x | c):
    both networks are handed them, and a prior that is `conditional` too.

    *Auto-encoding variational Bayes (Kingma, Welling 2014)*, https://arxiv.org/abs/1312.6114

    Args:
        prior: p(z).
        decoder: network from z to ``likelihood.param_shape``.
        likelihood: p(x | z) given the decoder's output.
        encoder: network from ``likelihood.encoder_input(x)`` to ``posterior.param_shape``.
        posterior: q(z | x) given the encoder's output.

    Raises:
        ValueError: if two neighboring parts do not fit.
        TypeError: if one has another role.

    Example:
        >>> likelihood = likelihoods.Bernoulli((1, 8, 8))
        >>> posterior = posteriors.DiagonalNormal(2)
        >>> vae = VAE(
        ...     prior=priors.StandardNormal(2),
        ...     decoder=networks.MLPDecoder(2, likelihood.param_shape),
        ...     likelihood=likelihood,
        ...     encoder=networks.MLPEncoder((1, 8, 8), posterior.param_shape),
        ...     posterior=posterior,
        ... )
        >>> vae.generate(3).shape
        torch.Size([3, 1, 8, 8])

    """

    def __init__(
        self, *, prior: Prior, decoder: nn.Module, likelihood: Likelihood, encoder: nn.Module, posterior: Posterior
    ) -> None:
        super().__init__()
        for role, part, base in (
            ("prior", prior, Prior),
            ("likelihood", likelihood, Likelihood),
            ("posterior", posterior, Posterior),
        ):
            if not isinstance(part, base):
                kind = f"the class {part.__qualname__}" if isinstance(part, type) else f"a {type(part).__qualname__}"
                raise TypeError(
                    f"the {role} of a VAE is of a class derived from {base.__qualname__}, but received {kind} "
                    f"of {getattr(part, '__module__', 'nowhere')}; make one of pyrovae.{base.__module__.split('.')[1]}"
                )
        if prior.latent_dim != posterior.latent_dim:
            raise ValueError(
                f"prior and posterior share the latent variable, but the prior has {prior.latent_dim} dimensions and "
                f"the posterior {posterior.latent_dim}; give both the same latent_dim"
            )
        if getattr(decoder, "latent_dim", prior.latent_dim) != prior.latent_dim:
            raise ValueError(
                f"prior and decoder share the latent variable, but the prior has {prior.latent_dim} dimensions and the "
                f"decoder {decoder.latent_dim}; give both the same latent_dim"
            )
        _check_fit("decoder", decoder, likelihood, "likelihood")
        _check_fit("encoder", encoder, posterior, "posterior")
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.encoder = encoder
        self.posterior = posterior

    def model(self, x: Tensor, *covariates: Tensor) -> None:
        """Score data ``(B, *x_shape)`` under p(z) p(x | z); covariates ``(B, ...)`` are seen by the parts too."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(*covariates) if self.prior.conditional else self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z, *covariates)), obs=x)

    def guide(self, x: Tensor, *covariates: Tensor) -> None:
        """Draw z ``(B, latent_dim)`` from q(z | x)."""
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(self.likelihood.encoder_input(x), *covariates)))

    def encode(self, x: Tensor, *covariates: Tensor) -> TorchDistribution:
        """Return q(z | x) for data ``(*batch, *x_shape)``, differentiable, in the mode in which the modules are."""
        return self.posterior(self.encoder(self.likelihood.encoder_input(x), *covariates))

    def decode(self, z: Tensor, *covariates: Tensor) -> TorchDistribution:
        """Return p(x | z) for latent variables ``(*batch, latent_dim)``, differentiable, in the mode of the modules."""
        return self.likelihood(self.decoder(z, *covariates))

    @torch.no_grad()
    def generate(self, num_samples: int, *covariates: Tensor, seed: int = 0, mean: bool = False) -> Tensor:
        """Draw x ~ p(x), in a random stream of its own.

        Args:
            num_samples: how many.
            covariates: ``(num_samples, ...)`` each, of a conditional model.
            seed: of the draw; the same seed gives the same samples.
            mean: return E[x | z] for a drawn z instead of a draw of x, as pictures in papers do.

        Returns:
            ``(num_samples, *x_shape)``

        Raises:
            ValueError: if the number is not positive or so large that the samples do not fit, or there are not as many
                covariates.

        """
        if num_samples < 1:
            raise ValueError(f"generate draws at least 1 sample, but received {num_samples}")
        for covariate in covariates:
            if covariate.ndim < 2 or len(covariate) != num_samples:
                raise ValueError(
                    f"{num_samples} samples take covariates of shape ({num_samples}, ...), one row each, but received "
                    f"{tuple(covariate.shape)}; repeat or choose rows"
                )
        rows = num_samples * float(torch.Size(self.likelihood.param_shape).numel() + self.prior.latent_dim)
        memory.require(
            4 * 4 * rows, what=f"drawing {num_samples} samples", cure="draw fewer at a time", device=self._device
        )
        with module_mode([self], training=False), forked_random(stream_seed(seed, "generate"), self._device):
            z = self.prior(*covariates).sample() if self.prior.conditional else self.prior().sample((num_samples,))
            p_x = self.decode(z, *covariates)
            return p_x.mean if mean else p_x.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *covariates: Tensor) -> Tensor:
        """Return E[x | z] at the posterior mean z of each datum: ``(B, *x_shape)`` to the same shape."""
        with module_mode([self], training=False):
            return self.decode(self.encode(x, *covariates).mean, *covariates).mean

    @torch.no_grad()
    def interpolate(self, start: Tensor, end: Tensor, *covariates: Tensor, num_steps: int = 8) -> Tensor:
        """Decode the straight line between the codes of two batches of data.

        Args:
            start: ``(B, *x_shape)``.
            end: ``(B, *x_shape)``.
            covariates: ``(B, ...)`` each, of a conditional model; the same along a line.
            num_steps: points on each line, both ends included.

        Returns:
            ``(B, num_steps, *x_shape)``, the mean of x at each point.

        """
        with module_mode([self], training=False):
            a, b = (self.encode(x, *covariates).mean.unsqueeze(1) for x in (start, end))  # (B, 1, D)
            t = torch.linspace(0, 1, num_steps, dtype=a.dtype, device=a.device).unsqueeze(-1)  # (num_steps, 1)
            along = (c.unsqueeze(1).expand(-1, num_steps, *c.shape[1:]) for c in covariates)  # (B, num_steps, ...)
            return self.decode(a + t * (b - a), *along).mean

    @torch.no_grad()
    def traverse(self, x: Tensor, *covariates: Tensor, dims: Sequence[int], values: Tensor) -> Tensor:
        """Decode the code of one datum with one latent dimension at a time moved through the given values.

        Args:
            x: ``x_shape``, one datum.
            covariates: those of the datum, without a batch axis, of a conditional model.
            dims: latent dimensions to move.
            values: ``(V,)``, the values they take.

        Returns:
            ``(len(dims), V, *x_shape)``, the mean of x at each point.

        """
        with module_mode([self], training=False):
            code = self.encode(x.unsqueeze(0), *(c.unsqueeze(0) for c in covariates)).mean  # (1, D)
            z = code.repeat(len(dims), len(values), 1)  # (len(dims), V, D)
            for row, dim in enumerate(dims):
                z[row, :, dim] = values.to(z)
            return self.decode(z, *(c.expand(*z.shape[:2], *c.shape) for c in covariates)).mean

    @property
    def _device(self) -> torch.device:
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))


def _check_fit(role: str, network: nn.Module, part: Likelihood | Posterior, name: str) -> None:
    out_shape = getattr(network, "out_shape", part.param_shape)
    if tuple(out_shape) != part.param_shape:
        raise ValueError(
            f"the {role} emits {tuple(out_shape)} per datum, but {type(part).__name__} needs {part.param_shape}; "
            f"build it with out_shape={name}.param_shape"
        )


def require_form(model: object, *sources: object) -> None:
    """Refuse data sets that the likelihood of a VAE, whose method the model is, does not score."""
    owner = getattr(model, "__self__", None)
    for source in sources:
        if isinstance(owner, VAE) and isinstance(source, Split):
            owner.likelihood.require_form(source)
