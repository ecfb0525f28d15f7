"""Stochastic variational inference on any model and guide."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

from pyrovae.data import Data, fingerprint
from pyrovae.data.loader import Loader, Source, place
from pyrovae.networks import Decoder
from pyrovae.objectives import ELBO, Objective
from pyrovae.programs import NO_PARTICLES, ModelGuide, Program, Unnormalized, inspected_programs, warn_of_links
from pyrovae.programs.data_use import find_data_use
from pyrovae.results import Epoch, History
from pyrovae.results.observed_data import DISCRETE
from pyrovae.runtime.annotations import CheckedFields, checked, merge_options
from pyrovae.runtime.context import forked_random, frozen_unremarked, module_mode, stream_seed
from pyrovae.runtime.environment import choose_device
from pyrovae.runtime.errors import first_line
from pyrovae.training.checkpoint import Checkpoint
from pyrovae.training.config import Training
from pyrovae.training.loop import Loop
from pyrovae.training.run_folder import RunFolder
from pyrovae.training.step import MakeOptimizer, fused_adam
from pyrovae.vae import VAE, require_form

logger = logging.getLogger("pyrovae")

MAX_ROWS, MAX_ELEMENTS = 10_000, 2**23  # size of the data from which the spread of learned scales is measured


@dataclasses.dataclass(frozen=True)
class FitOptions(CheckedFields):
    """Further options of `fit`, each of which is also a keyword of it.

    Attributes:
        resume: continue the run in the folder, to the same numbers as without the interruption.
        on_epoch: called after each epoch, in the main process if several train together; training stops if it returns
            True.
        optimizer: makes the optimizer of all parameters; its learning rate is set at the start of each epoch.
        modules: modules of the programs that neither run nor can be found from them.
        command: options of a command line, saved with the configuration.
        unnormalized: whether values outside the support of a distribution with ``validate_args=False`` are scored; the
            objective is then no bound on a log-probability.
        show_progress: whether to show a progress bar.

    """

    resume: bool = False
    on_epoch: Callable[[Epoch], bool | None] | None = None
    optimizer: MakeOptimizer = fused_adam
    modules: Iterable[nn.Module] = ()
    command: Mapping[str, Any] | None = None
    unnormalized: bool = False
    show_progress: bool = True


@checked
def fit(
    model: Program,
    guide: Program,
    data: Data | Source,
    *,
    objective: PyroELBO | None = None,
    training: Training | None = None,
    folder: str | Path | None = None,
    options: FitOptions | None = None,
    **fields: Any,
) -> History:
    """Fit a Pyro model and guide by gradient steps on an objective.

    Modules are trained in place, whether `pyro.module` registers them, the programs refer to them, or they run, and
    stay on the device of training. Values of `pyro.param` are trained in a parameter store of this call and copied to
    the caller's. One log line gives the number of trained parameters, another names tensors that the loss depends on
    and training does not change. The output and learned scales of a fresh `VAE` start at the mean and spread of the
    training data, unless ``Training(start_at_data=False)``.

    Random streams, validation switches and module modes are restored afterwards. The first epoch runs eagerly with
    Pyro's checks on, so that every observed value is checked once; if many follow, they replay a traced step.

    After each epoch, the running statistics of batch normalization are set to averages over about 2,000 training data
    with the weights of that moment, so that validation and evaluation are right after few steps too.

    Processes that ``torchrun`` started, and that initialized ``torch.distributed``, train together as with
    ``DistributedDataParallel``: each takes its rows of every minibatch and draws noise from a random stream of its own,
    gradients are averaged, and the main process writes the run.

    Data that would fill much of the device's memory stay in host memory, or in a memory-mapped file, to the same
    numbers; a log line says so.

    Args:
        model: a Pyro program called with one minibatch; see `pyrovae.programs` for the contract.
        guide: another. ``fit(vae, data)`` takes both from an object that has them, such as a VAE.
        data: a data set, whose training part is fitted and whose validation part is monitored; one split; the data
            ``(N, ...)``; or a tuple of the data and other tensors along the plate.
        objective: any `pyro.infer.ELBO` with a differentiable loss; `pyrovae.objectives.ELBO` by default.
        training: epochs, batch size, learning rate, early stopping, seed and device.
        folder: run folder for configuration, weights, trainer state, metrics and manifest; none by default.
        options: further options.
        fields: fields of `FitOptions` and of `Training`, such as ``resume=True`` or ``epochs=20``, which override
            ``options`` and ``training``.

    Returns:
        Bounds and learning rate of each epoch, in nats per datum; larger is better.

    Raises:
        ValueError: if the programs break their contract, there is nothing to train, or the folder holds another run, is
            in use by another process, or cannot be written.
        TypeError: if a keyword is not a field of `FitOptions` or `Training`.
        DivergenceError: if the loss is not finite; the last complete epoch stays in the folder.

    Example:
        >>> history = fit(vae.model, vae.guide, data, training=Training(epochs=50), folder="runs/first")

    """
    names = [field.name for field in dataclasses.fields(Training)]
    of_training = {name: fields.pop(name) for name in names if name in fields}
    options = merge_options(options, FitOptions, fields, function="fit", also=("objective", "folder", *names))
    training = dataclasses.replace(training or Training(), **of_training)
    device = choose_device(training.device)
    sources = (data.train, data.validation) if isinstance(data, Data) else (data,)
    loaders = [Loader(source) for source in sources]
    require_form(model, *sources)
    if options.resume and folder is None:
        raise ValueError("resume goes on with the run in a folder, but there is none; pass folder=")
    if training.patience is not None and len(loaders) == 1:
        raise ValueError("early stopping watches validation data, but there are none; pass a Data, or patience=None")
    loaders, on_host = place(loaders, device)
    train = loaders[0]
    with (
        forked_random(stream_seed(training.seed, "fit"), device),
        frozen_unremarked(),
        inspected_programs(
            Unnormalized()(model) if options.unnormalized else model,
            guide,
            examples := train.arguments(*(tensor[:3].to(device) for tensor in train.stored_rows())),
            modules=options.modules,
            device=device,
            keep_params=True,
        ) as programs,
        module_mode(programs.all_modules, training=True),
        ExitStack() as stack,
    ):
        warn_of_links(programs)
        _warn_of_data_use(programs, examples)
        if programs.base_measure == "Lebesgue" and train.num_values is not None:
            logger.warning(DISCRETE.format(train.num_values))
        if not programs.broadcasts and getattr(objective, "num_weighted", 1) > 1:
            logger.warning(NO_PARTICLES)
        loop = Loop(programs, loaders, objective or ELBO(), training, options.optimizer, device, on_host=on_host)
        loop.synchronize()
        _start(loop, model, train, folder, options, stack)
        try:
            return loop.run(options.on_epoch, show_progress=options.show_progress)
        except KeyboardInterrupt as interrupt:
            interrupt.history = History(loop.state.epochs, len(loop.state.epochs), "interrupted")  # type: ignore[attr-defined]
            interrupt.add_note("the metrics of the epochs that ended are the attribute `history` of this exception")
            raise


def _warn_of_data_use(programs: ModelGuide, examples: tuple[Tensor, ...]) -> None:
    """Warn of a model that sees the values that it scores."""
    rows = torch.arange(len(examples[0]), device=examples[0].device)
    with module_mode(programs.all_modules, training=False), torch.no_grad():
        fault = find_data_use(programs, examples, rows).fault
    if fault is not None:
        logger.warning("the trained objective is no bound on log p(x): %s", fault)


def _start(
    loop: Loop, model: Program, train: Loader, folder: str | Path | None, options: FitOptions, stack: ExitStack
) -> None:
    """Start a run or resume it, and write its settings to the folder, which is locked until the stack ends."""
    if folder is not None:
        described = {"class": type(loop.objective).__name__, "num_particles": loop.objective.num_particles}
        settings = {
            "training": dataclasses.asdict(loop.training),
            "objective": loop.objective.describe() if isinstance(loop.objective, Objective) else described,
            "optimizer": {"class": type(loop.optimizer).__name__},
            "data": {
                "name": train.name,
                "num_data": len(train),
                "hash": fingerprint(*train.stored),
                "transform": train.split.transform.describe() if train.split else None,
            },
            "command": dict(options.command or {}),
        }
        checkpoint = Checkpoint(RunFolder(folder), settings, model)
        progress = loop.group.from_first(lambda: checkpoint.open(stack, resume=options.resume))
        if progress is not None:
            loop.restore(progress)
        loop.checkpoint = checkpoint if loop.group.first else None
    start = ""
    if loop.training.start_at_data and not options.resume:
        start = _start_at_data(model, train)
        loop.group.copy_from_first(loop.tensors.trained)
    if loop.checkpoint is not None and not options.resume:
        loop.checkpoint.settings["start"] = start or None
        loop.save()
    logger.log(
        logging.WARNING if options.show_progress and loop.group.first else logging.INFO,
        "training %s parameters%s",
        f"{sum(parameter.numel() for parameter in loop.tensors.trained):,}",
        f"; it starts with {start}" if start else "",
    )


@torch.no_grad()
def _start_at_data(model: Program, rows: Loader) -> str:
    """Set the output bias of a VAE's decoder and the learned scales of its likelihood to the mean and spread of data.

    Values that were trained or set before are not changed: a bias that is not all zeros, a scale that is not the
    default of its class.

    Args:
        model: of a `VAE`; other models are not changed.
        rows: the training data.

    Returns:
        A text that names the values that were set; empty if there are none.

    """
    vae = getattr(model, "__self__", None)
    if not isinstance(vae, VAE):
        return ""
    decoder = vae.decoder if isinstance(vae.decoder, Decoder) and vae.decoder.is_untouched() else None
    learned = list(vae.likelihood.parameters())
    if decoder is None and not learned:
        return ""
    before = [parameter.clone() for parameter in learned]
    size = min(len(rows), MAX_ROWS, max(1, MAX_ELEMENTS // math.prod(vae.likelihood.x_shape)))
    with forked_random(stream_seed("start"), rows.device):
        x = rows.draw(torch.linspace(0, len(rows) - 1, size, device=rows.device).long())[0]
    mean = rows.split.mean() if rows.split else rows.stored[0].mean(0, dtype=torch.get_default_dtype())
    device = next((parameter.device for parameter in vae.parameters()), mean.device)
    try:
        params = vae.likelihood.start(x.to(device), mean.to(device))
        if tuple(params.shape) != vae.likelihood.param_shape:
            shape = vae.likelihood.param_shape
            raise ValueError(f"start must return initial parameters of shape {shape}, got {tuple(params.shape)}")
        at_mean = decoder is not None and bool(params.isfinite().all()) and decoder.start(params)
    except Exception as error:  # a likelihood of the user may raise anything
        logger.warning("the output does not start at the mean of the training data: %s", first_line(error))
        for parameter, value in zip(learned, before, strict=True):
            parameter.data.copy_(value)
        return ""
    at_spread = any(not now.equal(then) for now, then in zip(learned, before, strict=True))
    words = {"the output at the mean of the training data": at_mean, "learned scales at their spread": at_spread}
    return " and ".join(text for text, is_so in words.items() if is_so)
