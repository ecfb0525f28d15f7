"""Conformance checks of an objective."""

from __future__ import annotations

import copy
import inspect
import json
import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from pyrovae.objectives import ELBO, ImportanceWeighted, Objective, Terms
from pyrovae.programs import inspected_programs
from pyrovae.runtime.context import forked_random, own_store
from pyrovae.testing.common_checks import MAX_ERRORS, Stages, require, slope_along, standard_errors
from pyrovae.testing.small_models import LinearGaussian

NUM_DATA = 200
NUM_REPEATS = 20  # draws of the loss of all data
NUM_STEPS = 10  # steps of SVI


class LinearGaussianPrograms(nn.Module):
    """A linear-Gaussian model and a guide with linear mean, whose ELBO and log p(x) have closed forms.

    ``z ~ N(0, I)``, ``x ~ N(W z + b, s^2)``, ``q(z | x) = N(A x + c, diag v^2)``

    Args:
        offset: distance of the guide's parameters from the exact posterior.

    """

    def __init__(self, *, offset: float) -> None:
        super().__init__()
        weight = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 0.8], [0.0, -0.6]])  # orthogonal columns
        self.truth = LinearGaussian(weight, torch.tensor([0.3, -0.2, 0.0, 0.5]), 0.7)
        posterior = self.truth.posterior(torch.cat([torch.zeros(1, 4), torch.eye(4)]))
        self.decoder, self.encoder = nn.Linear(2, 4), nn.Linear(4, 2)
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.truth.scale)))
        self.guide_log_scale = nn.Parameter(posterior.variance[0].sqrt().log() + 0.5 * offset)
        with torch.no_grad():
            self.decoder.weight.copy_(weight)
            self.decoder.bias.copy_(self.truth.bias)
            self.encoder.weight.copy_((posterior.mean[1:] - posterior.mean[0]).T + offset)
            self.encoder.bias.copy_(posterior.mean[0] - offset)

    def model(self, x: Tensor) -> None:
        """Draw z and observe x ``(N, 4)``."""
        pyro.module("linear_gaussian", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw z given x ``(N, 4)``."""
        pyro.module("linear_gaussian", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), self.guide_log_scale.exp()).to_event(1))

    @torch.no_grad()
    def elbo(self, x: Tensor) -> Tensor:
        """Return the ELBO of each data point ``(N,)``, nats."""
        mean, variance = self.encoder(x), (2 * self.guide_log_scale).exp()
        squares = (x - self.decoder(mean)) ** 2 + self.decoder.weight**2 @ variance
        reconstruction = dist.Normal(0.0, self.log_scale.exp()).log_prob(squares.sqrt()).sum(-1)
        kl = 0.5 * (mean**2 + variance - 1 - variance.log()).sum(-1)
        return reconstruction - kl


class ObjectiveChecks:
    """Checks of an objective on a linear-Gaussian model and guide."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.programs = LinearGaussianPrograms(offset=0.2)
        self.x = self.programs.truth.sample(NUM_DATA)

    def stages(self) -> Stages:
        """Return the checks by name."""
        return (
            {"the terms are finite numbers": self.finite_terms},
            {
                "reconstruction - KL is the ELBO": self.elbo,
                "the loss is minus the bound": self.loss,
                "gradients are unbiased": self.gradients,
                "it runs with 3 particles": self.particles,
                "it runs as in pyrovae.fit, with Pyro's scale": self.terms_of_fit,
                "it trains in pyro.infer.SVI": self.svi,
                "the description has class and options": self.described,
            },
        )

    def terms(self, programs: LinearGaussianPrograms | None = None, *, seed: int = 0) -> Any:
        """Return the terms of the objective with draws of a seed."""
        programs = programs or self.programs
        with own_store([programs]), forked_random(seed):
            return self.objective.terms(programs.model, programs.guide, self.x)

    def terms_of_fit(self) -> str:
        """Check that programs that hold their data, as in `pyrovae.fit`, have the same terms, with their scale."""
        model, guide = (partial(program, self.x) for program in (self.programs.model, self.programs.guide))
        with inspected_programs(self.programs.model, self.programs.guide, (self.x,)) as structure:
            with forked_random(0):
                held = self.objective.terms_of(structure, model, guide)
            with forked_random(0):
                doubled = [poutine.scale(program, 2.0) for program in (model, guide)]
                scaled = self.objective.terms_of(structure, *doubled).loss
        given = self.terms(seed=0)
        for name in ("loss", "reconstruction", "kl"):
            off = abs(getattr(held, name).item() - getattr(given, name).item())
            require(off < 1e-6, f"{name} differs by {off:.2g} nats where the programs hold their data")
        ratio = (scaled / held.loss).item()
        return require(
            abs(ratio - 2) < 1e-6, f"the loss of programs with pyro.poutine.scale 2 is {ratio:.3f} times as large"
        )

    def described(self) -> str:
        """Check that the description is JSON, with the class and the options of its constructor."""
        description, kind = self.objective.describe(), type(self.objective)
        named = description.get("class")
        require(named == kind.__name__, f"`describe` names the class {named!r}, not {kind.__name__!r}")
        options = set(inspect.signature(kind).parameters) - {"vectorize_particles", "max_plate_nesting"}
        missing = ", ".join(sorted(options - description.keys()))
        require(not missing, f"`describe` leaves out {missing}")
        return json.dumps(description, allow_nan=False)

    def draw_loss(self, seed: int) -> Tensor:
        """Return the loss with draws of a seed."""
        loss: Tensor = self.terms(seed=seed).loss
        return loss

    def finite_terms(self) -> str:
        """Check that the terms are finite 0-dim tensors and the loss has a gradient."""
        terms = self.terms()
        require(isinstance(terms, Terms), f"`terms` must return a Terms, got {type(terms).__name__}")
        values = {"loss": terms.loss, "reconstruction": terms.reconstruction, "kl": terms.kl}
        for name, value in values.items():
            require(isinstance(value, Tensor) and value.ndim == 0, f"{name} is not a 0-dim tensor")
            require(value.isfinite(), f"{name} is {value.item()}")
        require(terms.loss.requires_grad, "the loss has no gradient")
        return ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())

    @torch.no_grad()
    def elbo(self) -> str:
        """Check the mean of reconstruction - KL against the closed form."""
        runs = [self.terms(seed=seed) for seed in range(NUM_REPEATS)]
        estimates = torch.stack([(terms.reconstruction - terms.kl) / NUM_DATA for terms in runs])
        expected = self.programs.elbo(self.x).mean()
        errors = standard_errors((estimates - expected).unsqueeze(-1))
        detail = f"{estimates.mean():.4f}, in closed form {expected:.4f}: off by {errors:.1f} standard errors"
        return require(errors < MAX_ERRORS, detail)

    @torch.no_grad()
    def loss(self) -> str:
        """Check the loss where its value is known."""
        if isinstance(self.objective, ImportanceWeighted):  # all weights are p(x) if the guide is the exact posterior
            exact = LinearGaussianPrograms(offset=0.0)
            loss, expected = self.terms(exact).loss.item(), -exact.truth.log_prob(self.x).sum().item()
            detail = f"{loss:.6f} at the exact posterior, -log p(x) is {expected:.6f}"
        elif isinstance(self.objective, ELBO) and not self.objective.free_bits:
            terms = self.terms()
            loss, expected = terms.loss.item(), (self.objective.kl_weight() * terms.kl - terms.reconstruction).item()
            detail = f"{loss:.6f}, by its terms {expected:.6f}"
        else:
            return "no closed form is known"
        return require(abs(loss - expected) < 1e-8 * abs(expected), detail)

    def gradients(self) -> str:
        """Check that gradients and central differences of the loss have the same mean, for the same draws.

        An estimator may add terms of mean zero to the derivative of the loss, so single gradients may differ.
        """
        parameters = dict(self.programs.named_parameters())
        directions = {name: torch.randn_like(parameter) for name, parameter in parameters.items()}
        differences = {name: [] for name in parameters}  # type: dict[str, list[Tensor]]
        for seed in range(NUM_REPEATS):
            loss = self.terms(seed=seed).loss
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                require(gradient.isfinite().all(), f"the gradient is not finite for {name}")
                require(gradient.any(), f"no gradient for {name}")
                direction = directions[name]
                slope = slope_along(parameter, direction, partial(self.draw_loss, seed))
                differences[name].append((gradient * direction).sum() - slope)
        errors = {}
        for name, values in differences.items():
            off = torch.stack(values)
            exact = off.abs().max() < 1e-5 * NUM_DATA
            errors[name] = 0.0 if exact else standard_errors(off.unsqueeze(-1))
        worst = max(errors, key=lambda name: errors[name])
        detail = f"against finite differences: off by {errors[worst]:.1f} standard errors for {worst}"
        return require(errors[worst] < MAX_ERRORS, detail)

    def particles(self) -> str:
        """Check that the loss of several particles is finite."""
        if "num_particles" not in inspect.signature(type(self.objective)).parameters:
            return "it has no num_particles"
        several = copy.deepcopy(self.objective)
        several.num_particles = 3
        if isinstance(several, ImportanceWeighted):
            several.num_weighted = 3
        with own_store([self.programs]):
            loss = several.terms(self.programs.model, self.programs.guide, self.x).loss
        return require(loss.ndim == 0 and loss.isfinite(), f"loss {loss.item():.4f}")

    def svi(self) -> str:
        """Check that steps of `pyro.infer.SVI` change every parameter."""
        programs, objective = copy.deepcopy(self.programs), copy.deepcopy(self.objective)
        first_step = objective.step
        with own_store([programs]):
            svi = SVI(programs.model, programs.guide, pyro.optim.Adam({"lr": 1e-2}), loss=objective)
            losses = [svi.step(self.x) for _ in range(NUM_STEPS)]
        require(all(isinstance(loss, float) and math.isfinite(loss) for loss in losses), f"step returns {losses[-1]!r}")
        pairs = zip(self.programs.parameters(), programs.parameters(), strict=True)
        unchanged = sum(torch.equal(before, after) for before, after in pairs)
        require(not unchanged, f"{unchanged} parameters do not change")
        require(objective.step == first_step + NUM_STEPS, f"`step` is {objective.step} after {NUM_STEPS} steps")
        return f"loss {losses[0]:.2f}, after {NUM_STEPS} steps {losses[-1]:.2f}"
