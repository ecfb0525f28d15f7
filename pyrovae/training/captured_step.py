"""A step for people who write their own loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

from pyrovae.data import Data, Split
from pyrovae.data.loader import Loader
from pyrovae.objectives import ELBO
from pyrovae.programs import ModelGuide, Program, Unnormalized, find_modules, inspect_programs, warn_of_links
from pyrovae.runtime.context import frozen_unremarked, module_mode, own_store, validation
from pyrovae.training.config import check_engine, check_positive
from pyrovae.training.engine import make_step
from pyrovae.training.feed import Feed, Given, Resident
from pyrovae.training.leaves import require_leaves
from pyrovae.training.loss import StepLoss
from pyrovae.training.step import EagerStep, MakeOptimizer, fused_adam, make_optimizer_of
from pyrovae.vae import require_form

ROW_DTYPES = (torch.int64, torch.int32)


class StepTerms(NamedTuple):
    """What a step shows of the loss before it moved the parameters: 0-dim tensors on the device, nats per datum.

    Attributes:
        loss: what was minimized, with Pyro's scales.
        reconstruction: E_q log p(x | z), free of scales; zero where the objective does not tell.
        kl: KL(q(z | x) || p(z)), free of scales, beta, annealing and free bits; zero where the objective does not tell.

    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class CapturedStep:
    """A gradient step of a pair; made by `capture`.

    Attributes:
        optimizer: of all parameters; change the learning rate of its groups at any time.

    """

    def __init__(
        self, programs: ModelGuide, feed: Feed, objective: PyroELBO, make_optimizer: MakeOptimizer, **engine: Any
    ) -> None:
        with own_store(programs.modules, keep=programs.params):
            leaves = require_leaves(programs.modules, programs.params)
        self._loss = _StoredLoss(programs, objective, feed.bind)
        self._takes_rows = isinstance(feed, Resident)
        self.optimizer = make_optimizer_of(make_optimizer, leaves.trained)
        self._eager = EagerStep(self._loss, leaves, self.optimizer, clip_norm=engine["clip_norm"])
        self._step = make_step(self._loss, leaves, self.optimizer, **engine)

    def __call__(self, *inputs: Tensor) -> StepTerms:
        """Move the parameters once.

        The first call is eager, under Pyro's checks; the second records what later ones replay.

        Args:
            inputs: a minibatch x ``(B, ...)`` and what travels with it, or, if the step was made for a split, row
                numbers ``(B,)`` on its device.

        Returns:
            Loss, reconstruction and KL per datum.

        Raises:
            TypeError: if these are no tensors, or no row numbers where those are due.
            ValueError: if there are no data; and in the first call, if data lie outside the support or shapes do not
                fit. Later calls do not look: data that are NaN make parameters that are.

        """
        self._require(inputs)
        step = self._eager if self._loss.checked else self._step
        shown = step(*inputs)
        self._loss.checked = False
        return StepTerms(*shown.unbind())

    @property
    def objective(self) -> PyroELBO:
        """What is minimized; change the beta of an ELBO at any time."""
        return self._loss.objective

    def _require(self, inputs: tuple[Any, ...]) -> None:
        if not inputs or not all(isinstance(each, Tensor) and each.ndim for each in inputs):
            raise TypeError(f"a step takes a minibatch, tensors (B, ...), but received {_kinds(inputs) or 'nothing'}")
        if self._takes_rows and (len(inputs) > 1 or inputs[0].ndim != 1 or inputs[0].dtype not in ROW_DTYPES):
            raise TypeError(
                f"a step made for a split takes the numbers of its rows, whole and (B,), but received "
                f"{_kinds(inputs)}; "
                "of a mask give mask.nonzero().squeeze(-1)"
            )
        if not len(inputs[0]):
            raise ValueError("a step takes one datum or more, but received an empty minibatch; leave it out")


def _kinds(inputs: tuple[Any, ...]) -> list[object]:
    return [f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else type(each) for each in inputs]


