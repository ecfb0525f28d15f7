"""The posterior's own mixture over pseudo-inputs as a prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.distributions import NormalMixture
from pyrovae.priors.base import Prior


class Vamp(Prior):
    """``p(z) = (1 / C) sum_c q(z | u_c)``, with learned pseudo-inputs u.

    Encoder and posterior are the very modules of the VAE, and trained from both sides. The pseudo-inputs are what the
    encoder sees, `Likelihood.encoder_input` of data; nothing holds them within its range. Every call runs the encoder
    on all of them. Under a posterior that is a flow, such as `IAF`, each log p(z) inverts it C times, one
    latent dimension after the other: a training step then takes tens of times as long. An encoder with batch
    normalization sees the pseudo-inputs as a batch of their own in training, and by its running statistics, which
    data and pseudo-inputs share, in evaluation: the prior differs between the two; choose an encoder without.

    *VAE with a VampPrior (Tomczak, Welling 2018)*, https://arxiv.org/abs/1705.07120

    Args:
        encoder: of the VAE, with an ``x_shape``.
        posterior: of the VAE.
        num_components: C, the number of pseudo-inputs.
        data: ``(N, *x_shape)``, what the encoder sees of some data, of which the first C are where the pseudo-inputs
            start. Without data they start at 0.5 with a little noise, which is meant for weights that are loaded.

    Raises:
        ValueError: if there are fewer data than pseudo-inputs, or of another shape, or the encoder takes covariates.
        TypeError: if the data are no tensor of floating-point numbers.

    Example:
        >>> encoder, posterior = networks.MLPEncoder((1, 8, 8), (2, 2)), posteriors.DiagonalNormal(2)
        >>> prior = priors.Vamp(encoder, posterior, num_components=20, data=torch.rand(20, 1, 8, 8))

    """

    logits: Tensor

    def __init__(
        self, encoder: nn.Module, posterior: nn.Module, *, num_components: int = 100, data: Tensor | None = None
    ) -> None:
        if num_components < 1:
            raise ValueError(
                f"a mixture has at least 1 component, but received num_components={num_components}; 100 is the default"
            )
        x_shape = getattr(encoder, "x_shape", None)
        if x_shape is None:
            raise ValueError(
                f"a Vamp prior makes data for the encoder, but {type(encoder).__name__} does not tell their shape; "
                "give it an attribute x_shape"
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


def _start(data: Tensor | None, num_components: int, x_shape: tuple[int, ...]) -> Tensor:
    """Return the pseudo-inputs ``(C, *x_shape)`` at the start."""
    if data is None:
        return 0.5 + 0.01 * torch.randn(num_components, *x_shape)
    if not (isinstance(data, Tensor) and data.is_floating_point()):
        received = data.dtype if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(
            f"pseudo-inputs are what the encoder sees, a tensor of floating-point numbers, but received {received}; "
            "give data=likelihood.encoder_input(x) of x as it is trained on, such as data.train.first(100).fixed()"
        )
    if tuple(data.shape[1:]) != x_shape:
        raise ValueError(
            f"pseudo-inputs have the shape of the encoder's data, (C, {', '.join(map(str, x_shape))}), but received "
            f"data of shape {tuple(data.shape)}; give data=likelihood.encoder_input(x)"
        )
    if len(data) < num_components:
        raise ValueError(
            f"each of {num_components} pseudo-inputs starts at a datum of its own, but received {len(data)} data; give "
            "more, or choose num_components"
        )
    return data[:num_components].detach().clone()
