"""Objectives that are functions of importance weights: the IWAE bound with three estimators of its gradient."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.bounds import log_mean_exp
from pyrovae.objectives.base import (
    Objective,
    Terms,
    guide_factors,
    require_gradient,
    site_log_prob,
    sum_terms,
)
from pyrovae.programs import PARTICLE_PLATE, ModelGuide, Program, inspected_programs
from pyrovae.programs.layout import per_datum
from pyrovae.runtime.annotations import PositiveInt, checked


class ImportanceWeighted(Objective):
    """Base of the losses that are functions of each datum's importance weights, summed over the data plate.

    ``loss = -sum_b bound(log w_1b, ..., log w_Kb)``, ``w_kb = p(x_b, z_kb) / q(z_kb | x_b)``, ``z_kb ~ q(z | x_b)``

    To write your own, define `bound`, which equals log p(x) where all weights do and need not be below it elsewhere;
    the gradient is the reparametrized one. Training prints it as the objective, never as a bound:

        >>> from pyrovae import bounds
        >>> class Renyi(ImportanceWeighted):
        ...     '''Minus the variational Renyi bound of order alpha, for alpha other than 1.'''
        ...
        ...     def __init__(self, *, alpha: float = 0.5, num_particles: int = 5) -> None:
        ...         super().__init__(num_particles=num_particles)
        ...         self.alpha = alpha
        ...
        ...     def describe(self):
        ...         return super().describe() | {"alpha": self.alpha}
        ...
        ...     def bound(self, log_weights):
        ...         return bounds.log_mean_exp((1 - self.alpha) * log_weights) / (1 - self.alpha)

    Weights are per datum: no plate size or subsampling factor enters the bound. Model and guide must keep the contract
    of `pyrovae.programs`; several latent sites are allowed. Particles run as one more batch axis if model and guide
    broadcast (the encoder then sees each datum once), otherwise one after the other.

    Args:
        num_particles: K, draws of the guide per datum.

    Raises:
        ValueError: if K is not positive; and in a run if model and guide break the contract or give their sites
            different `pyro.poutine.scale` factors, which are undefined inside a logarithm.

    """

    stops_score: ClassVar[bool] = False
    """Whether the gradient omits the derivative of log q(z | x) by the guide's parameters at fixed z."""
    reweights_path: ClassVar[bool] = False
    """Whether gradients through a draw are multiplied by its normalized weight; valid for the IWAE bound."""

    @checked
    def __init__(self, *, num_particles: PositiveInt = 5) -> None:
        super().__init__(num_particles=num_particles)
        self.num_weighted = num_particles
        self._inspected: tuple[tuple[Program, Program], ModelGuide] | None = None

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """Return the maximized value of each datum ``(B,)`` for log-weights ``(K, B)``, in nats."""

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Run model and guide on ``args`` and return the loss with its terms."""
        if kwargs:
            raise TypeError(
                f"an importance-weighted bound takes data by position, but received {', '.join(kwargs)} by name"
            )
        programs = self._inspect(model, guide, args)
        return self.terms_of(programs, partial(model, *args), partial(guide, *args))

    def terms_of(self, programs: ModelGuide, model: Program, guide: Program) -> Terms:
        """Return the terms of programs without arguments, whose structure is known."""
        runs = list(self._runs(programs, model, guide))
        log_prior = torch.cat([run.log_prob(run.model_trace, programs.latents) for run in runs])  # (K, B)
        log_likelihood = torch.cat([run.log_prob(run.model_trace, programs.observed) for run in runs])
        log_guide = torch.cat([run.log_guide(stops_score=self.stops_score) for run in runs])
        log_weights = log_prior + log_likelihood - log_guide
        if self.reweights_path:
            normalized = log_weights.detach().softmax(0)
            for run, weights in zip(runs, normalized.split([run.num_particles for run in runs]), strict=True):
                run.weights.append(weights)
        loss = -(runs[0].common_scale() * self.bound(log_weights)).sum()
        factors = [factor / self.num_particles for run in runs for factor in guide_factors(run.guide_trace)]
        loss = sum_terms([loss, *factors])
        reconstruction = log_likelihood.detach().mean(0).sum()
        return Terms(loss, reconstruction, (log_guide - log_prior).detach().mean(0).sum())

    def _inspect(self, model: Program, guide: Program, args: tuple[Any, ...]) -> ModelGuide:
        """Return the structure of model and guide, found by their first run."""
        if not args or not isinstance(args[0], Tensor) or not args[0].ndim:
            received = type(args[0]).__name__ if args else "no argument"
            raise TypeError(
                "the first argument of model and guide must be the data, a tensor (N, ...), since an "
                f"importance-weighted bound is computed per datum, but received {received}"
            )
        key = (model, guide)
        if self._inspected is None or self._inspected[0] != key:
            with inspected_programs(model, guide, args) as programs:
                self._inspected = (key, programs)
        return self._inspected[1]

    def _runs(self, programs: ModelGuide, model: Program, guide: Program) -> Iterator[_Run]:
        """Run model and guide on all particles at once, or on one after the other."""
        if programs.broadcasts:
            particles = pyro.plate(PARTICLE_PLATE, self.num_particles, dim=-1 - programs.nesting)
            yield _Run(programs, particles(model), particles(guide), self.num_particles, reweights=self.reweights_path)
            return
        for _ in range(self.num_particles):
            yield _Run(programs, model, guide, reweights=self.reweights_path)


class IWAE(ImportanceWeighted):
    """Minus the IWAE bound L_K, with its reparametrized gradient.

    ``loss = -sum_b log (1/K) sum_k p(x_b, z_bk) / q(z_bk | x_b)``

    The gradient is unbiased. Its signal-to-noise ratio grows with K for the decoder but falls like 1 / sqrt(K) for the
    encoder: see `DReG`. At K = 1 it is the ELBO with a sampled KL.

    *Importance weighted autoencoders (Burda, Grosse, Salakhutdinov 2016)*, https://arxiv.org/abs/1509.00519;
    *Tighter variational bounds are not necessarily better (Rainforth et al. 2018)*, https://arxiv.org/abs/1802.04537

    Args:
        num_particles: K, draws of the guide per datum.

    Example:
        >>> pyrovae.fit(vae.model, vae.guide, data, objective=objectives.IWAE(num_particles=50))

    """

    def bound(self, log_weights: Tensor) -> Tensor:
        """Return ``log (1/K) sum_k w_k`` of each datum ``(B,)``."""
        return log_mean_exp(log_weights)


class STL(IWAE):
    """Minus the IWAE bound L_K, without the score of the guide in its gradient.

    ``d log w / d phi = (d log w / d z) (d z / d phi)``, ``log w = log p(x, z) - log q(z | x)``

    The omitted term, d log q(z | x) / d phi at fixed z, has mean zero at K = 1: the gradient of the ELBO is unbiased,
    and its variance vanishes if the guide is the exact posterior. For K > 1 the weights depend on z too, and the mean
    of the term is not zero: the gradient of the encoder is then *biased*, the more the larger K; use `DReG`. The
    gradient of the decoder equals the one of `IWAE` for every K. A guide whose density at a given z is expensive, such
    as ``posteriors.IAF``, is slow here: its draws are inverted.

    *Sticking the landing: Simple, lower-variance gradient estimators for variational inference (Roeder, Wu, Duvenaud
    2017)*, https://arxiv.org/abs/1703.09194

    Args:
        num_particles: K, draws of the guide per datum.

    Example:
        >>> pyrovae.fit(vae.model, vae.guide, data, objective=objectives.STL())

    """

    stops_score = True

    @checked
    def __init__(self, *, num_particles: PositiveInt = 1) -> None:
        super().__init__(num_particles=num_particles)


class DReG(IWAE):
    """Minus the IWAE bound L_K, with the doubly reparametrized gradient for the guide.

    ``encoder: sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi)``,
    ``decoder: sum_k v_k d log w_k / d theta``, ``v_k = w_k / sum_j w_j``

    The gradient is unbiased. Its signal-to-noise ratio for the encoder grows with K, while the one of `IWAE` falls. An
    encoder inside the prior, as in ``priors.Vamp``, is a parameter of the model: its gradient has weight v_k in the
    prior and v_k^2 through z. A guide whose density at a given z is expensive, such as ``posteriors.IAF``, is slow
    here: its draws are inverted. With several latent sites the guide runs three times on the same draws; it must not
    draw anything else, such as dropout masks.

    *Doubly reparameterized gradient estimators for Monte Carlo objectives (Tucker, Lawson, Gu, Maddison 2019)*,
    https://arxiv.org/abs/1810.04152

    Args:
        num_particles: K, draws of the guide per datum.

    Example:
        >>> pyrovae.fit(vae.model, vae.guide, data, objective=objectives.DReG(num_particles=50))

    """

    stops_score = True
    reweights_path = True


class _Run:
    """Draws of the guide, and the model on these draws.

    Args:
        programs: structure of model and guide.
        model: the model without arguments.
        guide: the guide without arguments.
        num_particles: size of the axis of particles; None for a single particle without such an axis.
        reweights: whether gradients through a draw are multiplied by its normalized weight.

    """

    def __init__(
        self,
        programs: ModelGuide,
        model: Program,
        guide: Program,
        num_particles: PositiveInt | None = None,
        *,
        reweights: bool,
    ) -> None:
        self.programs, self.guide = programs, guide
        self.vectorized, self.num_particles = num_particles is not None, num_particles or 1
        self.weights: list[Tensor] = []  # normalized weights (K, B), known after the runs of all particles
        self.guide_trace = poutine.trace(guide).get_trace()
        self.values: dict[str, Tensor] = {}
        for name, latent in programs.latents.items():
            site = self.guide_trace.nodes[name]
            require_gradient(name, site)
            reweighted = reweights and site["value"].requires_grad
            self.values[name] = self._reweight(site["value"], latent.event_dim) if reweighted else site["value"]
        self.model_trace = poutine.trace(_replay(model, self.guide_trace, self.values)).get_trace()

    def _reweight(self, z: Tensor, event_dim: int) -> Tensor:
        """Return a draw whose gradient is multiplied by its normalized weight on the way back to the guide."""
        row_axis = self.programs.dim - event_dim
        particle_axis = -1 - self.programs.nesting - event_dim if self.vectorized else None
        reweighted = z.view_as(z)
        # the hook holds the list of weights, not the run: a run refers to the graph that holds the hook
        reweighted.register_hook(partial(_multiply, self.weights, row_axis, particle_axis))
        return reweighted

    def log_prob(self, trace: poutine.Trace, names: Iterable[str]) -> Tensor:
        """Return the sum of the log-probabilities of some sites, ``(K, B)``."""
        sites = [trace.nodes[name] for name in names]
        return sum_terms([per_datum(self.programs, site_log_prob(site), site) for site in sites])

    def log_guide(self, *, stops_score: bool) -> Tensor:
        """Return log q(z | x), ``(K, B)``, if wanted without its derivative by the guide's parameters at fixed z."""
        if not stops_score:
            return self.log_prob(self.guide_trace, self.programs.latents)
        constants = {name: self.guide_trace.nodes[name]["value"].detach() for name in self.values}
        log_guide, score = self._log_guide_at(self.values), self._log_guide_at(constants)
        return log_guide - (score - score.detach())

    def _log_guide_at(self, values: dict[str, Tensor]) -> Tensor:
        """Return log q(z | x) at given values of the latent sites, ``(K, B)``.

        With several sites the distribution of one may depend on the value of another, so the guide runs again.
        """
        trace = self.guide_trace
        if len(values) > 1 and any(values[name] is not trace.nodes[name]["value"] for name in values):
            trace = poutine.trace(_replay(self.guide, trace, values)).get_trace()
        sites = {name: trace.nodes[name] for name in values}
        return sum_terms(
            [per_datum(self.programs, site["fn"].log_prob(values[name]), site) for name, site in sites.items()]
        )

    def common_scale(self) -> float:
        """Return Pyro's factor of all log-probabilities: the size of the data plate over its rows drawn."""
        latents, observed = self.programs.latents, self.programs.observed
        scales = [self.guide_trace.nodes[name]["scale"] for name in latents]
        scales += [self.model_trace.nodes[name]["scale"] for name in (*latents, *observed)]
        if any(isinstance(scale, Tensor) or not math.isclose(scale, scales[0]) for scale in scales):
            raise ValueError(
                "an importance-weighted bound has one scale for all sites, the size of the data plate over its rows, "
                "but pyro.poutine.scale changes it for some; leave the factor out, or weigh the KL with ELBO(beta=...)"
            )
        return scales[0]


def _replay(program: Program, trace: poutine.Trace, values: dict[str, Tensor]) -> Callable[..., Any]:
    """Return a program that takes its draws from a trace, with other values of the latent sites."""
    changed = trace.copy()
    for name, value in values.items():
        changed.nodes[name] = {**trace.nodes[name], "value": value}
    return poutine.replay(program, trace=changed)


def _multiply(weights: list[Tensor], row_axis: int, particle_axis: int | None, gradient: Tensor) -> Tensor:
    """Multiply the gradient of a draw, in Pyro's layout, by the normalized weights ``(K, B)``."""
    (normalized,) = weights
    shape = [1] * gradient.ndim
    shape[row_axis] = normalized.shape[1]
    if particle_axis is not None:
        shape[particle_axis] = normalized.shape[0]
    return gradient * normalized.reshape(shape).to(gradient.dtype)
