"""Stochastic variational inference on any pair."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pyro.infer import ELBO as PyroELBO
from torch import nn

from pyrovae.data import Data, Split, fingerprint
from pyrovae.data.loader import Loader, Source
from pyrovae.objectives import ELBO, Objective
from pyrovae.programs import Program, Unnormalized, find_modules, inspect_programs, warn_of_links
from pyrovae.results import Epoch, History
from pyrovae.results.observed_data import DISCRETE
from pyrovae.runtime.context import (
    MODULE_DIVIDER,
    forked_random,
    frozen_unremarked,
    module_mode,
    own_store,
    stream_seed,
)
from pyrovae.training.checkpoint import Checkpoint
from pyrovae.training.config import Training, choose_device
from pyrovae.training.loop import Loop
from pyrovae.training.placement import Placement
from pyrovae.training.run_folder import RunFolder
from pyrovae.training.start import start_at_data
from pyrovae.training.step import MakeOptimizer, fused_adam
from pyrovae.vae import require_form

logger = logging.getLogger("pyrovae")


def fit(
    model: Program,
    guide: Program,
    data: Data | Source,
    *,
    objective: PyroELBO | None = None,
    training: Training | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[Epoch], bool | None] | None = None,
    optimizer: MakeOptimizer = fused_adam,
    modules: Iterable[nn.Module] = (),
    command: Mapping[str, Any] | None = None,
    unnormalized: bool = False,
    show_progress: bool = True,
) -> History:
    """Fit a Pyro model/guide pair by gradient steps on an objective.

    Modules are trained in place, whether they are registered by `pyro.module`, referred to, or run, and stay on the
    device of training. Values of `pyro.param` are trained in a store of this call's own and left in the caller's. One
    line on the logger gives the number of trained parameters, another any tensors that the loss depends on and training
    does not move. The output and learned scales of a fresh `VAE` start at the mean and spread of the training data,
    unless ``Training(start_at_data=False)``.

    Random streams, validation switches and module modes are as before afterwards. Pyro's checks are on during the first
    epoch, or its first 500 steps where steps are recorded afterwards.

    Processes that ``torchrun`` started, and that initialized ``torch.distributed``, train together: each takes its rows
    of every minibatch, with the draws that one process would have made for them, and the first keeps the run.

    Data that would take much of the device's memory stay where they are, in memory or in a file that is mapped, and are
    prefetched, to the same numbers; one line on the logger says so.

    Args:
        model: a Pyro program called with one minibatch; see `pyrovae.programs` for the contract.
        guide: another.
        data: a data set, whose training part is fitted and whose validation part is watched; or one split, the data
            ``(N, ...)`` themselves, or a tuple of them and of what travels with them along the plate.
        objective: any `pyro.infer.ELBO` with a differentiable loss; `pyrovae.objectives.ELBO` by default.
        training: epochs, batch size, learning rate, early stopping, seed and device.
        folder: where to keep configuration, weights, trainer state, metrics and manifest; nothing is kept by default.
        resume: go on with the run in the folder, to the same numbers as without the interruption.
        on_epoch: called after each epoch, in the first process where several train together; training stops where it
            returns True.
        optimizer: makes the optimizer of all parameters; its learning rate is set at the start of each epoch.
        modules: those used by the programs that neither run nor can be found from them.
        command: options that led here, to be kept with the configuration.
        unnormalized: whether values outside the support of a distribution with ``validate_args=False`` are scored; the
            objective is then no bound on a log-probability.
        show_progress: whether progress is shown.

    Returns:
        What each epoch showed, in nats per datum; larger is better.

    Raises:
        ValueError: if the pair breaks its contract, there is nothing to train, the pair draws rows of data that do not
            fit, or the folder holds another run, is being trained by another process, or cannot be written.
        DivergenceError: if the loss is not finite; the last complete epoch stays in the folder.

    Example:
        >>> history = fit(vae.model, vae.guide, data, training=Training(epochs=50), folder="runs/first")

    """
    training = training or Training()
    device = choose_device(training.device)
    sources = (data.train, data.validation) if isinstance(data, Data) else (data,)
    rows = [Loader(source) for source in sources]
    require_form(model, *sources)
    if resume and folder is None:
        raise ValueError("resume goes on with the run in a folder, but there is none; pass folder=")
    if training.patience is not None and len(rows) == 1:
        raise ValueError("early stopping watches validation data, but there are none; pass a Data, or patience=None")
    placed = Placement(rows, device)
    found = tuple({id(module): module for module in (*modules, *find_modules(model, guide))}.values())
    for module in found:
        module.to(device)
    kept: list[str] = []
    with (
        own_store(found, keep=kept),
        module_mode(found, training=True),
        forked_random(stream_seed(training.seed, "fit"), device),
        frozen_unremarked(),
        ExitStack() as stack,
    ):
        with module_mode(found, training=False):
            scored = Unnormalized()(model) if unnormalized else model
            few = placed.few()
            programs = inspect_programs(scored, guide, few, modules=found, all_data=placed.everything, device=device)
            warn_of_links(programs)
        stack.enter_context(module_mode(programs.all_modules, training=True))
        placed.tell()
        num_values = None if isinstance(rows[0].source, tuple) else rows[0].num_values
        if programs.base_measure == "Lebesgue" and num_values is not None:
            logger.warning(DISCRETE.format(num_values))
        kept += [name for name in programs.params if MODULE_DIVIDER not in name]
        loop = Loop(
            programs, placed.rows, objective or ELBO(), training, device, optimizer, prefetched=placed.prefetched
        )
        loop.share()
        if folder is not None:
            settings = {
                "training": dataclasses.asdict(training),
                "objective": _describe_objective(loop.objective),
                "optimizer": {"class": type(loop.optimizer).__name__},
                "data": _describe_data(placed.rows[0]),
                "command": dict(command or {}),
            }
            checkpoint = Checkpoint(RunFolder(folder), settings, model)
            progress = loop.group.from_first(lambda: checkpoint.open(stack, resume=resume))
            if progress is not None:
                loop.restore(progress)
            loop.checkpoint = checkpoint if loop.group.first else None
        start = ""
        if training.start_at_data and not resume:
            start = start_at_data(model, placed.rows[0])
            loop.group.copy_from_first(loop.leaves.trained)
        if loop.checkpoint is not None and not resume:
            loop.checkpoint.settings["start"] = start or None
            loop.checkpoint.save(loop.progress())
        logger.log(
            logging.WARNING if show_progress and loop.group.first else logging.INFO,
            "training %s parameters%s",
            f"{sum(parameter.numel() for parameter in loop.leaves.trained):,}",
            f"; it starts with {start}" if start else "",
        )
        return loop.run(on_epoch, show_progress=show_progress)


def _describe_objective(objective: PyroELBO) -> dict[str, Any]:
    if isinstance(objective, Objective):
        return objective.describe()
    return {"class": type(objective).__name__, "num_particles": objective.num_particles}


def _describe_data(rows: Loader) -> dict[str, Any]:
    if isinstance(rows.source, Split):
        split = rows.source
        stored = fingerprint(split.stored, *split.given)
        return {"name": split.name, "num_data": len(split), "hash": stored, "transform": split.transform.describe()}
    return {"name": "tensors", "num_data": len(rows), "hash": rows.hash(), "transform": None}
