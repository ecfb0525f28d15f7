"""Refit of the guide to the evaluated data, with the model held fixed."""

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
from pyrovae.importance import draw_guide, iter_batches, score_model, score_one_particle, sum_over_sites
from pyrovae.programs import ModelGuide, run
from pyrovae.runtime.context import forked_random, stream_seed
from pyrovae.runtime.progress_bar import progress

LEARNING_RATE = 1e-3  # first rate of Adam, which decays to zero
BATCH = 64  # data in a step


@dataclass(frozen=True)
class Refit:
    """New values of a guide's own parameters, in effect only inside `in_place`.

    Attributes:
        parameters: the guide's own parameters; log p(x, z) of a given z does not depend on them.
        values: the new value of each; empty if there was no refit.
        num_shared: number of parameters that guide and model share, which were held fixed.
        why: the reason if there was no refit.

    """

    parameters: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    num_shared: int = 0
    why: str | None = None

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
    size = min(BATCH, programs.max_rows, len(args[0]))
    total = num_epochs * math.ceil(len(args[0]) / size)
    done = 0
    with (
        restored(own),
        torch.enable_grad(),
        progress("refitting the guide", total, show_progress=show_progress, unit="steps") as advance,
    ):
        for parameter in own:
            parameter.requires_grad_()
        optimizer = torch.optim.Adam(own, lr=LEARNING_RATE)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
        for epoch in range(num_epochs):
            with forked_random(stream_seed(seed, "gaps refit", epoch), device):
                order = torch.randperm(len(args[0]))
                for positions in iter_batches(programs, len(order), batch_size=BATCH):
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