class _StoredLoss(StepLoss):
    """The loss of programs that are run in a parameter store of their own, the first time under Pyro's checks."""

    checked = True

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        own = own_store(self.programs.modules, keep=self.programs.params)
        with own, validation(enabled=self.checked), frozen_unremarked():
            return super().__call__(*inputs)


def capture(
    model: Program,
    guide: Program,
    *data: Tensor | Split,
    optimizer: MakeOptimizer | None = None,
    objective: PyroELBO | None = None,
    engine: str = "captured",
    clip_norm: float | None = None,
    modules: Iterable[nn.Module] = (),
    unnormalized: bool = False,
) -> CapturedStep:
    """Make a gradient step of a Pyro model/guide pair that is recorded once and replayed: for loops of your own.

    Values of parameters, buffers and data may change between steps, and so may beta and the learning rate; parameters
    and layers that are replaced are noticed, and so are modes of modules. What the programs do in Python is done when
    the step is recorded, never again: a number or a branch that changes from step to step belongs into a tensor. What
    cannot be recorded runs eagerly, and one line on the logger says why; objectives of Pyro's own are of that kind.
    Draws come from torch's default stream, the same for all engines. Modules are trained in the mode in which they are,
    on the device on which they are.

    Args:
        model: a Pyro program called with a minibatch; see `pyrovae.programs` for the contract.
        guide: another.
        data: a minibatch x ``(B, ...)``, and what travels with it along the plate; or a split, whose rows are gathered,
            and binarized or dequantized, inside the step.
        optimizer: makes the optimizer of all parameters; Adam with a learning rate of 0.001 if None.
        objective: any `pyro.infer.ELBO` with a differentiable loss; `pyrovae.objectives.ELBO` by default.
        engine: "captured", which "auto" means too where nobody knows the number of steps; or "eager" for the same
            without recording.
        clip_norm: largest norm of the gradient of the loss per datum; no clipping if None.
        modules: those used by the programs that cannot be found from them.
        unnormalized: whether values outside the support of a distribution with ``validate_args=False`` are scored.

    Returns:
        The step, a function of minibatches like this one, or of row numbers of the split.

    Raises:
        ValueError: if the pair breaks the contract, or there is nothing to train.
        TypeError: if the objective has no differentiable loss.

    Example:
        >>> step = pyrovae.training.capture(vae.model, vae.guide, x)
        >>> for x in loader:
        ...     terms = step(x)

    """
    check_engine(engine)
    check_positive("clip_norm", clip_norm)
    engine = "captured" if engine == "auto" else engine
    require_form(model, *data)
    found = tuple({id(module): module for module in (*modules, *find_modules(model, guide))}.values())
    if not data or any(isinstance(each, Data) for each in data):
        received = "all splits of a data set; give one, such as data.train" if data else "no data; give some"
        raise TypeError(f"a step is made for a minibatch, or for a split, but received {received}")
    source = data[0] if len(data) == 1 and isinstance(data[0], Split) else data
    rows = Loader(source)  # type: ignore[arg-type]
    kept: list[str] = []
    with own_store(found, keep=kept), module_mode(found, training=False):
        few = rows.draw(torch.arange(min(len(rows), 3), device=rows.device))
        model = Unnormalized()(model) if unnormalized else model
        programs = inspect_programs(model, guide, few, modules=found, all_data=rows.everything)
        warn_of_links(programs)
        kept += programs.params
    if programs.draws_rows:
        raise ValueError(
            f"the plate {programs.plate!r} draws rows of the data by itself, but a step is given its rows; write it as "
            f"pyro.plate({programs.plate!r}, len(x)), or train with pyrovae.fit"
        )
    feed = Resident(programs, rows, len(rows), rows.device) if isinstance(source, Split) else Given(programs)
    return CapturedStep(
        programs, feed, objective or ELBO(), optimizer or fused_adam, engine=engine, clip_norm=clip_norm
    )
