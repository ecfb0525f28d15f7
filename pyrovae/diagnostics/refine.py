"""Better guides of given data, with the model held fixed: a diagonal Gaussian for each datum, and a refit guide."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae.bounds.evidence import particle_terms
from pyrovae.importance import (
    UnconstrainedLatents,
    draw_guide,
    iter_batches,
    score_model,
    score_one_particle,
    sum_over_sites,
)
from pyrovae.programs import ModelGuide, run
from pyrovae.programs.layout import to_float64
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

START_DRAWS = 128  # draws of the guide whose moments are the start
RATES = (0.3, 0.01)  # first and last rate of Adam: standard deviations of a mean, e-folds of a standard deviation
BETAS = (0.9, 0.99)
AVERAGED = 0.4  # share of the steps, the last ones, whose mean is the result
PRIOR_DRAWS = 128  # draws of the prior from which further starts are chosen
MIN_GAIN = 0.01  # nats by which another start must exceed the guide's to replace it
REFIT_RATE = 1e-3  # first rate of Adam for the guide's own parameters, which decays to zero
REFIT_BATCH = 64  # data in a step of the refit


@dataclass(frozen=True)
class DiagonalGaussian:
    """A Gaussian with independent dimensions over the unconstrained latent vector u of each datum."""

    mean: Tensor  # (B, D), or (S, B, D) of S Gaussians for each datum
    scale: Tensor  # standard deviations, of the same shape

    def draw(self, num_particles: int, dtype: torch.dtype) -> Tensor:
        """Draw u ``(K, B, D)``."""
        noise = torch.randn(num_particles, *self.mean.shape, dtype=dtype, device=self.mean.device)
        return (self.mean + self.scale * noise).to(dtype)

    def log_prob(self, u: Tensor) -> Tensor:
        """Return log q(u) ``(K, B)`` in nats."""
        standard = (u - self.mean) / self.scale
        return (-0.5 * standard**2 - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def start(space: UnconstrainedLatents) -> DiagonalGaussian:
    """Return the diagonal Gaussian with the moments of the guide's draws."""
    u = to_float64(space.draw(START_DRAWS)[0])
    mean = u.mean(0)
    return DiagonalGaussian(mean, torch.maximum(u.std(0), 1e-5 * mean.abs() + 1e-8))


def further_starts(space: UnconstrainedLatents, q: DiagonalGaussian, num_starts: int) -> DiagonalGaussian:
    """Return S starts ``(S, B, D)``: q, and Gaussians of its scale around draws of the prior.

    Each is drawn with a probability in proportion to ``p(x | u)`` and to the squared distance from the nearest earlier
    start. So the starts lie on different modes of a posterior that has several, as far as 128 draws reach. If the
    prior cannot be sampled, q is the only start.

    *k-means++: the advantages of careful seeding (Arthur, Vassilvitskii 2007)*, https://dl.acm.org/doi/10.5555/1283383.1283494

    Args:
        space: unconstrained latent variables of B data.
        q: the first start, ``(B, D)``.
        num_starts: S.

    """
    means = [q.mean]
    try:
        u = space.draw_prior(PRIOR_DRAWS)  # (M, B, D)
        u = torch.where(u.isfinite().all(-1, keepdim=True), u, q.mean.to(u))  # outside the support of the guide
        log_weights = space.log_joint_terms(u)[1]  # (M, B)
    except NotImplementedError:
        num_starts = 1
    for _ in range(num_starts - 1):
        distance = torch.stack([(to_float64(u) - mean).square().sum(-1) for mean in means]).amin(0)
        noise = -torch.empty_like(log_weights).exponential_().log()  # Gumbel's
        chosen = (log_weights + distance.log() + noise).nan_to_num(-math.inf).argmax(0)  # (B,)
        means.append(to_float64(u).gather(0, chosen[None, :, None].expand(1, -1, u.shape[-1]))[0])
    mean = torch.stack(means)
    return DiagonalGaussian(mean, q.scale.expand_as(mean))


def best_of(q: DiagonalGaussian, history: Tensor) -> tuple[DiagonalGaussian, Tensor, Tensor]:
    """Return the best of S Gaussians of each datum, its history ``(num_steps, B)``, and where it lies apart ``(B,)``.

    A Gaussian replaces the first one if it is better by 0.01 nats and three standard errors over the last steps, whose
    draws all Gaussians share. It lies apart if its mean is more than three standard deviations from the first one's.
    ``q`` and ``history`` are results of `refine`.
    """
    last = history[-max(2, round(AVERAGED * len(history))) :]
    gain = last - last[:, :1]
    mean, error = gain.mean(0), gain.std(0) / math.sqrt(len(gain))
    clear = (mean > 3 * error) & (mean > MIN_GAIN)  # never where an error is NaN
    best = torch.where(clear, mean, 0.0).argmax(0)  # (B,), the first where none is better
    where = best[None, :, None].expand(1, -1, q.mean.shape[-1])
    chosen = DiagonalGaussian(q.mean.gather(0, where)[0], q.scale.gather(0, where)[0])
    apart = ((chosen.mean - q.mean[0]).abs() > 3 * torch.maximum(chosen.scale, q.scale[0])).any(-1)
    return chosen, history.gather(1, best.expand(len(history), 1, -1))[:, 0], apart


