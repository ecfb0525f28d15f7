"""Loss of one minibatch as a function of tensors, which all engines compute."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from pyrovae.distributions.conditional import ConditionalPart
from pyrovae.objectives import Objective
from pyrovae.priors import Prior
from pyrovae.programs import ModelGuide, Program, run_validated
from pyrovae.runtime.context import modules_known

logger = logging.getLogger("pyrovae")

Bind = Callable[..., tuple[Program, Program, int]]


class StepLoss:
    """Loss of one minibatch.

    Args:
        programs: structure of model and guide.
        objective: an objective with a differentiable loss.
        bind: returns model and guide without arguments, and the number of data, for the inputs of a step.
        bfloat16: whether networks compute in bfloat16; see `bfloat16_networks`.

    Raises:
        TypeError: if the objective has no differentiable loss.

    """

    def __init__(self, programs: ModelGuide, objective: PyroELBO, bind: Bind, *, bfloat16: bool = False) -> None:
        if not hasattr(objective, "differentiable_loss"):
            raise TypeError(
                "training needs an objective with a differentiable loss, which "
                f"{type(objective).__name__} does not have; use pyrovae.objectives, or train with pyro.infer.SVI"
            )
        if programs.observed_in_guide and not isinstance(objective, Objective):
            logger.warning(
                "the loss of %s contains the observed sites of the guide (%s), so that the ELBO in its history is "
                "not a bound; pyrovae.evaluate leaves them out",
                type(objective).__name__,
                ", ".join(programs.observed_in_guide),
            )
        self.programs, self.objective, self.bind, self.bfloat16 = programs, objective, bind, bfloat16

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its terms; with validation on, Pyro's checks raise one-line errors.

        Args:
            inputs: tensors that `bind` takes.

        Returns:
            The loss per datum, 0-dim, nats, differentiable; and loss, reconstruction and KL per datum, ``(3,)``, nats,
            detached. The last two are free of Pyro's scales, and zero for an objective without terms.

        """
        known = modules_known() if isinstance(self.objective, Objective) else nullcontext()  # Pyro's read its store
        with known, bfloat16_networks(self.programs.all_modules) if self.bfloat16 else nullcontext():
            if is_validation_enabled():
                return run_validated(lambda: self._compute(*inputs), inputs[0].device, nan_counts=False)
            return self._compute(*inputs)

    def _compute(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        model, guide, count = self.bind(*inputs)
        size = self.programs.plate_size if self.programs.plate_size != self.programs.num_rows else count
        if not isinstance(self.objective, Objective):
            loss = self.objective.differentiable_loss(model, guide) / size
            return loss, torch.stack([loss, torch.zeros_like(loss), torch.zeros_like(loss)]).detach()
        terms = self.objective.terms_of(self.programs, model, guide)
        metrics = torch.stack([terms.loss.detach(), terms.reconstruction, terms.kl])
        metrics = metrics / count if size == count else torch.cat([metrics[:1] / size, metrics[1:] / count])
        return terms.loss / size, metrics


@contextmanager
def bfloat16_networks(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules under torch's autocast to bfloat16 inside the block, and convert their results to float32.

    Matrix products, convolutions and activations inside a call of a module are rounded to eight bits. Log-probabilities
    and other operations of a program on the results are not. Parameters, gradients and the optimizer stay in float32.

    Args:
        modules: modules whose calls, and calls of their submodules, are rounded. Parts that return distributions are
            not.

    """
    depth = 0
    region = torch.autocast("cpu")

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth, region
        if not depth:
            device = next((parameter.device.type for parameter in module.parameters()), "cpu")
            region = torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
            region.__enter__()
        depth += 1

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal depth
        depth -= 1
        if depth:
            return output
        region.__exit__(None, None, None)
        return _to_float32(output)

    parts = {id(part): part for module in modules for part in module.modules()}.values()
    networks = [part for part in parts if not isinstance(part, (ConditionalPart, Prior))]
    hooks = [part.register_forward_pre_hook(enter) for part in networks]
    hooks += [part.register_forward_hook(leave, always_call=True) for part in networks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _to_float32(output: Any) -> Any:
    """Convert bfloat16 tensors, in a tuple or list or alone, to float32."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype == torch.bfloat16 else output
    if type(output) in (tuple, list):
        return type(output)(_to_float32(value) for value in output)
    return output
