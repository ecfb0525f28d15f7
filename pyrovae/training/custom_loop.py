"""A gradient step for training loops of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

from pyrovae.compile import Engine
from pyrovae.data import Split
from pyrovae.data.loader import Loader
from pyrovae.objectives import ELBO
from pyrovae.programs import Program, Unnormalized, inspected_programs, run_validated, warn_of_links
from pyrovae.programs.model_guide import run
from pyrovae.runtime.annotations import PositiveFloat, checked
from pyrovae.runtime.context import forked_random, frozen_unremarked, module_mode, own_store, validation
from pyrovae.training.step import MakeOptimizer, Step, fused_adam
from pyrovae.vae import require_form

ROW_DTYPES = (torch.int64, torch.int32)
CHECKED_ROWS = 1000  # rows of a split whose values are checked in one run of the programs


class StepTerms(NamedTuple):
    """Terms of the loss before the update: 0-dim tensors on the device, nats per datum.

    Attributes:
        loss: the minimized loss, with Pyro's scales.
        reconstruction: E_q log p(x | z), free of scales; zero for an objective without terms.
        kl: KL(q(z | x) || p(z)), free of scales, beta, annealing and free bits; zero for an objective without terms.

    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class CapturedStep(Step):
    """A gradient step of a model and guide, made by `capture`.

    Attributes:
        objective: the objective; change the beta of an ELBO at any time.
        optimizer: optimizer of all parameters; change the learning rate of its groups at any time.

    """

    _is_first, _takes_rows = True, False

    def __call__(self, *inputs: Tensor) -> StepTerms:
        """Update the parameters once.

        The first call is eager, under Pyro's checks; the second traces the loss, which later ones replay.

        Args:
            inputs: a minibatch x ``(B, ...)`` and other tensors along the plate; or, if the step was made for a split,
                row numbers ``(B,)`` on its device.

        Returns:
            Loss, reconstruction and KL per datum.

        Raises:
            TypeError: if the step was made for a split, and the inputs are not row numbers.
            ValueError: if the minibatch is empty, or a parameter or module was replaced; and in the first call, if data
                lie outside the support or shapes do not fit. Later calls do not check the data: NaN in them makes the
                parameters NaN.

        """
        if self._takes_rows and (len(inputs) > 1 or inputs[0].ndim != 1 or inputs[0].dtype not in ROW_DTYPES):
            raise TypeError(
                "a step made for a split takes the numbers of its rows (B,), of a mask mask.nonzero().squeeze(-1), but "
                f"received {[f'{x.dtype} {tuple(x.shape)}' for x in inputs]}"
            )
        if not len(inputs[0]):
            raise ValueError("a step takes one datum or more, but received an empty minibatch; leave it out")
        metrics = self.update(*inputs, eager=self._is_first)
        self._is_first = False
        return StepTerms(*metrics.unbind())

    def loss(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its terms of programs in a parameter store of their own."""
        store = own_store(self.programs.modules, keep=self.programs.params)
        with store, validation(enabled=self._is_first), frozen_unremarked():
            return super().loss(*inputs)


@checked
def capture(
    model: Program,
    guide: Program,
    *data: Tensor | Split,
    optimizer: MakeOptimizer | None = None,
    objective: PyroELBO | None = None,
    engine: Engine = "captured",
    clip_norm: PositiveFloat | None = None,
    modules: Iterable[nn.Module] = (),
    unnormalized: bool = False,
) -> CapturedStep:
    """Make a gradient step of a Pyro model and guide that is traced once and replayed, for loops of your own.

    Values of parameters, buffers and data may change between steps, and so may beta and the learning rate. Modes of
    modules and frozen parameters are followed; a replaced parameter or module is an error. Python control flow and
    Python numbers are frozen when the loss is traced: put a number that changes from step to step into a tensor. A loss
    that cannot be traced runs eagerly, and a log line gives the reason; objectives of Pyro's own are of this kind.
    Random numbers come from torch's default stream, the same for all engines. Modules are trained in their present
    mode, on their present device.

    Args:
        model: a Pyro program called with a minibatch; see `pyrovae.programs` for the contract.
        guide: another.
        data: a minibatch x ``(B, ...)`` and other tensors along the plate; or a split, whose values are all checked
            now, and whose rows are gathered, and binarized or dequantized, inside the step.
        optimizer: makes the optimizer of all parameters; Adam with a learning rate of 0.001 if None.
        objective: any `pyro.infer.ELBO` with a differentiable loss; `pyrovae.objectives.ELBO` by default.
        engine: "captured" or "auto" to trace the loss, "eager" not to.
        clip_norm: largest norm of the gradient of the loss per datum; no clipping if None.
        modules: modules of the programs that cannot be found from them.
        unnormalized: whether values outside the support of a distribution with ``validate_args=False`` are scored.

    Returns:
        The step, a function of minibatches like this one, or of row numbers of the split.

    Raises:
        ValueError: if the programs break the contract, or there is nothing to train.
        TypeError: if the objective has no differentiable loss, or is compiled by Pyro.

    Example:
        >>> step = pyrovae.training.capture(vae.model, vae.guide, x)
        >>> for x in loader:
        ...     terms = step(x)

    """
    require_form(model, *data)
    is_split = len(data) == 1 and isinstance(data[0], Split)
    loader = Loader(data[0] if is_split else data)  # type: ignore[arg-type]
    inspected = inspected_programs(
        Unnormalized()(model) if unnormalized else model,
        guide,
        loader.draw(torch.arange(min(len(loader), 3), device=loader.device)),
        modules=modules,
        keep_params=True,
    )
    with inspected as programs:
        warn_of_links(programs)

    with own_store(programs.modules, keep=programs.params):
        step = CapturedStep(
            programs,
            loader.draw if is_split else lambda *inputs: inputs,
            objective or ELBO(),
            optimizer or fused_adam,
            clip_norm=clip_norm,
            engine="captured" if engine == "auto" else engine,
        )
    step._takes_rows = is_split
    if is_split:
        _check_values(step, len(loader), loader.device)
    return step


def _check_values(step: Step, num_data: int, device: torch.device) -> None:
    """Check all observed values against the supports of their distributions, without gradients."""
    modules = step.programs.modules
    store, evaluation = own_store(modules, keep=[]), module_mode(modules, training=False)
    with store, evaluation, forked_random(0, device), torch.no_grad():
        for rows in torch.arange(num_data, device=device).split(CHECKED_ROWS):
            run_validated(functools.partial(run, *step.bind(rows)), device, nan_counts=True)