def refine(space: UnconstrainedLatents, q: DiagonalGaussian, *, num_steps: int) -> tuple[DiagonalGaussian, Tensor]:
    """Maximize the ELBO of a diagonal Gaussian of each datum, for all data at once.

    ``L(m, s) = E[log p(x, m + s e) - log q(m + s e)]`` with ``e ~ N(0, I)``

    Steps are Adam's, in units of the standard deviations s at that step, with a rate that decays. Each step draws a
    pair e, -e for each datum; the gradient follows it through log p - log q, so that its noise vanishes where q is the
    exact posterior. The result is the mean of the last steps' m and log s; the step with the highest estimate would be
    the one with the largest noise. Where the gradient of a datum is not finite, it counts as zero in that step.

    *Sticking the landing (Roeder, Wu, Duvenaud 2017)*, https://arxiv.org/abs/1703.09194

    Args:
        space: unconstrained latent variables of B data.
        q: the start, ``(B, D)``, or S starts of each datum ``(S, B, D)``.
        num_steps: steps of the optimizer.

    Returns:
        The Gaussian, and the estimate of the ELBO at each step ``(num_steps, B)``, nats; ``(num_steps, S, B)`` for S
        Gaussians of each datum.

    """
    dtype = space.draw(1)[0].dtype
    position = torch.stack([q.mean, q.scale.log()])  # (2, B, D) or (2, S, B, D)
    first, second = torch.zeros_like(position), torch.zeros_like(position)
    total, values = torch.zeros_like(position), []
    num_averaged = max(1, round(AVERAGED * num_steps))
    for step in range(1, num_steps + 1):
        here = DiagonalGaussian(position[0], position[1].exp())
        gradient, value = _gradient(space, here, dtype)
        values.append(value)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        move = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + 1e-8)
        rate = RATES[0] * (RATES[1] / RATES[0]) ** ((step - 1) / num_steps)
        position = position + rate * move * torch.stack([here.scale, torch.ones_like(here.scale)])
        if step > num_steps - num_averaged:
            total += position
    mean, log_scale = total / num_averaged
    return DiagonalGaussian(mean, log_scale.exp()), torch.stack(values)


