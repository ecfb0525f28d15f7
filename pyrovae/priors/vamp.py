"""Mixture of the posteriors at learned pseudo-inputs as a prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import NormalMixture
from pyrovae.priors.base import Prior
from pyrovae.runtime.annotations import PositiveInt


class Vamp(Prior):
    """``p(z) = (1 / C) sum_c q(z | u_c)``, with learned pseudo-inputs u.

    Encoder and posterior are shared with the VAE and trained through both. Pseudo-inputs are inputs of the encoder,
    like `Likelihood.encoder_input` of data, and unconstrained. Every call runs the encoder on all of them. With a flow
    as posterior, such as `IAF`, each log p(z) inverts it C times, one latent dimension after the other: a training step
    takes tens of times as long. With batch normalization in the encoder, training normalizes the pseudo-inputs as a
    batch of their own and evaluation uses running statistics of data and pseudo-inputs, so the prior differs between
    the two; use an encoder without.

    *VAE with a VampPrior (Tomczak, Welling 2018)*, https://arxiv.org/abs/1705.07120

    Args:
        encoder: encoder of the VAE, with an attribute ``x_shape``.
        posterior: posterior of the VAE.
        num_components: C, the number of pseudo-inputs.
        data: encoder inputs ``(N, *x_shape)``; the first C are the initial pseudo-inputs. Without data they start at
            0.5 with a little noise, for weights that are loaded later.

    Raises:
        ValueError: if num_components < 1, data has fewer than C rows or another shape, or the encoder takes covariates.
        TypeError: if data is not a floating-point tensor.

    Example:
        >>> encoder, posterior = networks.MLPEncoder((1, 8, 8), (2, 2)), posteriors.DiagonalNormal(2)
        >>> prior = priors.Vamp(encoder, posterior, num_components=20, data=torch.rand(20, 1, 8, 8))

    """

    logits: Tensor

    def __init__(
        self, encoder: nn.Module, posterior: nn.Module, *, num_components: PositiveInt = 100, data: Tensor | None = None
    ) -> None:
        x_shape = getattr(encoder, "x_shape", None)
        if x_shape is None:
            raise ValueError(
                "the encoder of a Vamp prior must have the shape of its input, but "
                f"{type(encoder).__name__} has no x_shape; give it this attribute"
            )
        if getattr(encoder, "covariate_dim", 0):
            raise ValueError(
                "a Vamp prior runs the encoder on pseudo-inputs alone, but this one also takes covariates "
                f"(covariate_dim={encoder.covariate_dim}); choose a prior without encoder, such as MixtureOfGaussians"
            )
        super().__init__(posterior.latent_dim)  # type: ignore[arg-type]
        self.encoder = encoder
        self.posterior = posterior
        self.pseudo_inputs = nn.Parameter(_start(data, num_components, tuple(x_shape)))
        self.register_buffer("logits", torch.zeros(num_components), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return the mixture, of event shape ``(latent_dim,)``."""
        q_z = self.posterior(self.encoder(self.pseudo_inputs))
        if isinstance(q_z, dist.Independent) and isinstance(q_z.base_dist, dist.Normal):
            return NormalMixture(self.logits, q_z.base_dist.loc, q_z.base_dist.scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), q_z)


def _start(data: Tensor | None, num_components: PositiveInt, x_shape: tuple[int, ...]) -> Tensor:
    """Return the initial pseudo-inputs ``(C, *x_shape)``."""
    if data is None:
        return 0.5 + 0.01 * torch.randn(num_components, *x_shape)
    if not data.is_floating_point():
        raise TypeError(
            f"initial pseudo-inputs must be floating-point numbers, but received {data.dtype}; "
            "give data=likelihood.encoder_input(x) for training data x, such as data.train.first(100).fixed()"
        )
    if tuple(data.shape[1:]) != x_shape:
        raise ValueError(
            f"pseudo-inputs have the shape of the encoder's data, (C, {', '.join(map(str, x_shape))}), but received "
            f"data of shape {tuple(data.shape)}; give data=likelihood.encoder_input(x)"
        )
    if len(data) < num_components:
        raise ValueError(
            f"each of {num_components} pseudo-inputs starts at its own data point, but received {len(data)}; "
            "choose fewer num_components, or give more data"
        )
    return data[:num_components].detach().clone()
