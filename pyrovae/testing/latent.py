"""Conformance checks of priors and posteriors."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrovae.posteriors import DiagonalNormal, Posterior
from pyrovae.priors import Prior, StandardNormal
from pyrovae.runtime.context import forked_random
from pyrovae.testing.common_checks import TIGHT, Checks, DistributionChecks, check_gradients, require
from pyrovae.testing.quadrature import Rule, product_rule, real_line
from pyrovae.testing.small_models import small_vae
from pyrovae.vae import VAE

MOMENT_TOLERANCE = 0.25  # allowed error of mean and stddev in standard deviations; a flow estimates them from few draws


class LatentChecks(DistributionChecks):
    """Checks of a distribution of two latent dimensions."""

    def rule(self) -> Rule:
        """Return a rule for the plane: points ``(N, 2)``, 0.03 apart near 0, up to 2e18."""
        return product_rule(real_line(401), (2,))

    def check_kl(self, q_z: TorchDistribution, p_z: TorchDistribution) -> str:
        """Check KL(q || p) if a closed form is registered."""
        try:
            kl = torch.distributions.kl_divergence(q_z, p_z)
        except NotImplementedError:
            return "no closed form: estimated by Monte Carlo"
        require(tuple(kl.shape) == (), f"it has shape {tuple(kl.shape)}, not ()")
        z, area = self.rule()
        log_q, log_p = (fn.log_prob(z) for fn in (q_z, p_z))
        log_q, log_p = (log - (log.exp() * area).sum().log() for log in (log_q, log_p))  # the total is another check
        inside = log_q > -300
        expected = ((log_q - log_p) * log_q.exp() * area)[inside].sum().item()
        off = abs(kl.item() - expected)
        return require(off < 1e-3 * (1 + expected), f"{kl.item():.6f}, by quadrature {expected:.6f}")


class PriorChecks(LatentChecks):
    """Checks of a prior, whose distribution has no parameters of a data point."""

    part: Prior

    def params(self, *batch: int, far: bool = False) -> Tensor:
        """Return an empty tensor with the batch axes."""
        return torch.empty(*batch, 0)

    def distribution(self, params: Tensor, part: nn.Module | None = None) -> TorchDistribution:
        """Return the prior, expanded to the batch axes of the parameters."""
        p_z, batch = (part or self.part)(), params.shape[:-1]
        return p_z.expand(batch) if batch else p_z

    def own_checks(self) -> Checks:
        """Return the check of KL(q || p)."""
        q_z = DiagonalNormal(2)(0.5 * torch.randn(2, 2))
        return {"the closed-form KL is right": lambda: self.check_kl(q_z, self.part())}

    def small_vae(self) -> VAE:
        """Return a small model with the prior; a prior with an encoder and a posterior shares them with the model."""
        encoder, posterior = getattr(self.part, "encoder", None), getattr(self.part, "posterior", None)
        if isinstance(encoder, nn.Module) and isinstance(posterior, Posterior):
            return small_vae(prior=self.part, encoder=encoder, posterior=posterior)
        return small_vae(prior=self.part)


class PosteriorChecks(LatentChecks):
    """Checks of a posterior."""

    part: Posterior
    moments = ("mean", "stddev")
    max_shortfall = TIGHT  # the guide is the posterior itself

    def params(self, *batch: int, far: bool = False) -> Tensor:
        """Return random parameters, with ``far`` around one."""
        return float(far) + 0.5 * torch.randn(*batch, *self.part.param_shape)

    def own_checks(self) -> Checks:
        """Return the checks of moments, log_prob of draws, and KL(q || p)."""
        return {
            "mean and stddev agree with the density": self.mean_and_stddev,
            "log_prob of a draw equals log_prob of its value": self.log_prob_of_draws,
            "the closed-form KL is right": lambda: self.check_kl(self.part(self.rows[0]), StandardNormal(2)()),
        }

    def small_vae(self) -> VAE:
        """Return a small model with the posterior."""
        return small_vae(posterior=self.part)

    @torch.no_grad()
    def mean_and_stddev(self) -> str:
        """Check mean and standard deviation against quadrature."""
        q_z = self.part(torch.stack(self.rows))
        z, _ = self.rule()
        mean = self.averages(z)
        stddev = (self.averages(z**2) - mean**2).sqrt()
        off = {"mean": (q_z.mean - mean) / stddev, "stddev": q_z.stddev / stddev - 1}
        largest = {name: value.abs().max().item() for name, value in off.items()}
        detail = ", ".join(f"{name} off by {value:.2f} standard deviations" for name, value in largest.items())
        return require(all(value < MOMENT_TOLERANCE for value in largest.values()), detail)

    def log_prob_of_draws(self) -> str:
        """Check that a cached log_prob of a draw equals log_prob of a copy."""
        q_z = self.part(self.params(50))
        z = q_z.rsample() if q_z.has_rsample else q_z.sample()
        off = (q_z.log_prob(z) - q_z.log_prob(z.detach().clone())).abs().max().item()
        return require(off < 1e-8, f"differs by {off:.2g} nats from log_prob of a copy of the draw")

    def gradients(self) -> str:
        """Check the gradients of draws and of log_prob."""
        params = self.params(50).requires_grad_()
        q_z = self.part(params)
        require(
            q_z.has_rsample, f"draws of {type(q_z).__name__} have no gradient; choose a distribution with has_rsample"
        )
        require(q_z.rsample().requires_grad, "rsample returns draws without gradient")
        weights = torch.rand(50)

        def pathwise() -> Tensor:
            with forked_random(0):
                return weights * (self.part(params).rsample() ** 3).sum(-1)

        detail = check_gradients(self.part, pathwise, params)
        super().gradients()
        return detail