def _gradient(space: UnconstrainedLatents, q: DiagonalGaussian, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the gradient of the ELBO by m / s and log s ``(2, ..., B, D)``, and an estimate of it ``(..., B)``."""
    noise = to_float64(torch.randn(1, *q.mean.shape[-2:], dtype=dtype, device=q.mean.device))
    noise = torch.cat([noise, -noise])
    noise = noise.reshape(len(noise), *[1] * (q.mean.ndim - 2), *q.mean.shape[-2:])  # the same for all Gaussians
    u = (q.mean + q.scale * noise).to(dtype).requires_grad_()  # (2, B, D) or (2, S, B, D)
    with torch.enable_grad():
        log_joint = space.log_joint(u.reshape(-1, *u.shape[-2:])).reshape(u.shape[:-1])
        (slope,) = torch.autograd.grad(log_joint.sum(), u)
    along = q.scale * to_float64(slope) + noise  # the slope of log p - log q at u, in units of s
    gradient = torch.stack([along.mean(0), (noise * along).mean(0)])
    finite = gradient.isfinite().all(0).all(-1, keepdim=True)
    return torch.where(finite, gradient, 0.0), (log_joint.detach() - q.log_prob(to_float64(u.detach()))).mean(0)


@dataclass(frozen=True)
class Refit:
    """New values of a guide's own parameters, in effect only inside `in_place`."""

    parameters: tuple[Tensor, ...]  # the guide's own; log p(x, z) of a given z does not depend on them
    values: tuple[Tensor, ...]  # the new value of each; empty if there was no refit
    num_shared: int = 0  # parameters that guide and model share, which were held fixed
    why: str | None = None  # the reason if there was no refit

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Use the new values inside the block, and restore the old ones, to the last bit, afterwards."""
        with restored(self.parameters):
            _put(self.parameters, self.values)
            yield


def refit(
    programs: ModelGuide, args: tuple[Any, ...], *, num_epochs: int, seed: int = 0, show_progress: bool = False
) -> Refit:
    """Maximize the ELBO of given data over the parameters that only the guide uses, in evaluation mode.

    The parameters are restored, also after an exception; the result holds the new values.

    Minibatches take one draw for each datum; the rate of Adam decays to zero, and the last parameters are the result.
    A guide that is fitted to few data follows them closely, whatever it was trained on. Its gain measures over-fitting
    of the old guide only as far as a refit on as many training data would gain less.

    *Amortized inference regularization (Shu et al. 2018)*, https://arxiv.org/abs/1805.08913

    Args:
        programs: from `scoring_context`.
        args: arguments of the programs, each ``(N, ...)``, the data first.
        num_epochs: passes over the data; 0 for no refit.
        seed: seed of the random streams.
        show_progress: show a progress bar.

    Returns:
        The parameters with their new values, or the reason why there are none.

    """
    if num_epochs == 0:
        return Refit((), (), why="no refit of the guide was asked for; set refit_epochs")
    own, num_shared, why = own_parameters(programs, args)
    if why is not None:
        return Refit((), (), num_shared, why)
    device = args[0].device
    size = min(REFIT_BATCH, programs.max_rows, len(args[0]))
    total = num_epochs * math.ceil(len(args[0]) / size)
    done = 0
    with (
        restored(own),
        torch.enable_grad(),
        progress("refitting the guide", total, show_progress=show_progress, unit="steps") as advance,
    ):
        for parameter in own:
            parameter.requires_grad_()
        optimizer = torch.optim.Adam(own, lr=REFIT_RATE)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
        for epoch in range(num_epochs):
            with forked_random(stream_seed(seed, "gaps refit", epoch), device):
                order = torch.randperm(len(args[0]))
                for positions in iter_batches(programs, len(order), batch_size=REFIT_BATCH):
                    block = score_one_particle(programs, args, order[positions].to(device), checked=False)
                    loss = -particle_terms(programs, block).elbo.mean()
                    if not loss.isfinite():
                        why = f"the refit met an ELBO that is not finite in epoch {epoch + 1}"
                        return Refit((), (), num_shared, why)
                    for parameter, gradient in zip(own, torch.autograd.grad(loss, own, allow_unused=True), strict=True):
                        parameter.grad = gradient
                    optimizer.step()
                    rate.step()
                    done += 1
                    advance(done)
        values = tuple(parameter.detach().clone() for parameter in own)
    return Refit(tuple(own), values, num_shared)


def own_parameters(programs: ModelGuide, args: tuple[Any, ...]) -> tuple[list[Tensor], int, str | None]:
    """Return the parameters that reach the guide's draws or their density but not log p(x, z) of a given z.

    Of these only parameters that require gradients count, unless none does, as in a model frozen for evaluation.

    Returns:
        The parameters, the number of parameters that the guide shares with the model, and the reason if there are none.

    """
    stored = dict(pyro.get_param_store().named_parameters())
    found = [p for module in programs.modules for p in module.parameters()] + [stored[name] for name in programs.params]
    parameters = list({id(p): p for p in found if p.is_floating_point()}.values())
    rows = torch.arange(min(3, len(args[0])), device=args[0].device)
    with restored(parameters), torch.enable_grad(), forked_random(0, args[0].device):
        trained = {id(parameter) for parameter in parameters if parameter.requires_grad}
        for parameter in parameters:
            parameter.requires_grad_()
        guide_trace, _ = run(*programs.bind(args, rows))
        for name in programs.latents:
            fn = guide_trace.nodes[name]["fn"]
            if not getattr(fn, "has_rsample", False):
                return [], 0, f"the guide's draw of {name!r} has no gradient: {type(fn).__name__} has no rsample"
        z, log_guide = draw_guide(programs, args, rows, 1)
        of_guide = _reached([sum_over_sites(log_guide), *z.values()], parameters)
        given = {name: value.detach() for name, value in z.items()}
        scores = score_model(programs, args, rows, given, with_kl=False)
        of_model = _reached([sum_over_sites(scores.prior), scores.likelihood], parameters)
    own = [parameter for parameter in parameters if id(parameter) in of_guide - of_model]
    own = [parameter for parameter in own if id(parameter) in trained] or own
    if own:
        return own, len(of_guide & of_model), None
    if of_guide:
        return [], len(of_guide), "the guide shares all its parameters with the model, which is held fixed"
    return [], 0, "no parameters of the guide were found; name the modules that its program hides with modules="


@contextlib.contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore values, gradients and requires_grad of tensors after the block, also after an exception."""
    before = [(tensor.detach().clone(), tensor.grad, tensor.requires_grad) for tensor in tensors]
    try:
        yield
    finally:
        _put(tensors, [value for value, _, _ in before])
        for tensor, (_, gradient, required) in zip(tensors, before, strict=True):
            tensor.grad = gradient
            tensor.requires_grad_(required)


@torch.no_grad()
def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _reached(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> set[int]:
    """Return the ids of the tensors that values depend on."""
    total = torch.stack([value.sum().double() for value in values]).sum()
    if not total.requires_grad or not tensors:
        return set()
    slopes = torch.autograd.grad(total, tensors, allow_unused=True)
    return {id(tensor) for tensor, slope in zip(tensors, slopes, strict=True) if slope is not None}
