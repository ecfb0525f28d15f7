"""The variational autoencoder: a Pyro model and guide, and samples and reconstructions of a trained model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.data import Data, Split
from pyrovae.data.loader import Loader, Source
from pyrovae.likelihoods import Bernoulli, ContinuousBernoulli, Likelihood
from pyrovae.networks.from_torch import TorchDecoder, TorchEncoder
from pyrovae.posteriors import DiagonalNormal, Posterior
from pyrovae.priors import Prior, StandardNormal, Vamp
from pyrovae.runtime import memory
from pyrovae.runtime.annotations import PositiveInt, Shape, checked
from pyrovae.runtime.context import forked_random, module_mode, register_module, stream_seed
from pyrovae.runtime.serialization import Described


class VAE(Described, nn.Module):
    """A latent variable model p(z) p(x | z) with an amortized posterior q(z | x).

    `model` and `guide` contain all Pyro statements: copy them to write your own model and guide, with `pyro.module` in
    place of `register_module`, which skips it in steps of `pyrovae.fit`. Called with covariates beside x, such as
    one-hot labels, they are a conditional model p(x | c): both networks receive the covariates, and also the prior if
    it is `conditional`.

    *Auto-encoding variational Bayes (Kingma, Welling 2014)*, https://arxiv.org/abs/1312.6114

    Args:
        prior: p(z).
        decoder: network from z to ``likelihood.param_shape``.
        likelihood: p(x | z) given the decoder's output.
        encoder: network from ``likelihood.encoder_input(x)`` to ``posterior.param_shape``.
        posterior: q(z | x) given the encoder's output.

    Raises:
        ValueError: if the shapes of two parts differ.
        TypeError: if a part is of another class, or a class itself.

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
        for role, network in (("posterior", posterior), ("decoder", decoder)):
            latent_dim = getattr(network, "latent_dim", prior.latent_dim)
            if latent_dim != prior.latent_dim:
                raise ValueError(
                    f"prior and {role} share the latent variable, but the prior has {prior.latent_dim} dimensions and "
                    f"the {role} {latent_dim}; give both the same latent_dim"
                )
        if isinstance(prior, Vamp) and prior.encoder is not encoder:
            raise ValueError(
                "the prior Vamp is a mixture of the VAE's own posteriors, but received another encoder; give the same "
                "object to the prior and to the VAE"
            )
        _check_out_shape("decoder", decoder, likelihood, "likelihood")
        _check_out_shape("encoder", encoder, posterior, "posterior")
        self.prior = prior
        self.decoder = decoder
        self.likelihood = likelihood
        self.encoder = encoder
        self.posterior = posterior

    @classmethod
    @checked
    def from_torch(
        cls,
        encode: Callable[[Tensor], Any],
        decode: Callable[[Tensor], Any],
        *,
        latent_dim: PositiveInt | None = None,
        latent_shape: Shape | None = None,
        x_shape: Shape,
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        flat: bool = False,
        probabilities: bool | None = None,
        modules: Iterable[nn.Module] | None = None,
    ) -> VAE:
        """Construct a VAE from networks in plain torch, trained or not.

        The networks are used, not copied, and their outputs are not changed, except that the log-variance of latent
        maps is clamped; the encoder sees x itself. In float32 a log-variance below -14 makes log q(z | x) inexact;
        convert model and data to float64 in this case.

        Latent maps, such as ``(4, 8, 8)`` of the autoencoders of latent diffusion, are flat outside the networks: z is
        ``(B, D)`` with D their number of elements, in row-major order. `AutoencoderKL` of the package diffusers is used
        as it is: ``VAE.from_torch(net.encode, net.decode, latent_shape=(4, 8, 8), ...)``.

        Args:
            encode: a module, a method of one, or a function, from x ``(B, *x_shape)`` to mean and log-variance of
                q(z | x), each ``(B, *latent_shape)``, or to one tensor of both along the second axis, ``(B, 2 C,
                ...)`` for a latent shape of ``(C, ...)``.
            decode: likewise, from z ``(B, *latent_shape)`` to a parameter of the likelihood, for Bernoulli logits:
                ``(B, *x_shape)`` or flat ``(B, prod(x_shape))``; for several parameters one tensor each.
            latent_dim: D, the number of latent dimensions, for a latent shape of ``(D,)``.
            latent_shape: shape of the latent maps of one datum, in place of latent_dim; the log-variance is clamped to
                [-30, 20].
            x_shape: shape of one datum.
            likelihood: p(x | z); Bernoulli if None. The parameter of ``likelihoods.Gaussian(x_shape, scale=0.1)`` is
                the mean.
            prior: p(z); N(0, I) if None.
            flat: whether encode takes x as rows ``(B, prod(x_shape))``.
            probabilities: whether decode returns probabilities in place of logits. None means logits, and an error if
                all outputs lie in [0, 1]. Logits are better: float32 probabilities near 1 have lost digits, and 0 and 1
                are invalid.
            modules: modules that the functions use, needed if one is neither a module nor a method of one.

        Raises:
            TypeError: if a function is not callable, or its modules are unknown.
            ValueError: if not exactly one of latent_dim and latent_shape is given, or shapes do not agree; in a call,
                if a function takes or returns other shapes, or invalid probabilities.

        Example:
            >>> vae = VAE.from_torch(net.encode, net.decode, latent_dim=8, x_shape=(1, 28, 28))
            >>> print(pyrovae.evaluate(vae.model, vae.guide, data.test))

        """
        likelihood = Bernoulli(x_shape) if likelihood is None else likelihood
        if latent_shape and latent_dim is None:
            shape, (low, high) = latent_shape, (-30.0, 20.0)
        elif latent_dim is not None and latent_shape is None:
            shape, (low, high) = (latent_dim,), (-math.inf, math.inf)
        else:
            raise ValueError(
                f"give one of latent_dim and latent_shape, got latent_dim={latent_dim} and latent_shape={latent_shape}"
            )
        posterior = DiagonalNormal(math.prod(shape), min_log_variance=low, max_log_variance=high)
        prior = StandardNormal(posterior.latent_dim) if prior is None else prior
        if likelihood.x_shape != x_shape:
            raise ValueError(
                f"the likelihood scores data of x_shape, but received one of {likelihood.x_shape} and x_shape="
                f"{x_shape}; build it with the same x_shape"
            )
        has_logits = isinstance(likelihood, (Bernoulli, ContinuousBernoulli))
        if probabilities and not has_logits:
            raise ValueError(
                f"{type(likelihood).__name__} is not given by probabilities; leave out probabilities=True, or choose "
                "likelihoods.Bernoulli"
            )
        if likelihood.form in ("counts", "levels"):  # other encoders see these rescaled
            likelihood = copy.copy(likelihood)  # shares the parameters
            likelihood.encoder_input = _identity  # type: ignore[method-assign]
        modules = None if modules is None else list(modules)
        return cls(
            prior=prior,
            decoder=TorchDecoder(
                decode,
                shape,
                likelihood.param_shape,
                probabilities=probabilities if has_logits else False,
                modules=modules,
            ),
            likelihood=likelihood,
            encoder=TorchEncoder(encode, x_shape, shape, flat=flat, modules=modules),
            posterior=posterior,
        )

    def model(self, x: Tensor, *covariates: Tensor) -> None:
        """Score data ``(B, *x_shape)``, given covariates ``(B, ...)`` if any, under p(z) p(x | z)."""
        register_module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(*covariates) if self.prior.conditional else self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z, *covariates)), obs=x)

    def guide(self, x: Tensor, *covariates: Tensor) -> None:
        """Draw z ``(B, latent_dim)`` from q(z | x)."""
        register_module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(self.likelihood.encoder_input(x), *covariates)))

    @checked
    def encode(self, x: Tensor, *covariates: Tensor) -> TorchDistribution:
        """Return q(z | x) for data ``(*batch, *x_shape)``, differentiable, in the current mode of the modules."""
        return self.posterior(self.encoder(self.likelihood.encoder_input(x), *covariates))

    @checked
    def decode(self, z: Tensor, *covariates: Tensor) -> TorchDistribution:
        """Return p(x | z) for latent variables ``(*batch, latent_dim)``, differentiable, in the current mode."""
        return self.likelihood(self.decoder(z, *covariates))

    @torch.no_grad()
    @checked
    def generate(self, num_samples: PositiveInt, *covariates: Tensor, seed: int = 0, mean: bool = False) -> Tensor:
        """Draw x ~ p(x), in a separate random stream.

        Args:
            num_samples: N, the number of samples.
            covariates: of a conditional model, ``(N, ...)`` each.
            seed: of the draw; the same seed gives the same samples.
            mean: return E[x | z] for a draw of z instead of a draw of x, as in the figures of most papers.

        Returns:
            x, ``(N, *x_shape)``.

        Raises:
            ValueError: if the number is not positive or larger than the memory allows, or the covariates have another
                number of rows.

        """
        for covariate in covariates:
            if covariate.ndim < 2 or len(covariate) != num_samples:
                raise ValueError(
                    f"{num_samples} samples take covariates of shape ({num_samples}, ...), one row each, but received "
                    f"{tuple(covariate.shape)}; repeat or choose rows"
                )
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        size = 16.0 * num_samples * (math.prod(self.likelihood.param_shape) + self.prior.latent_dim)
        memory.require(size, what=f"drawing {num_samples} samples", hint="draw fewer at a time", device=device)
        with module_mode([self], training=False), forked_random(stream_seed(seed, "generate"), device):
            z = self.prior(*covariates).sample() if self.prior.conditional else self.prior().sample((num_samples,))
            p_x = self.decode(z, *covariates)
            return p_x.mean if mean else p_x.sample()

    @torch.no_grad()
    @checked
    def reconstruct(self, x: Tensor, *covariates: Tensor) -> Tensor:
        """Return E[x | z] at the posterior mean z of each datum ``(B, *x_shape)``, in the same shape."""
        with module_mode([self], training=False):
            return self.decode(self.encode(x, *covariates).mean, *covariates).mean

    @torch.no_grad()
    @checked
    def interpolate(self, start: Tensor, end: Tensor, *covariates: Tensor, num_steps: PositiveInt = 8) -> Tensor:
        """Decode the straight line between the codes of two batches of data.

        Args:
            start: ``(B, *x_shape)``.
            end: ``(B, *x_shape)``.
            covariates: of a conditional model, ``(B, ...)`` each, constant along a line.
            num_steps: number of points on each line, including both ends.

        Returns:
            ``(B, num_steps, *x_shape)``, the mean of x at each point.

        """
        with module_mode([self], training=False):
            a, b = (self.encode(x, *covariates).mean.unsqueeze(1) for x in (start, end))  # (B, 1, D)
            t = torch.linspace(0, 1, num_steps, dtype=a.dtype, device=a.device).unsqueeze(-1)  # (num_steps, 1)
            along = (c.unsqueeze(1).expand(-1, num_steps, *c.shape[1:]) for c in covariates)  # (B, num_steps, ...)
            return self.decode(a + t * (b - a), *along).mean

    @torch.no_grad()
    @checked
    def traverse(self, x: Tensor, *covariates: Tensor, dims: Sequence[int], values: Tensor) -> Tensor:
        """Decode the code of one datum with one latent dimension at a time set to the given values.

        Args:
            x: one datum, ``x_shape``.
            covariates: of a conditional model, for this datum, without a batch axis.
            dims: latent dimensions to change.
            values: values of the dimension, ``(V,)``.

        Returns:
            ``(len(dims), V, *x_shape)``, the mean of x at each point.

        """
        with module_mode([self], training=False):
            code = self.encode(x.unsqueeze(0), *(c.unsqueeze(0) for c in covariates)).mean  # (1, D)
            z = code.repeat(len(dims), len(values), 1)  # (len(dims), V, D)
            for row, dim in enumerate(dims):
                z[row, :, dim] = values.to(z)
            return self.decode(z, *(c.expand(*z.shape[:2], *c.shape) for c in covariates)).mean

    @checked
    def report(
        self,
        folder: str | Path,
        data: Data | Source,
        *,
        num_data: int | None = None,
        name: str = "report",
        overwrite: bool = False,
        **options: Any,
    ) -> Path:
        """Evaluate the model and write a report, with `pyrovae.evaluate` and `report.write_report`.

        Args:
            folder: run folder; it may be new.
            data: as in `pyrovae.evaluate`.
            num_data: number of data to evaluate, the first ones; None for all.
            name: name of the report in the folder.
            overwrite: whether to replace another evaluation of that name.
            options: further arguments of `pyrovae.evaluate`, such as ``checks=Checks()``.

        Returns:
            The folder of the page ``index.html``.

        """
        from pyrovae.evaluation import evaluate  # here, since these packages import this module
        from pyrovae.report import write_report

        loader = Loader(data.test if isinstance(data, Data) else data)
        source = (loader if num_data is None else loader.first(num_data)).source
        evaluation = evaluate(self.model, self.guide, source, **options)
        return write_report(
            folder, evaluation, model=self.model, guide=self.guide, data=source, name=name, overwrite=overwrite
        )


def _identity(x: Tensor) -> Tensor:
    return x


def _check_out_shape(role: str, network: nn.Module, part: Likelihood | Posterior, name: str) -> None:
    """Raise a ValueError if the output of a network has another shape than the parameters of its part."""
    out_shape = getattr(network, "out_shape", part.param_shape)
    if tuple(out_shape) != part.param_shape:
        raise ValueError(
            f"the {role} emits {tuple(out_shape)} per datum, but {type(part).__name__} needs {part.param_shape}; "
            f"build it with out_shape={name}.param_shape"
        )


def require_form(model: object, *sources: object) -> None:
    """Raise a ValueError if the model is a method of a VAE whose likelihood does not score the data."""
    owner = getattr(model, "__self__", None)
    if not isinstance(owner, VAE):
        return
    for source in sources:
        if isinstance(source, Split):
            owner.likelihood.require_form(source)
        x = source[0] if isinstance(source, tuple) and source else source
        if isinstance(x, Tensor) and x.ndim and tuple(x.shape[1:]) != owner.likelihood.x_shape:
            shape = ", ".join(("N", *map(str, owner.likelihood.x_shape)))
            hint = "give the data themselves, in the shape of the likelihood's x_shape"
            if tuple(x.shape) == owner.likelihood.x_shape:
                hint = "a batch axis is missing: give x[None]"
            elif x.ndim == 1 and not (x != x.round()).any():
                hint = f"these look like labels: {hint}"
            raise ValueError(f"the data of this VAE are ({shape}), but received {tuple(x.shape)}; {hint}")
